# SPDX-License-Identifier: Apache-2.0
"""Headers of safetensors files: what the library writes is taken, and every way to break one is refused by name."""

import contextlib
import json
import struct
import time
import tracemalloc

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from graft import safetensors_header
from graft.safetensors_header import DTYPES, MAX_BYTES, Place, check_whole, parse, read_header


def packed(header, data=b"", length=None):
    """A file with this header, an object or text."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def one(dtype="F32", shape=(2,), span=(0, 8), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(span), **more}


@contextlib.contextmanager
def limited(seconds, most_bytes):
    """What is done in the block takes so long at most, though it is counted, which makes it slower."""
    tracemalloc.start()
    began = time.perf_counter()
    try:
        yield
        took, peak = time.perf_counter() - began, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert took < seconds and peak < most_bytes


def test_what_the_library_writes_is_read(tmp_path):
    tensors = {
        "b": torch.arange(6.0).reshape(2, 3),
        "a \u00e9\u732b": torch.tensor([True, False, True]),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(4.0, dtype=torch.bfloat16),
    }
    path = tmp_path / "x.safetensors"
    path.write_bytes(save(tensors, {"note": 'caf\u00e9 "quoted"\n\U0001f431', "": ""}))
    header = read_header(path)
    assert header.metadata == {"note": 'caf\u00e9 "quoted"\n\U0001f431', "": ""}
    assert {name: place.shape for name, place in header.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    place = header.tensors["b"]
    raw = data[8 + length + place.start : 8 + length + place.end]
    assert place.dtype == "F32" and raw == tensors["b"].numpy().tobytes()
    assert check_whole(data) == header


def test_the_kinds_are_those_of_the_library():
    # https://huggingface.co/docs/safetensors: bytes of an element.
    assert all(DTYPES[f"F{bits}"] == bits // 8 for bits in (16, 32, 64))
    assert all(DTYPES[f"I{bits}"] == bits // 8 for bits in (8, 16, 32, 64))
    for kind, size in DTYPES.items():
        (tensor,) = load(packed({"a": one(kind, (3,), (0, 3 * size))}, bytes(3 * size))).values()
        assert tensor.element_size() == size and tensor.shape == (3,)


def test_spaces_and_any_order_are_json():
    text = b'{ "__metadata__" : { } ,\n"a":{"data_offsets":[ 0 , 4 ],"shape":[],"dtype":"F\\u00332"}\t}   '
    assert parse(text, 4).tensors == {"a": Place("F32", (), 0, 4)}
    assert parse(b"{}", 0).tensors == {}


TWICE = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'

BAD = {
    "nothing": (b"", "less than 8 bytes"),
    "seven bytes": (b"\0" * 7, "less than 8 bytes"),
    "no header": (packed(b""), "does not begin with"),
    "longer than the file": (packed({}, length=100), "100 bytes long, of which 2 are there"),
    "longer than allowed": (packed({}, length=MAX_BYTES + 1), "at most"),
    "2^64 - 1": (b"\xff" * 40, "at most"),
    "no UTF-8": (packed(b'{"\xff":1}'), "no UTF-8 text at byte 2"),
    "half a character": (packed(b'{"\\ud800":1}'), "damaged text"),
    "half a character in metadata": (packed({"__metadata__": {"a": "\ud800"}}), "damaged text"),
    "a list": (packed([]), "does not begin with"),
    "a space first": (packed(b" {}"), "does not begin with"),
    "no end": (packed(b"{"), "nothing at character 1"),
    "no end of a text": (packed(b'{"a'), "damaged text"),
    "a newline in a text": (packed(b'{"a\n":1}'), "damaged text"),
    "more behind": (packed(b"{}{}"), "where its end belongs"),
    "a comma too many": (packed(b'{"__metadata__":{},}'), "where a text in quotes belongs"),
    "deep": (packed(b'{"a":' + b"[" * 100_000), "'a' is no object of its dtype"),
    "deep objects": (packed(b'{"a":{"dtype":' + b'{"a":' * 100_000), "no object of its"),
    "deep in a shape": (packed(b'{"a":{"shape":' + b"[" * 100_000), "no object of its"),
    "deep and short": (packed(b'{"a":{"shape":' + b"[" * 1900 + b"]" * 90 + b"}}"), "in JSON"),
    "deep and closed": (
        packed(b'{"a":{"shape":' + b"[" * 990 + b"]" * 990 + b"}}"),
        "in JSON|has shape, not",
    ),
    "the same name twice": (packed(TWICE, b"\0"), "tensor 'a' twice"),
    "metadata twice": (packed(b'{"__metadata__":{},"__metadata__":{}}'), "metadata twice"),
    "a key of metadata twice": (packed(b'{"__metadata__":{"a":"","a":""}}'), "have 'a' twice"),
    "a number as metadata": (packed({"__metadata__": {"a": 1}}), "where a text in quotes"),
    "metadata no object": (packed({"__metadata__": ["a"]}), "where { belongs"),
    "an empty name": (packed({"": one()}, bytes(8)), "1 to 1000 characters"),
    "a long name": (packed({"a" * 1001: one()}, bytes(8)), "1 to 1000 characters"),
    "a newline in a name": (packed({"a\n[ERROR]": one()}, bytes(8)), r"called 'a\\n\[ERROR\]'"),
    "an escape sequence in a name": (packed({"a\x1b[2J": one()}, bytes(8)), r"'a\\x1b\[2J'"),
    "no dtype": (
        packed({"a": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
        "has shape, data_off",
    ),
    "one offset": (packed({"a": one(span=(0,))}, bytes(8)), "2 offsets"),
    "three offsets": (packed({"a": one(span=(0, 8, 9))}, bytes(8)), "2 offsets"),
    "something else": (packed({"a": one(code="x")}, bytes(8)), "data_offsets, code, not dtype"),
    "the same part twice": (
        packed(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"shape":[1]}}', b"0"),
        "shape, not dtype",
    ),
    "an unknown kind": (packed({"a": one("F31")}, bytes(8)), "of the kind 'F31'; F64"),
    "a kind that is no text": (packed({"a": one(1)}, bytes(8)), "of the kind '1'"),
    "a negative side": (packed({"a": one(shape=(-2,))}, bytes(8)), "whole numbers"),
    "half a side": (packed({"a": one(shape=(2.0,))}, bytes(8)), "whole numbers"),
    "a side of 007": (packed(b'{"a":{"shape":[007]}}'), "no object in JSON"),
    "a side of NaN": (packed({"a": one(shape=(float("nan"),))}, bytes(8)), "whole numbers"),
    "a side of 10^400": (packed({"a": one(shape=(10**400,))}, bytes(8)), "whole numbers"),
    "a side that is a list": (packed({"a": one(shape=([2],))}, bytes(8)), "whole numbers"),
    "a shape that is a number": (packed({"a": {**one(), "shape": 2}}, bytes(8)), "whole numbers"),
    "true as a side": (packed({"a": one(shape=(True,))}, bytes(8)), "whole numbers"),
    "many sides": (packed({"a": one(shape=(1,) * 17)}, bytes(8)), "up to 16 of a shape"),
    "sides that overflow": (
        packed({"a": one("U8", (2**32, 2**32), (0, 0))}),
        "which no memory holds",
    ),
    "empty beyond all sense": (packed({"a": one("U8", (2**62, 0), (0, 0))}), "no memory holds"),
    "shape and bytes": (packed({"a": one(shape=(3,))}, bytes(8)), "is 12 bytes, and has 8"),
    "backwards": (packed({"a": one(span=(8, 0))}, bytes(8)), "is 8 bytes, and has -8"),
    "overlap": (
        packed({"a": one(), "b": one(span=(4, 12))}, bytes(12)),
        "'b' begins at byte 4 and overlaps",
    ),
    "the same bytes": (packed({"a": one(), "b": one()}, bytes(8)), "overlaps another tensor"),
    "a gap": (packed({"a": one(), "b": one(span=(16, 24))}, bytes(24)), "leaves a gap"),
    "a gap at the start": (packed({"a": one(span=(8, 16))}, bytes(16)), "leaves a gap"),
    "beyond the end": (packed({"a": one()}, bytes(4)), "8 bytes long, and 4 follow"),
    "more at the end": (packed({"a": one()}, bytes(9)), "8 bytes long, and 9 follow"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_breaks_a_rule_is_named(tmp_path, name):
    data, message = BAD[name]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        read_header(path)
    said = str(caught.value)
    assert said.startswith("'bad.safetensors'") and "download it again" in said
    assert said.isprintable() and len(said) < 1000


@pytest.mark.parametrize("name", ["the same name twice", "a key of metadata twice"])
def test_the_library_takes_what_is_there_twice(name):
    """So a check of our own is needed: two readers could see two files."""
    try:
        load(BAD[name][0])
    except SafetensorError:
        pytest.skip("this version of the library refuses it")


def tensors_of_nothing(count, key="data_offsets"):
    entry = '"{}":{{"dtype":"U8","shape":[0],"KEY":[0,0]}}'.replace("KEY", key)
    return f"{{{','.join(map(entry.format, range(count)))}}}".encode()


def test_a_million_tensors_are_refused_quickly_and_in_little_memory(tmp_path, monkeypatch):
    path = tmp_path / "many.safetensors"
    path.write_bytes(packed(tensors_of_nothing(10**6)))
    for most in (MAX_BYTES, 2**27):  # by its length, and where that would be allowed
        monkeypatch.setattr(safetensors_header, "MAX_BYTES", most)
        with limited(seconds=5, most_bytes=300e6):
            with pytest.raises(ValueError, match="at most"):
                read_header(path)


@pytest.mark.parametrize("key", ["data_offsets", "\\u0064ata_offsets"])
def test_tensors_are_counted_however_they_are_written(monkeypatch, key):
    assert len(parse(tensors_of_nothing(1000, key), 0).tensors) == 1000
    monkeypatch.setattr(safetensors_header, "MAX_TENSORS", 999)
    with pytest.raises(ValueError, match="it has more tensors"):
        parse(tensors_of_nothing(1000, key), 0)


def test_a_header_of_the_largest_length_is_refused_in_bounded_memory():
    """What costs a parser of any JSON most: millions of small members."""
    for text in (b'{"__metadata__":{', b'{"a":{"shape":['):
        is_object = text.endswith(b"{")
        many = b"".join(b'"%07d":"",' % n for n in range(10**6)) if is_object else b"1," * 10**7
        with limited(seconds=5, most_bytes=200e6):
            with pytest.raises(ValueError, match="more than|is no object"):
                parse(text + many, 0)


def test_metadata_of_some_mebibytes_is_read():
    """kohya's counts of tags, of 200,000 tags."""
    tags = json.dumps({"10_cat": {f"tag number {n}": n for n in range(200_000)}})
    data = save({"a": torch.zeros(1)}, {"ss_tag_frequency": tags})
    assert len(data) > 5e6
    assert check_whole(data).metadata["ss_tag_frequency"] == tags
