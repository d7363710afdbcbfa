# SPDX-License-Identifier: Apache-2.0
"""Dropout in the host: texts of several lengths in one batch, recomputed blocks, cut batches, states in files."""

import pytest
import torch

from tests.host import options, tiny
from tests.trainers.test_state_pack import same

pytestmark = pytest.mark.comfy

DROPOUT = {"dropout": 0.3, "rank_dropout": 0.2, "module_dropout": 0.2}


@pytest.fixture(scope="module", autouse=True)
def output(comfy, tmp_path_factory):
    import folder_paths

    before = folder_paths.output_directory
    folder_paths.output_directory = str(tmp_path_factory.mktemp("output"))
    yield
    folder_paths.output_directory = before


def request(steps=3, batch=4, accumulate=1, state=None, total=0, checkpointing="off", **dropout):
    from graft.adapters.lora import LoRA
    from graft.host import engine
    from graft.trainers.data import Dataset, Item
    from graft.trainers.objectives import Objective
    from graft.trainers.optimizers import Optimizer
    from graft.trainers.optimizers.adamw import AdamW
    from graft.trainers.plan import Plan

    generator = torch.Generator().manual_seed(0)
    long = "a zork, " + ", ".join(f"thing number {i}" for i in range(40))  # two chunks of tokens
    items = [
        Item((long if i % 2 else "a zork",), pixels=torch.rand(64, 64, 3, generator=generator))
        for i in range(4)
    ]
    dataset = Dataset(tuple(items), trigger="zork", resolution=64)
    # A DiT runs texts of different lengths apart.
    wires = (tiny.model("sd3"), dataset, tiny.vae("sd3"), tiny.clip("sd3"))
    plan = Plan(steps, total, batch_size=batch, accumulate=accumulate, checkpointing=checkpointing)
    return engine.Request(
        *wires,
        network=LoRA(2, blocks="attention", **(dropout or DROPOUT)),
        objective=Objective(preserve=0.0),
        optimizer=Optimizer(AdamW(1e-2)),
        plan=plan,
        state=state,
    )


def train(**settings):
    from graft.host import engine

    with torch.inference_mode():
        return engine.train(request(**settings))


@pytest.fixture(scope="module")
def whole(output):
    return train()


def test_a_batch_in_parts_and_cut_has_the_same_masks(whole):
    assert options.gap(whole, train(batch=2, accumulate=2)) < 2e-5
    # AdamW divides small gradients by their own size, rounding and all.
    assert options.gap(whole, train(batch=1, accumulate=4)) < 2e-5
    assert options.gap(whole, train(dropout=0.0)) > 1e-4


def test_recomputed_blocks_have_the_same_masks_bit_for_bit(whole):
    assert options.same(whole, train(checkpointing="on"))


def test_two_and_one_through_a_file_are_three(whole):
    head = train(steps=2, total=3)
    tail = train(steps=1, total=3, state=through_a_file(head.state))
    assert options.same(whole, tail)
    assert same(tail.state.adapter, dict(whole.state.adapter))


def through_a_file(state):
    from graft.nodes.state import LoadState, SaveState

    hidden = type("Hidden", (), {"unique_id": None})
    save, load = (type(n.__name__, (n,), {"hidden": hidden}) for n in (SaveState, LoadState))
    return load.execute(save.execute(state, "part").args[1]).args[0]


def test_dropout_is_part_of_what_a_run_is(whole):
    other = request(dropout=0.1)
    assert "dropout=0.1" in other.settings and "module_dropout" not in other.settings
