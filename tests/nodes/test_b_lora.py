# SPDX-License-Identifier: Apache-2.0
"""What Train B-LoRA asks the engine for, and what it refuses."""

from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.comfy


@pytest.fixture
def asked(comfy, monkeypatch):
    """Calls the node with its defaults and some changes; gives the request."""
    from graft.nodes import b_lora, engine
    from graft.trainers.data import Dataset, Item
    from tests.host import tiny

    requests = []
    names = ("model", "clip", "lora_model", "state", "loss_map", "images", "adapter")
    out = SimpleNamespace(**dict.fromkeys(names), report="")
    monkeypatch.setattr(engine.engine, "train", lambda request: requests.append(request) or out)
    held = SimpleNamespace(unique_id="7", prompt={}, extra_pnginfo={})
    node = type("TrainBLora", (b_lora.TrainBLora,), {"hidden": held})

    def ask(**changes):
        given = {i.id: i.default for i in node.define_schema().inputs if hasattr(i, "default")}
        data = Dataset((Item("a caption", pixels=torch.zeros(64, 64, 3)),))
        wires = {"model": None, "clip": "c", "vae": "v", "dataset": data}
        wires["model"] = changes.pop("model", None) or tiny.model("sdxl")
        node.execute(**wires, **given | changes)
        return requests[-1]

    return ask


def test_the_defaults_are_the_papers(asked):
    """Frenkel et al. 2024, and the authors' own training: one picture, rank 64, 5e-5 constant, 1000 steps."""
    request = asked()
    network, plan, optimizer = request.network, request.plan, request.optimizer
    assert (network.rank, network.alpha, network.blocks) == (64, 0.0, "b-lora")
    assert (plan.steps, plan.effective_batch) == (1000, 1)
    assert [optimizer.lr(step, 1000) for step in (0, 999)] == [5e-5, 5e-5]
    assert request.objective.preserve == 0 and request.objective.weight.name == "one"
    assert request.dataset.texts(0) == ("A [v]",)


@pytest.mark.parametrize(
    "choice,preset", [("content", "b-lora content"), ("style", "b-lora style")]
)
def test_one_block_alone(asked, choice, preset):
    assert asked(blocks=choice).network.blocks == preset


def test_an_empty_prompt_keeps_the_captions(asked):
    assert asked(prompt=" \n").dataset.texts(0) == ("a caption",)
    assert asked(prompt=" A [c] ").dataset.texts(0) == ("A [c]",)


def test_widgets_are_taken_over(asked):
    changes = {"steps": 7, "rank": 4, "alpha": 2.0, "learning_rate": 0.01, "schedule": "cosine"}
    request = asked(**changes, seed=3, preserve=1.0, preserve_prompts="a\nb", offload="on")
    assert request.plan.steps == 7 and request.plan.seed == 3 and request.plan.offload == "on"
    assert (request.network.rank, request.network.alpha) == (4, 2.0)
    assert request.optimizer.lr(0, 7) == 0.01 and request.optimizer.lr(6, 7) < 0.01
    assert request.objective.preserve_prompts == ("a", "b")


@pytest.mark.parametrize("name", ["SD15", "SD3", "Flux"])
def test_other_layouts_are_refused_with_what_to_do(asked, name):
    from tests.host.files.test_keys import build

    with pytest.raises(ValueError, match=rf"SDXL.*this MODEL \({name}\).*Train LoRA"):
        asked(model=build(name))


def test_square_brackets_are_plain_to_comfyui(comfy):
    """Only round ones are weights, so that a prompt with [v] means the same everywhere."""
    from graft.host.text.conditioning import literal
    from tests.host import tiny

    assert literal("A [v]") == "A [v]"
    tokens = tiny.clip("sdxl").tokenize("A [v]")
    assert all(part[1] == 1.0 for rows in tokens.values() for row in rows for part in row)
    spelled = [part[0] for part in tokens["l"][0][1:6]]
    assert len(set(spelled)) == 5, "a, [, v, ] and the end"
