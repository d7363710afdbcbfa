# SPDX-License-Identifier: Apache-2.0
"""Any bytes as a LoRA file and as an entry of the cache; what we take, the library reads alike."""

import json
import struct

import torch
from hypothesis import strategies as st
from safetensors.torch import load, save

from graft.loaders import dialects, lora_file
from graft.loaders.finite import refuse_not_finite
from graft.safetensors_header import DTYPES, read_header
from graft.trainers.data.cache import Cache, key_of
from graft.trainers.data.tensor_files import BrokenFile, Entry, TensorFiles
from tests.fuzz.fuzzing import fuzz, tiers

NAMES = st.one_of(
    st.sampled_from(
        ["a", "b", "__metadata__", "x.lora_up.weight", "x.lora_down.weight", "x.alpha"]
    ),
    st.text(max_size=12),
)
ODD = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from([2**31, 2**63, 2**64, -1, 10**400]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(NAMES, inner, max_size=4)),
    max_leaves=8,
)


@st.composite
def files(draw):
    """A good file of some tensors, then one or two things in it are made otherwise."""
    entries, data = [], b""
    for name in draw(st.lists(NAMES, min_size=1, max_size=4)):
        kind = draw(st.sampled_from(list(DTYPES)))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        count = DTYPES[kind]
        for side in shape:
            count *= side
        entry = {"dtype": kind, "shape": shape, "data_offsets": [len(data), len(data) + count]}
        entries.append([name, entry])
        data += draw(st.binary(min_size=count, max_size=count))
    if draw(st.booleans()):
        entries.insert(
            0,
            [
                "__metadata__",
                draw(st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=3)),
            ],
        )
    for _ in range(draw(st.sampled_from([0, 1, 1, 2]))):
        _harm(draw, entries)
    text = _object(draw, entries)
    length = draw(
        st.sampled_from(
            [len(text)] * 8 + [0, len(text) - 1, len(text) + 1, 2**31, 2**63, 2**64 - 1]
        )
    )
    whole = bytearray(struct.pack("<Q", max(length, 0)) + text + data)
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 3]))):
        at = draw(st.integers(0, len(whole) - 1))
        whole[at] = draw(st.integers(0, 255))
    cut = draw(st.sampled_from([0] * 8 + [1, 5]))
    return bytes(whole[: len(whole) - cut]) + draw(st.sampled_from([b""] * 8 + [b"\0"]))


def _harm(draw, entries):
    at = draw(st.integers(0, len(entries) - 1))
    name, entry = entries[at]
    harm = draw(
        st.sampled_from(["member", "offset", "side", "entry", "name", "again", "more", "less"])
    )
    if harm == "entry":
        entries[at][1] = draw(ODD)
    elif harm == "name":
        entries[at][0] = draw(NAMES)
    elif harm == "again":
        entries.append([name, entry])
    elif isinstance(entry, dict) and entry:
        key = draw(st.sampled_from(sorted(entry)))
        changed = dict(entry)
        if harm == "less":
            del changed[key]
        elif harm == "more":
            changed[draw(st.text(max_size=5))] = draw(ODD)
        elif harm in ("offset", "side") and isinstance(changed.get(key), list):
            changed[key] = [
                n + draw(st.integers(-9, 9)) if isinstance(n, int) else n for n in changed[key]
            ]
        else:
            changed[key] = draw(ODD)
        entries[at][1] = changed


def _object(draw, entries):
    members = ",".join(f"{json.dumps(name)}:{json.dumps(entry)}" for name, entry in entries)
    space = draw(st.sampled_from(["", "", " ", "\n", "\t "]))
    text = "{" + space + members + space + "}" + draw(st.sampled_from(["", "   "]))
    return text.encode("utf-8", "surrogatepass")


ANY = st.one_of(files(), files(), files(), st.binary(max_size=200))


@tiers(150, 3000)
def test_any_file_as_a_lora(tmp_path, cases):
    path = tmp_path / "x.safetensors"

    def check(data):
        path.write_bytes(data)
        header = read_header(path)
        theirs = load(data)  # what we take has to be one for the library, too
        assert {n: tuple(t.shape) for n, t in theirs.items()} == {
            n: place.shape for n, place in header.tensors.items()
        }
        read = lora_file.read(path)
        assert read.metadata == header.metadata and lora_file.names(path) == sorted(theirs)
        for name, tensor in theirs.items():
            own = read.tensors[name]
            assert own.dtype == tensor.dtype
            if own.dtype == torch.bool:  # of which a copy has only 0 and 1
                own, tensor = own.int().bool(), tensor.int().bool()
            assert own.reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8))
        refuse_not_finite("'x'", read.tensors, "Take another.")
        dialects.read(read.tensors, read.metadata, {"x": dialects.Place("x", (2, 2))})

    taken, refused = fuzz(cases, ANY, check)
    assert taken and refused


@tiers(60, 1000)
def test_any_file_as_an_entry_of_the_cache(tmp_path, cases):
    key = key_of("x")
    files = TensorFiles(tmp_path)
    files.write(key, Entry({"a": torch.ones(2, 2)}, {"crop": [0, 1]}))
    path = files.path(key)
    good = path.read_bytes()
    facts = st.one_of(ODD, st.dictionaries(st.sampled_from(["crc", "halved", "crop"]), ODD))

    def entry(facts):
        told = {"key": key, "version": "1", "facts": json.dumps(facts)}
        return save({"a": torch.ones(2, 2)}, told)

    @st.composite
    def changed(draw):
        data = bytearray(good)
        for _ in range(draw(st.integers(1, 4))):
            data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
        return bytes(data)

    def check(data):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        said = []
        cache = Cache(tmp_path, said.append)
        cache.facts(key)
        found = cache.get(key)
        assert found is not None or (said and not path.exists())
        path.write_bytes(data)
        try:
            files.read(key)
        except BrokenFile:
            assert found is None
        else:
            assert found is not None

    fuzz(cases, st.one_of(changed(), facts.map(entry), files_of_lora()), check)


def files_of_lora():
    return ANY
