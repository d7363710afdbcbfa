# SPDX-License-Identifier: Apache-2.0
"""Load LoRA To Train On: what is listed, what is read, and what the training nodes hand on."""

import inspect
from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.comfy

EXAMPLE = "graft-examples/dax begun.safetensors"


@pytest.fixture
def loras(comfy):
    """The host's loras folder; what is put there is gone afterwards."""
    from graft.host.files import paths

    folder = comfy / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    for file in folder.iterdir():
        file.unlink()
    paths.refresh_loras()


@pytest.fixture
def load(comfy):
    from graft.nodes.start import LoadLora

    def call(lora, leave_out=False, **wires):
        node = type("LoadLora", (LoadLora,), {"hidden": SimpleNamespace(unique_id="7")})
        return node.execute(lora, leave_out, **wires).args

    return call


def write(path, tensors=None, metadata=None):
    from graft.host.files import paths
    from graft.loaders import lora_file

    pair = {"a.lora_up.weight": torch.ones(2, 1), "a.lora_down.weight": torch.ones(1, 3)}
    lora_file.write(path, tensors or pair, metadata or {})
    paths.refresh_loras()


def test_the_example_is_listed_and_fits_graft_mini(load):
    from graft.host.files import lora_files
    from graft.host.model import mini

    assert EXAMPLE in lora_files.names()
    with torch.inference_mode():
        model = mini.load_mini()[0]
    file, report = load(EXAMPLE, model=model)
    assert report == "'dax begun': 120 layers fit, rank 4, alpha 2"
    assert len(file.tensors) == 360 and not file.leave_out
    assert "connect a model" in load(EXAMPLE)[1]
    assert load(EXAMPLE, True)[0].leave_out


def test_safetensors_of_the_loras_folders_are_listed_and_no_pickles(loras, load):
    from graft.host.files import lora_files

    write(loras / "mine.safetensors", metadata={"k": "v"})
    (loras / "old.pt").write_bytes(b"x")
    names = lora_files.names()
    assert "mine.safetensors" in names and "old.pt" not in names
    assert names.index("mine.safetensors") < names.index(EXAMPLE)
    file, _ = load("mine.safetensors")
    assert (file.name, dict(file.metadata)) == ("mine", {"k": "v"})
    assert not any(tensor.is_inference() for tensor in file.tensors.values())


def test_the_choice_in_the_node_is_read_anew(loras):
    from graft.nodes.start import LoadLora

    def options():
        return next(i for i in LoadLora.define_schema().inputs if i.id == "lora").options

    before = options()
    write(loras / "new.safetensors")
    assert set(options()) - set(before) == {"new.safetensors"}


def test_the_fingerprint_changes_with_the_file(loras):
    from graft.nodes.start import LoadLora

    write(loras / "mine.safetensors")
    before = LoadLora.fingerprint_inputs("mine.safetensors")
    assert LoadLora.fingerprint_inputs("mine.safetensors") == before
    write(loras / "mine.safetensors", {"b.lora_A.weight": torch.ones(2, 3)})
    assert LoadLora.fingerprint_inputs("mine.safetensors") != before
    assert LoadLora.fingerprint_inputs(None) == ""


@pytest.mark.parametrize(
    "name",
    [
        "",
        "nothing.safetensors",
        "../models/loras/mine.safetensors",
        "/etc/passwd",
        "graft-examples/../graft-mini.safetensors",
        "graft-examples/",
        "..\\mine.safetensors",
        "mine.safetensors\0",
    ],
)
def test_other_names_are_refused(loras, load, name):
    from graft.nodes.start import LoadLora

    write(loras / "mine.safetensors")
    said = LoadLora.validate_inputs(name)
    assert isinstance(said, str) and "LoRA file" in said
    with pytest.raises(ValueError, match="LoRA file"):
        load(name)
    assert LoadLora.validate_inputs("mine.safetensors") is True
    assert LoadLora.validate_inputs() is True


def test_a_file_that_is_no_lora_is_refused_before_it_is_read(loras, load, monkeypatch):
    from graft import safetensors_header
    from graft.loaders import lora_file

    write(loras / "model.safetensors", {"conv.weight": torch.ones(3), "x.hada_w1_a": torch.ones(1)})
    (loras / "broken.safetensors").write_bytes(b"\xff" * 40)
    monkeypatch.setattr(lora_file, "read", lambda path: pytest.fail("it was read"))
    with pytest.raises(ValueError, match=r"holds no LoRA: none of its 2 tensors .*conv.weight"):
        load("model.safetensors")
    with pytest.raises(ValueError, match="no safetensors file"):
        load("broken.safetensors")
    monkeypatch.setattr(safetensors_header, "MAX_TENSORS", 1)
    write(loras / "many.safetensors")
    with pytest.raises(ValueError, match=r"'many.safetensors' .* has more tensors than"):
        load("many.safetensors")


def test_values_that_are_no_numbers_are_refused_by_name(loras, load):
    pair = {"x.lora_up.weight": torch.ones(4, 2), "x.lora_down.weight": torch.ones(2, 4)}
    pair["x.lora_up.weight"][1, 1] = float("nan")
    pair["x.alpha"] = torch.tensor(float("inf"))
    write(loras / "nan.safetensors", pair)
    with pytest.raises(
        ValueError, match=r"'nan.safetensors' has .* in 2 of its 3 tensors, the first is x.alpha"
    ):
        load("nan.safetensors")


@pytest.mark.parametrize("name", ["Train", "TrainLora"])
def test_training_nodes_hand_the_start_on(monkeypatch, name):
    from graft.nodes import engine, recipes, train
    from graft.trainers.data import Dataset, Item

    node, requests = getattr(train, name, None) or getattr(recipes, name), []
    outputs = ("model", "clip", "lora_model", "state", "loss_map", "images", "adapter", "report")

    def fake(request):
        requests.append(request)
        return SimpleNamespace(**{key: key for key in outputs})

    monkeypatch.setattr(engine.engine, "train", fake)
    held = SimpleNamespace(unique_id="7", prompt={}, extra_pnginfo={})
    inputs = node.define_schema().inputs
    values = {i.id: i.default for i in inputs if hasattr(i, "default")}
    wires = {
        "model": "m",
        "clip": "c",
        "vae": "v",
        "dataset": Dataset((Item("a", pixels=torch.zeros(64, 64, 3)),)),
    }
    call = type(name, (node,), {"hidden": held}).execute
    call(**wires, **values, start_from="cat")
    call(**wires, **values)
    assert [request.start_from for request in requests] == ["cat", None]
    ids = [one.id for one in inputs]
    later = ids[ids.index("start_from") :]  # what came after it stays after it
    assert all(one.optional for one in inputs[-len(later) :])
    assert list(inspect.signature(node.execute).parameters)[-len(later) :] == later
