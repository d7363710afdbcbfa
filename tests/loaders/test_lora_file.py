# SPDX-License-Identifier: Apache-2.0
"""LoRA files: equal bytes for equal content, read alike by the safetensors library."""

import hashlib
import json
import struct

import pytest
import torch

from graft.loaders import lora_file


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "b.lora_up.weight": torch.randn(6, 2, generator=generator),
        "b.lora_down.weight": torch.randn(2, 3, 3, 3, generator=generator),
        "b.alpha": torch.tensor(4.0),
        "odd": torch.randn(3, generator=generator).to(torch.bfloat16),
        "flag": torch.tensor([True, False, True]),
        "small": torch.arange(5, dtype=torch.uint8),
        "empty": torch.zeros(0, 4),
        "strided": torch.arange(12.0).reshape(3, 4).T,
        "float8": torch.tensor([1.0, -2.0, 0.5]).to(torch.float8_e4m3fn),
        "long": torch.tensor([2**40, -1]),
    }


def test_what_is_written_is_what_the_library_reads(tmp_path):
    from safetensors import safe_open

    path = tmp_path / "x.safetensors"
    lora_file.write(
        path, tensors(), {"ss_network_dim": "2", "note": 'caf\u00e9 \U0001f431 "quoted"'}
    )
    with safe_open(str(path), "pt") as file:
        assert file.metadata() == {"ss_network_dim": "2", "note": 'caf\u00e9 \U0001f431 "quoted"'}
        assert set(file.keys()) == set(tensors())
        for name, wanted in tensors().items():
            found = file.get_tensor(name)
            assert found.dtype == wanted.dtype
            assert found.shape == wanted.shape
            assert torch.equal(found.float(), wanted.float())
    read = lora_file.read(path)
    assert read.name == "x"
    assert read.metadata["ss_network_dim"] == "2"
    assert torch.equal(read.tensors["strided"], tensors()["strided"])


def test_equal_content_gives_equal_bytes_in_any_order(tmp_path):
    metadata = {f"key{i}": str(i) for i in range(20)}
    one, two = tmp_path / "1", tmp_path / "2"
    lora_file.write(one, tensors(), metadata)
    lora_file.write(two, dict(reversed(tensors().items())), dict(reversed(metadata.items())))
    assert one.read_bytes() == two.read_bytes()


def test_every_tensor_is_aligned_to_its_elements(tmp_path):
    path = tmp_path / "x"
    lora_file.write(path, tensors())
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    assert length % 8 == 0
    for name, entry in json.loads(data[8 : 8 + length]).items():
        assert entry["data_offsets"][0] % tensors()[name].element_size() == 0


def test_the_library_reads_our_files_and_we_read_its(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "theirs.safetensors"
    save_file({"a": torch.ones(2, 2)}, str(path), {"k": "v"})
    read = lora_file.read(path)
    assert read.metadata == {"k": "v"}
    assert torch.equal(read.tensors["a"], torch.ones(2, 2))
    path.unlink()  # nothing keeps the file open


def test_tensors_of_inference_mode_are_written_and_read_as_normal_ones(tmp_path):
    with torch.inference_mode():
        lora_file.write(tmp_path / "x.safetensors", {"a": torch.ones(2)})
        read = lora_file.read(tmp_path / "x.safetensors")
    assert not read.tensors["a"].is_inference()


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({}, "no tensors to write"),
        ({"m": torch.zeros(2, device="meta")}, "'m' has no plain values"),
        ({"c": torch.zeros(2, dtype=torch.complex64)}, "'c' is torch.complex64"),
        ({"__metadata__": torch.zeros(2)}, "cannot be the name"),
    ],
)
def test_what_cannot_be_written_is_named(tmp_path, bad, said):
    with pytest.raises(ValueError, match=said):
        lora_file.write(tmp_path / "x", bad)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "data", [b"", b"no safetensors at all", "cut"], ids=["empty", "text", "cut"]
)
def test_a_damaged_file_is_named(tmp_path, data):
    path = tmp_path / "bad.safetensors"
    if data == "cut":
        lora_file.write(path, tensors())
        data = path.read_bytes()[:-10]
    path.write_bytes(data)
    with pytest.raises(
        ValueError, match=r"'bad.safetensors' .* no safetensors file, or it is cut off"
    ):
        lora_file.read(path)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file 'none.safetensors'"):
        lora_file.read(tmp_path / "none.safetensors")


def test_the_metadata_speak_for_the_tensors():
    said = lora_file.describe(tensors())
    assert said["ss_network_dim"] == "2"
    assert said["ss_network_alpha"] == "4"
    assert json.loads(said["ss_network_args"]) == {"conv_alpha": "4", "conv_dim": "2"}
    mixed = tensors() | {
        "c.lora_up.weight": torch.ones(4, 3),
        "c.lora_down.weight": torch.ones(3, 4),
    }
    said = lora_file.describe(
        mixed
    )  # kohya's dim is that of linear layers, conv_dim that of the others
    assert (said["ss_network_dim"], said["ss_network_alpha"]) == ("3", "3")
    assert json.loads(said["ss_network_args"]) == {"conv_alpha": "4", "conv_dim": "2"}
    assert lora_file.ranks(mixed) == {"b": (2, 4.0), "c": (3, 3.0)}
    mixed |= {"d.lora_up.weight": torch.ones(4, 5), "d.lora_down.weight": torch.ones(5, 4)}
    assert lora_file.describe(mixed)["ss_network_dim"] == "Dynamic"


def test_other_kinds_are_called_as_lycoris_calls_them():
    for key, name in (("hada_w1_a", "loha"), ("lokr_w1", "lokr"), ("oft_blocks", "diag-oft")):
        said = lora_file.describe({f"a.{key}": torch.ones(2, 2)})
        assert said["ss_network_module"] == "lycoris.kohya"
        assert json.loads(said["ss_network_args"]) == {"algo": name}


def test_the_hash_is_that_of_the_bytes_after_the_header(tmp_path):
    path = tmp_path / "x.safetensors"
    lora_file.write(path, tensors(), {"k": "v"})
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    assert lora_file.data_hash(tensors()) == hashlib.sha256(data[8 + length :]).hexdigest()


def test_names_are_read_without_the_tensors(tmp_path):
    path = tmp_path / "x.safetensors"
    lora_file.write(path, tensors())
    assert lora_file.names(path) == sorted(tensors())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="cut off"):
        lora_file.names(path)
    with pytest.raises(FileNotFoundError, match="gone"):
        lora_file.names(tmp_path / "gone.safetensors")
