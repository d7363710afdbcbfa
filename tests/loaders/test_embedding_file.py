# SPDX-License-Identifier: Apache-2.0
"""Files of new words in every dialect; nothing in them is run."""

import pytest
import torch
from safetensors.torch import save_file

from graft.loaders import embedding_file
from graft.loaders.embedding_file import UNSAID

L, G = torch.arange(6.0).reshape(2, 3), torch.arange(10.0).reshape(2, 5)


class Harmful:
    """What a pickle can hold: a call that is made when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def same(found, want):
    assert {word: set(by) for word, by in found.items()} == {w: set(by) for w, by in want.items()}
    for word, by_encoder in want.items():
        for key, vectors in by_encoder.items():
            assert torch.equal(found[word][key], vectors), (word, key)
            assert found[word][key].dtype == torch.float32


DIALECTS = {
    "this pack, ComfyUI": ({"clip_l": L, "clip_g": G}, {UNSAID: {"clip_l": L, "clip_g": G}}),
    "early diffusers scripts": (
        {"text_encoders_0": L, "text_encoders_1": G},
        {UNSAID: {"clip_l": L, "clip_g": G}},
    ),
    "kohya": ({"emb_params": L}, {UNSAID: {UNSAID: L}}),
    "diffusers": (
        {"<cat-toy>": L, "<hat>": L[0]},
        {"<cat-toy>": {UNSAID: L}, "<hat>": {UNSAID: L[:1]}},
    ),
    "bundled": (
        {
            "bundle_emb.TOK.clip_l": L,
            "bundle_emb.TOK.clip_g": G,
            "bundle_emb.old.string_to_param.*": L,
            "lora_unet_input_blocks_4_1_proj_in.lora_up.weight": torch.ones(2, 2),
        },
        {"TOK": {"clip_l": L, "clip_g": G}, "old": {UNSAID: L}},
    ),
    "half precision": ({"clip_l": L.half()}, {UNSAID: {"clip_l": L}}),
}


@pytest.mark.parametrize("name", DIALECTS)
def test_every_dialect_is_read(tmp_path, name):
    tensors, want = DIALECTS[name]
    for suffix in embedding_file.SUFFIXES:
        path = tmp_path / f"mine{suffix}"
        if suffix == ".safetensors":
            save_file({key: value.clone() for key, value in tensors.items()}, path)
        else:
            torch.save(tensors, path)
        same(embedding_file.read(path)[0], want)


A1111 = {
    "string_to_token": {"*": 265},
    "name": "trained as this",
    "step": 500,
    "sd_checkpoint": "abcdef",
    "sd_checkpoint_name": "model",
}


@pytest.mark.parametrize("container", [dict, torch.nn.ParameterDict])
def test_a1111_of_today_and_of_the_first_days(tmp_path, container):
    vectors = torch.nn.Parameter(L.clone())
    torch.save({**A1111, "string_to_param": container({"*": vectors})}, tmp_path / "a.pt")
    words, said = embedding_file.read(tmp_path / "a.pt")
    same(words, {UNSAID: {UNSAID: L}})
    assert not said and not words[UNSAID][UNSAID].requires_grad


def test_a_file_of_this_pack_says_its_word(tmp_path):
    path = tmp_path / "renamed.safetensors"
    save_file({"emb_params": L}, path, {"modelspec.trigger_phrase": "TOK"})
    assert embedding_file.read(path)[1] == "TOK"


def test_a_program_in_a_file_does_not_run(tmp_path):
    """The same file does run when it is opened as a pickle: the test can fail."""
    torch.save({"emb_params": L, "x": Harmful(tmp_path / "ran")}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=r"'bad.pt' \(\d+ bytes\) is damaged, or holds more than"):
        embedding_file.read(tmp_path / "bad.pt")
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "bad.pt", weights_only=False)["x"].close()
    assert (tmp_path / "ran").exists()


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def test_what_is_no_file_of_words_is_refused(tmp_path):
    def refused(name, match):
        with pytest.raises(ValueError, match=match):
            embedding_file.read(tmp_path / name)

    torch.save({"emb_params": L}, tmp_path / "cut.pt")
    cut(tmp_path / "cut.pt", 300)
    refused("cut.pt", r"'cut.pt' \(300 bytes\) is damaged")
    (tmp_path / "empty.bin").write_bytes(b"")
    refused("empty.bin", r"'empty.bin' \(0 bytes\) is damaged")
    torch.save([L], tmp_path / "list.pt")
    refused("list.pt", "holds list and no vectors by name")
    save_file({"diffusion_model.a.lora_up.weight": L}, tmp_path / "lora.safetensors")
    refused("lora.safetensors", "none of its 1 tensors is an embedding's, for example diffusion_m")
    save_file({"emb_params": torch.tensor([[1.0, float("nan")]])}, tmp_path / "nan.safetensors")
    refused("nan.safetensors", "values that are no finite numbers")
    save_file({"emb_params": torch.ones(1, 2, 3)}, tmp_path / "deep.safetensors")
    refused("deep.safetensors", "holds no new words")
    with (tmp_path / "model.pt").open("wb") as file:
        file.truncate(65 << 20)
    refused("model.pt", "has 65 MiB and is no file of new words")
    (tmp_path / "ckpt.safetensors").write_bytes((tmp_path / "list.pt").read_bytes())
    refused("ckpt.safetensors", "ckpt.safetensors")
    with pytest.raises(FileNotFoundError):
        embedding_file.read(tmp_path / "none.safetensors")


def test_only_the_bundle_of_an_adapter_counts():
    tensors = DIALECTS["bundled"][0] | {"clip_l": L, "emb_params": L}
    same(embedding_file.bundled(tensors), DIALECTS["bundled"][1])
