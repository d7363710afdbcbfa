# SPDX-License-Identifier: Apache-2.0
"""What the nodes for new words ask the engine for."""

from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.comfy


@pytest.fixture
def asked(comfy, monkeypatch):
    """Calls a node with its defaults and some changes; gives the request."""
    from graft.nodes import engine, text_recipes
    from graft.trainers.data import Dataset, Item

    requests = []
    out = SimpleNamespace(
        **dict.fromkeys(("model", "clip", "lora_model", "state", "loss_map", "images", "adapter")),
        report="",
    )

    def fake(request):
        requests.append(request)
        return out

    monkeypatch.setattr(engine.engine, "train", fake)
    held = SimpleNamespace(unique_id="7", prompt={}, extra_pnginfo={})

    def ask(name, **changes):
        node = getattr(text_recipes, name)
        values = {i.id: i.default for i in node.define_schema().inputs if hasattr(i, "default")}
        items = tuple(Item("a TOK", pixels=torch.zeros(64, 64, 3)) for _ in range(3))
        wires = {"model": "m", "clip": "c", "vae": "v", "dataset": Dataset(items)}
        type(name, (node,), {"hidden": held}).execute(**wires, **values | changes)
        return requests[-1]

    return ask


def groups(optimizer):
    """Peak rate, decay and stop by part."""
    parameters = {
        name: torch.nn.Parameter(torch.zeros(1)) for name in ("a.up", "embeddings.TOK.clip_l")
    }
    return {
        g["part"]: (g["peak"], g["weight_decay"], g["stop"]) for g in optimizer.groups(parameters)
    }


def test_textual_inversion_trains_the_word_alone(asked):
    request = asked("TrainTextualInversion", token=" cat ", vectors=3, init="animal")
    (concept,) = request.tokens.concepts
    assert (concept.name, concept.vectors, concept.init) == ("cat", 3, "animal")
    assert request.network.blocks == "none" and request.objective.preserve == 0
    assert groups(request.optimizer)["embedding"] == (5e-3, 0.0, 1.0)
    assert request.text_network is None and request.plan.steps == 1000


def test_pivotal_has_a_rate_and_a_stop_for_the_word(asked):
    changes = {"token_learning_rate": 0.002, "learning_rate": 1e-4, "pivot": 0.25, "rank": 4}
    request = asked("TrainPivotal", **changes, preserve_prompts="a\nb", offload="on")
    found = groups(request.optimizer)
    assert found["embedding"] == (0.002, 0.0, 0.25)
    assert found["model"][0] == 1e-4 and found["model"][2] == 1.0
    assert request.network.rank == 4 and request.network.blocks == "attention"
    assert request.objective.preserve_prompts == ("a", "b") and request.plan.offload == "on"


@pytest.mark.parametrize("name", ["TrainTextualInversion", "TrainPivotal"])
def test_length_and_further_concepts_are_taken_over(asked, name):
    from graft.adapters.tokens import Concept, Tokens

    more = Tokens((Concept("HAT"),), retraction=0.0)
    request = asked(name, steps=7, steps_unit="steps per image", tokens=more)
    assert request.plan.steps == 21
    assert [c.name for c in request.tokens.concepts] == ["HAT", "TOK"]
    assert request.tokens.retraction == 0.0
