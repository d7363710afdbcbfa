# SPDX-License-Identifier: Apache-2.0
"""Training nodes: how long a run is, and what they ask of the engine."""

from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.comfy


def dataset(*sizes):
    from graft.trainers.data import Dataset, Item

    return Dataset(tuple(Item("a", pixels=torch.zeros(h, w, 3)) for w, h in sizes), resolution=64)


SQUARES = [(64, 64)] * 10


@pytest.mark.parametrize(
    ("amount", "unit", "batch", "sizes", "steps"),
    [
        (500, "steps", 4, SQUARES, 500),
        (100, "steps per image", 1, SQUARES, 1000),
        (100, "steps per image", 4, SQUARES, 1000),
        (3, "epochs", 1, SQUARES, 30),
        (3, "epochs", 4, SQUARES, 9),  # 10 pictures are 3 batches of 4, the last one filled up
        (3, "epochs", 16, SQUARES, 3),
        # A batch never mixes sizes: 4 and 3 pictures are 1 + 1 batches of 4.
        (2, "epochs", 4, [(64, 64)] * 4 + [(64, 32)] * 3, 4),
    ],
)
def test_the_length_of_a_run_in_each_unit(amount, unit, batch, sizes, steps):
    from graft.nodes.length import steps_for

    assert steps_for(amount, unit, dataset(*sizes), batch) == steps


@pytest.mark.parametrize(
    ("amount", "unit", "batch"),
    [(0, "steps", 1), (-1, "epochs", 1), (1, "epochs", 0), (1, "hours", 1)],
)
def test_a_length_that_cannot_be_is_refused(amount, unit, batch):
    from graft.nodes.length import steps_for

    with pytest.raises(ValueError, match="must be"):
        steps_for(amount, unit, dataset(*SQUARES), batch)


@pytest.fixture
def asked(monkeypatch):
    """What the engine was asked for; it is not run."""
    from graft.nodes import engine

    requests = []

    def train(request):
        requests.append(request)
        names = ("model", "clip", "lora_model", "state", "loss_map", "images", "adapter", "report")
        return SimpleNamespace(**{name: name for name in names})

    monkeypatch.setattr(engine.engine, "train", train)
    return requests


def hidden(node):
    """The node with hidden inputs, as the host prepares it for a call."""
    extra = {"workflow": {"id": "w1"}}
    held = SimpleNamespace(unique_id="7", prompt={}, extra_pnginfo=extra)
    return type(node.__name__, (node,), {"hidden": held})


def widgets(node, **changed):
    """Default values of a node's widgets."""
    inputs = node.define_schema().inputs
    return {i.id: i.default for i in inputs if hasattr(i, "default")} | changed


def test_train_lora_asks_for_what_its_widgets_say(asked):
    from graft.adapters.lora import LoRA
    from graft.nodes.recipes import TrainLora
    from graft.trainers.objectives import Objective
    from graft.trainers.objectives.weights.min_snr import MinSNR
    from graft.trainers.optimizers import Optimizer
    from graft.trainers.optimizers.adamw import AdamW
    from graft.trainers.optimizers.schedules.cosine import Cosine
    from graft.trainers.plan import Plan

    data = dataset(*SQUARES)
    values = widgets(TrainLora, steps=3, steps_unit="epochs", batch_size=2, accumulate=2, seed=5)
    values |= {"rank": 4, "learning_rate": 0.01, "preserve": 0.5, "preserve_prompts": "a\nb"}
    values |= {"schedule": "cosine", "weight": "min-snr"}
    output = hidden(TrainLora).execute(model="m", clip="c", vae="v", dataset=data, **values)
    request = asked[0]
    assert request.plan == Plan(9, batch_size=2, accumulate=2, seed=5)
    assert request.network == LoRA(4)
    assert request.optimizer == Optimizer(AdamW(0.01), Cosine())
    assert request.objective == Objective(
        weight=MinSNR(), preserve=0.5, preserve_prompts=("a", "b")
    )
    assert (request.model, request.clip, request.vae, request.dataset) == ("m", "c", "v", data)
    assert (request.name, request.node_id, request.workflow_id) == ("graft", "7", "w1")
    wanted = ("model", "clip", "lora_model", "state", "loss_map", "images", "adapter")
    assert output.args == wanted
    assert output.ui == {"text": ["report"]}


def test_train_has_a_default_for_every_optional_socket(asked):
    from graft.adapters.lora import LoRA
    from graft.nodes.train import Train
    from graft.trainers.objectives import Objective
    from graft.trainers.optimizers import Optimizer
    from graft.trainers.plan import Plan

    hidden(Train).execute(model="m", dataset="d", **widgets(Train))
    request = asked[0]
    assert (request.network, request.objective, request.optimizer) == (
        LoRA(),
        Objective(),
        Optimizer(),
    )
    assert request.plan == Plan()
    assert request.preview is None and request.state is None


def test_both_training_nodes_hand_every_wire_on_by_its_name(asked):
    from graft.nodes.engine import EXTRAS, WIRES
    from graft.nodes.recipes import TrainLora
    from graft.nodes.train import Train

    sent = {name: f"the {name}" for name in (*WIRES, *EXTRAS)} | {"dataset": dataset((64, 64))}
    for node in (Train, TrainLora):
        hidden(node).execute(**sent, **widgets(node))
        assert {name: getattr(asked[-1], name) for name in sent} == sent


def test_the_widgets_of_both_training_nodes_have_the_same_defaults():
    from graft.nodes.recipes import TrainLora
    from graft.nodes.train import Train

    one, other = widgets(Train), widgets(TrainLora)
    assert {k: v for k, v in one.items() if k in other} == {
        k: v for k, v in other.items() if k in one
    }


@pytest.mark.parametrize("name", ["a/b", "a\\b", "..", "", "nul", "C:x"])
def test_a_name_that_cannot_be_a_file_does_not_validate(name):
    from graft.nodes.recipes import TrainLora
    from graft.nodes.train import Train

    for node in (Train, TrainLora):
        assert "name of the LoRA" in node.validate_inputs(name)
        assert node.validate_inputs("my cat") is True
