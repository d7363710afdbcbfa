# SPDX-License-Identifier: Apache-2.0
"""A MODEL without its weights: the layers that the host makes of a file, by its header alone."""

import json
import os
import struct

import pytest
import torch

from graft.trainers.facts import facts

pytestmark = pytest.mark.comfy

# Layers with a weight of their own in ComfyUI's models of these families, counted in their files.
ATTENTION = {"SD 1.5": 16 * 8, "SDXL": 70 * 8}


def names(model):
    from graft.adapters.targets import kind

    root = model.model.diffusion_model
    return {name for name, module in root.named_modules() if kind(module)}


def write_header(path, model, prefix="", metadata=None):
    """A file of a model's names and shapes; its tensors are a hole of the right size, which no disk keeps."""
    entries, end = {}, 0
    for name, tensor in model.model.diffusion_model.state_dict().items():
        size = tensor.numel() * 2
        entries[f"{prefix}{name}"] = {
            "dtype": "F16",
            "shape": list(tensor.shape),
            "data_offsets": [end, end + size],
        }
        end += size
    if metadata:
        entries["__metadata__"] = metadata
    head = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        file.truncate(8 + len(head) + end)


@pytest.fixture
def put(comfy, monkeypatch):
    """Writes a file into a folder of the host's models, and takes it away again."""
    import folder_paths

    made = []

    def write(folder, name, writer):
        path = comfy / "models" / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        writer(path)
        made.append(path)
        folder_paths.filename_list_cache.pop(folder, None)
        return path

    yield write
    for path in made:
        path.unlink(missing_ok=True)
        folder_paths.filename_list_cache.clear()


@pytest.mark.parametrize("family", ["SD 1.5", "SDXL"])
def test_a_familys_attention_layers_are_counted(family):
    from graft.adapters.targets import targets
    from graft.host.model.skeleton import skeleton

    root = skeleton("family", family).model.diffusion_model
    assert len(targets(root, "attention")) == ATTENTION[family]


@pytest.mark.parametrize(
    ("family", "folder", "source", "prefix"),
    [
        ("SD 1.5", "checkpoints", "checkpoint", "model.diffusion_model."),
        ("SDXL", "checkpoints", "checkpoint", "model.diffusion_model."),
        ("SD 3 medium", "checkpoints", "checkpoint", "model.diffusion_model."),
        ("Flux", "diffusion_models", "unet", ""),
    ],
)
def test_a_files_header_gives_the_layers_of_its_family(put, family, folder, source, prefix):
    from graft.host.model.skeleton import skeleton

    known = skeleton("family", family)
    put(folder, "made.safetensors", lambda path: write_header(path, known, prefix))
    found = skeleton(source, "made.safetensors")
    assert names(found) == names(known)
    assert type(found.model) is type(known.model)
    assert next(found.model.diffusion_model.parameters()).device.type == "meta"


def test_a_file_that_was_replaced_is_read_again(put):
    from graft.host.model.skeleton import skeleton

    for family in ("SD 1.5", "SDXL"):
        known = skeleton("family", family)
        put(
            "checkpoints",
            "same.safetensors",
            lambda path, m=known: write_header(path, m, "model.diffusion_model."),
        )
        assert names(skeleton("checkpoint", "same.safetensors")) == names(known)


def test_the_mini_model_has_the_layers_of_its_loaded_one():
    from graft.host.model.mini import load_mini
    from graft.host.model.skeleton import skeleton

    assert names(skeleton("mini")) == names(load_mini()[0])


@pytest.mark.parametrize(
    ("family", "prediction", "last"),
    # sigma = sqrt((1 - a) / a) of the last cumulated alpha of Stable Diffusion's table, 0.00466; flow ends at 1.
    [
        ("SD 1.5", "eps", 14.6146),
        ("SDXL", "eps", 14.6146),
        ("SD 3 medium", "flow", 1),
        ("Flux", "flow", 1),
    ],
)
def test_noise_levels_are_real(family, prediction, last):
    from graft.host.model import sampling
    from graft.host.model.skeleton import skeleton

    levels = sampling.of_model(skeleton("family", family))
    assert facts(levels).family == prediction
    assert float(levels.sigmas[-1]) == pytest.approx(last, rel=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "..\\secret.safetensors",
        "/etc/passwd",
        "C:\\secret.safetensors",
        "checkpoints/../../secret.safetensors",
        "made.safetensors\x00.txt",
        "<img src=x>\u202e",
        "",
    ],
)
def test_names_that_are_not_in_the_hosts_list_are_refused(comfy, name):
    from graft.host.model.skeleton import skeleton

    secret = comfy / "secret.safetensors"
    secret.write_bytes(b"")
    try:
        for source in ("checkpoint", "unet"):
            with pytest.raises(ValueError, match="Unknown file of") as error:
                skeleton(source, name)
            assert "\u202e" not in str(error.value)
    finally:
        secret.unlink()


def test_other_kinds_of_files_and_broken_ones_are_told(put):
    from graft.host.model.skeleton import skeleton

    put("checkpoints", "old.ckpt", lambda path: path.write_bytes(b"pickle"))
    with pytest.raises(ValueError, match="only .safetensors files"):
        skeleton("checkpoint", "old.ckpt")
    put("checkpoints", "short.safetensors", lambda path: path.write_bytes(b"\x10"))
    with pytest.raises(ValueError, match="no safetensors file"):
        skeleton("checkpoint", "short.safetensors")

    def other(path):
        import safetensors.torch

        safetensors.torch.save_file({"a.b": torch.zeros(2, 2)}, path)

    put("checkpoints", "other.safetensors", other)
    with pytest.raises(ValueError, match=r"finds no diffusion model .* Choose the family"):
        skeleton("checkpoint", "other.safetensors")


def test_a_source_or_family_that_there_is_not_is_answered_with_those_there_are():
    from graft.host.model.skeleton import skeleton

    with pytest.raises(ValueError, match="Unknown source 'file'"):
        skeleton("file", os.devnull)
    with pytest.raises(ValueError, match="Did you mean SDXL"):
        skeleton("family", "SDLX")
