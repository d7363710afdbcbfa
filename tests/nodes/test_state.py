# SPDX-License-Identifier: Apache-2.0
"""Saving and loading training states in a graph: three steps, a file, three more, as six."""

import dataclasses

import pytest
import torch

from tests.trainers.test_state_pack import same, trained

pytestmark = pytest.mark.comfy


@pytest.fixture
def nodes(comfy, tmp_path, monkeypatch):
    import folder_paths

    from graft.nodes.state import LoadState, SaveState

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    hidden = type("Hidden", (), {"unique_id": None})
    return [type(node.__name__, (node,), {"hidden": hidden}) for node in (SaveState, LoadState)]


def test_what_is_saved_is_listed_and_loaded(nodes, tmp_path):
    save, load = nodes
    state = trained("prodigy", ema_decay=0.9)
    made = save.execute(state, "mine")
    through, file = made.args
    assert through is state and file == "states/mine_step000003.state.safetensors"
    assert "output/graft/states/mine_step000003" in made.ui["text"][0]
    (widget,) = load.define_schema().inputs
    assert widget.options == [file] and load.validate_inputs(file) is True
    loaded, step = load.execute(file).args
    assert same(loaded, state) and step == 3


def test_the_list_is_read_anew_and_may_be_empty(nodes):
    _, load = nodes
    assert load.define_schema().inputs[0].options == []
    nodes[0].execute(trained(), "a")
    assert len(load.define_schema().inputs[0].options) == 1


def test_another_file_of_the_name_is_run_again(nodes, tmp_path):
    save, load = nodes
    file = save.execute(trained(), "mine").args[1]
    before = load.fingerprint_inputs(file)
    path = tmp_path / "graft" / file
    path.write_bytes(path.read_bytes() + b" ")
    assert load.fingerprint_inputs(file) != before
    path.unlink()
    assert load.fingerprint_inputs(file) == file
    assert "no state" in load.validate_inputs(file)


@pytest.mark.parametrize("name", ["../mine", "", "a/b", "con"])
def test_names_that_are_no_files_are_refused(nodes, name):
    assert nodes[0].validate_inputs(name) is not True


@pytest.mark.parametrize("algorithm", ["adamw", "prodigy", "schedule-free-adamw"])
def test_three_and_three_through_a_file_are_six(nodes, algorithm):
    """With dropout, buckets, masks, captions that vary, class images, preservation, accumulation, averages; twice."""
    from graft.adapters.lora import LoRA
    from graft.host import engine
    from graft.trainers.objectives import Objective
    from graft.trainers.optimizers import OPTIMIZERS, Optimizer
    from graft.trainers.plan import Plan
    from tests.host import options, tiny

    decay = 0.0 if algorithm.startswith("schedule-free") else 0.9
    with torch.inference_mode():
        request = engine.Request(
            tiny.model("sdxl"),
            options.varied(classes=options.class_pictures(), class_weight=0.5),
            tiny.kl_vae(),
            tiny.clip("sdxl"),
            network=LoRA(rank=4, dropout=0.2, rank_dropout=0.2, module_dropout=0.2),
            objective=Objective(preserve=0.5, learn_log_variance=True),
            optimizer=Optimizer(OPTIMIZERS.get(algorithm)(), ema_decay=decay),
            plan=Plan(6, batch_size=2, accumulate=2),
        )
        whole = engine.train(request)
        state = None
        for _ in range(3):
            plan = dataclasses.replace(request.plan, steps=2, total_steps=6)
            part = engine.train(dataclasses.replace(request, plan=plan, state=state))
            (state, _) = nodes[1].execute(nodes[0].execute(part.state, "part").args[1]).args
    assert options.same(whole, part)
    assert same(state.adapter, dict(whole.state.adapter))
