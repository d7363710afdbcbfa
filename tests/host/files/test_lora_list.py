# SPDX-License-Identifier: Apache-2.0
"""Which LoRA files are listed: by name, by pattern, by the training that wrote them; and in which order."""

import time

import pytest
import torch

pytestmark = pytest.mark.comfy


@pytest.fixture
def loras(tmp_path, monkeypatch):
    """output/loras of a host; what else the host lists is left out."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    folders = {**folder_paths.folder_names_and_paths}
    folders["loras"] = ([str(tmp_path / "loras")], {".safetensors", ".pt"})
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", folders)
    (tmp_path / "loras" / "grids").mkdir(parents=True)
    return tmp_path / "loras"


def put(folder, name, **metadata):
    from graft.loaders import lora_file

    facts = {f"graft.{key}": value for key, value in metadata.items()}
    lora_file.write(folder / name, {"a.lora_up.weight": torch.ones(1, 1)}, facts)


def files(*args):
    from graft.host.files import lora_list

    return [one.file.replace("\\", "/") for one in lora_list.find(*args)]


def test_they_come_by_step_and_others_are_left_out(loras):
    for name in (
        "cat_step000900", "cat_step000100", "cat_step1000000", "cat", "cat_raw", "cats_step000100",
        "cat_best_step000300", "cat_step000100_00002", "cat_step", "cat_stepwise000100",
    ):  # fmt: skip
        put(loras, f"{name}.safetensors")
    put(loras / "grids", "cat-step00000500.safetensors")
    (loras / "notes_step000001.txt").write_text("no LoRA", encoding="utf-8")
    assert files("cat") == [
        "cat_step000100.safetensors",
        "cat_step000100_00002.safetensors",
        "grids/cat-step00000500.safetensors",
        "cat_step000900.safetensors",
        "cat_step1000000.safetensors",
    ]
    assert files("grids/cat") == ["grids/cat-step00000500.safetensors"]
    assert files("cat*t") == ["cat_best_step000300.safetensors"]
    assert files("*s") == ["cats_step000100.safetensors"]


def test_steps_and_labels(loras):
    from graft.host.files import lora_list

    put(loras / "grids", "my cat 1.5_step000020.safetensors")
    (one,) = lora_list.find("my cat 1.5")
    assert (one.step, one.label) == (20, "my cat 1.5_step000020")


@pytest.mark.parametrize(
    "pattern,name,fits",
    [
        ("*", "", True), ("*", "abc", True), ("a*", "a", True), ("a*a", "a", False), ("a*a", "aa", True),
        ("*b*", "abc", True), ("*c*b*", "abc", False), ("a*b*c", "abbc", True), ("ab", "abc", False),
        ("a.c", "abc", False), ("a[b]c", "a[b]c", True), ("a*b*b", "ab", False), ("*a*a*", "aba", True),
    ],
)  # fmt: skip
def test_a_star_is_any_text_and_nothing_else_is_special(pattern, name, fits):
    from graft.host.files import lora_list

    assert lora_list._fits(pattern, name) == fits


def test_no_pattern_takes_long():
    from graft.host.files import lora_list

    began = time.perf_counter()
    assert not lora_list._fits("a*" * 5000 + "b", "a" * 4000)
    assert time.perf_counter() - began < 1


def test_an_adapter_takes_the_files_of_its_training_whatever_the_step(loras):
    mine = {"optimizer": "AdamW(lr=1)", "seed": "3"}
    put(loras, "cat_step000001.safetensors", steps="1", **mine)
    put(loras, "cat_step000002.safetensors", steps="2", **{**mine, "seed": "4"})
    put(loras, "cat_step000002_00002.safetensors", steps="2", **mine)
    (loras / "cat_step000003.safetensors").write_bytes(b"cut off")
    metadata = {
        "graft.steps": "9",
        "modelspec.title": "cat",
        **{f"graft.{k}": mine[k] for k in mine},
    }
    assert files("cat", metadata) == [
        "cat_step000001.safetensors",
        "cat_step000002_00002.safetensors",
    ]
    with pytest.raises(ValueError, match="4 LoRA files .* none is of the training"):
        files("cat", {**metadata, "graft.seed": "5"})


def test_nothing_found_says_what_is_there(loras):
    with pytest.raises(ValueError, match="train with save_every. No LoRA there has any"):
        files("cat")
    put(loras, "graft dax_step000100.safetensors")
    with pytest.raises(ValueError, match="Did you mean graft dax?"):
        files("graft dux")
    with pytest.raises(ValueError, match="name is empty"):
        files("  ")


def test_the_fingerprint_follows_the_files(loras):
    from graft.host.files import lora_list
    from graft.nodes.compare import ListLoras

    assert lora_list.fingerprint("cat") == ()
    put(loras, "cat_step000001.safetensors")
    first = lora_list.fingerprint("cat")
    put(loras, "dog_step000001.safetensors")
    assert lora_list.fingerprint("cat") == first != ()
    put(loras, "cat_step000001.safetensors", steps="100")
    assert lora_list.fingerprint("cat") != first
    # The host passes None for a wire; what is wired says what is listed.
    assert ListLoras.fingerprint_inputs("cat") == lora_list.fingerprint("cat")
    assert ListLoras.fingerprint_inputs("cat", adapter=None) == ()
