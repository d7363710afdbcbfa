# SPDX-License-Identifier: Apache-2.0
"""The cache: what is put comes back, memory is bounded, and a file that is not whole counts as none."""

import json
import os

import pytest
import torch

from graft.trainers.data.cache import ENTRY_BYTES, Cache, Recent, key_of
from graft.trainers.data.tensor_files import SUFFIX, BrokenFile, Entry, TensorFiles


def entry(seed=0, shape=(4, 8, 8)):
    generator = torch.Generator().manual_seed(seed)
    return Entry({"mean": torch.randn(shape, generator=generator)}, {"crop": [0, seed]})


def same(one, other):
    assert one.facts == other.facts and one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        assert (
            torch.equal(tensor, other.tensors[name]) and tensor.dtype == other.tensors[name].dtype
        )
    return True


KEY = key_of("a")


def test_a_key_is_of_its_parts_and_not_of_their_sum():
    # printf '\x01\0\0\0\0\0\0\0a' | sha256sum | cut -c 1-40
    assert key_of("a") == "ae6121c88ba555f64c3d812123eb799d12801554"
    assert key_of("ab", "c") != key_of("a", "bc") != key_of("abc")


def test_an_entry_comes_back_bit_for_bit(tmp_path):
    files = TensorFiles(tmp_path)
    whole = entry()
    half = Entry({"mean": whole.tensors["mean"].half().float(), "ids": torch.arange(3)})
    files.write(KEY, whole)
    files.write(key_of("b"), half)
    assert same(files.read(KEY), whole) and same(files.read(key_of("b")), half)
    assert files.facts(KEY) == {"crop": [0, 0], "shapes": {"mean": (4, 8, 8)}}
    assert files.read(key_of("c")) is None and files.facts(key_of("c")) is None
    sizes = [files.path(key).stat().st_size for key in (KEY, key_of("b"))]
    assert sizes[0] - sizes[1] > 4 * 8 * 8 * 2 - 200  # fp16 in the file, where that loses nothing
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.rglob("*.safetensors"))
    with torch.inference_mode():
        assert not files.read(KEY).tensors["mean"].is_inference()


@pytest.mark.parametrize("harm", ["truncated", "empty", "bit", "other", "text", "header"])
def test_a_broken_file_is_told_and_counts_as_none(tmp_path, harm):
    said = []
    cache = Cache(tmp_path, said.append)
    cache.put(KEY, entry())
    path = next(tmp_path.rglob(f"*{SUFFIX}"))
    data = bytearray(path.read_bytes())
    if harm == "truncated":
        data = data[:-10]
    elif harm == "empty":
        data = b""
    elif harm == "bit":
        data[-5] ^= 1
    elif harm == "text":
        data = b"not a tensor in it"
    elif harm == "header":
        data[20] ^= 255
    elif harm == "other":
        TensorFiles(tmp_path).write(key_of("z"), entry(1))
        data = TensorFiles(tmp_path).path(key_of("z")).read_bytes()
    path.write_bytes(data)
    cache = Cache(tmp_path, said.append)
    if harm != "bit":  # the header is whole
        with pytest.raises(BrokenFile):
            TensorFiles(tmp_path).facts(KEY)
    assert cache.get(KEY) is None
    assert len(said) == 1 and KEY in said[0] and "made again" in said[0]
    cache.put(KEY, entry())
    assert same(Cache(tmp_path).get(KEY), entry())


def test_a_disk_that_cannot_be_written_is_told_once_and_nothing_is_lost(tmp_path):
    said = []
    (tmp_path / "file").write_text("in the way")
    cache = Cache(tmp_path / "file", said.append, most_bytes=100)
    for seed in range(5):
        cache.put(key_of(str(seed)), entry(seed))
    assert len(said) == 1 and "stays in memory" in said[0]
    assert all(same(cache.get(key_of(str(seed))), entry(seed)) for seed in range(5))


def test_a_nearly_full_disk_keeps_room_for_results(tmp_path, monkeypatch):
    import shutil

    from graft.trainers.data import tensor_files

    usage = shutil.disk_usage(tmp_path)._replace(free=10**6)
    monkeypatch.setattr(tensor_files.shutil, "disk_usage", lambda path: usage)
    said = []
    cache = Cache(tmp_path, said.append)
    cache.put(KEY, entry())
    assert "are left on the disk" in said[0] and same(cache.get(KEY), entry())
    assert not list(tmp_path.rglob("*.t*"))


def test_memory_holds_what_was_used_last(tmp_path):
    cache = Cache(tmp_path, most_bytes=3 * (1024 + ENTRY_BYTES))
    for seed in range(10):
        cache.put(key_of(str(seed)), entry(seed))
    assert len(cache._recent) == 0  # what is written is read when it is used
    assert all(same(cache.get(key_of(str(seed))), entry(seed)) for seed in range(10))
    assert len(cache._recent) == 3 and not cache._only
    assert cache.get(key_of("9")) is cache.get(key_of("9"))


def test_the_oldest_goes_first_and_the_newest_always_fits():
    recent = Recent(10)
    for name in "abc":
        recent.put(name, name, 4)
    assert recent.get("a") is None and "b" in recent and recent.bytes == 8
    recent.get("b")
    recent.put("d", "d", 4)
    assert "c" not in recent and "b" in recent
    recent.put("d", "D", 1)
    assert recent.bytes == 5 and recent.get("d") == "D"
    recent.put("huge", "h", 99)
    assert len(recent) == 1 and recent.get("huge") == "h"


def test_file_digests_are_found_again_until_the_file_changes(tmp_path):
    from graft.trainers.data.file_digests import FileDigests

    picture, folder = tmp_path / "pictures" / "a.png", tmp_path / "index"
    picture.parent.mkdir()
    reads = []

    def digest(index):
        def read():
            reads.append(1)
            return picture.read_text()

        return index.digest(str(picture), read)

    def write(text, seconds_ago):
        picture.write_text(text)
        then = picture.stat().st_mtime_ns - seconds_ago * 10**9
        os.utime(picture, ns=(then, then))

    write("one", 60)
    index = FileDigests(folder)
    assert [digest(index), digest(index)] == ["one", "one"] and len(reads) == 1
    index.save()
    assert digest(FileDigests(folder)) == "one" and len(reads) == 1
    write("two", 30)  # the same length
    index = FileDigests(folder)
    assert digest(index) == "two" and len(reads) == 2
    write("six", 0)  # a moment ago: another change could leave no trace
    assert digest(index) == digest(index) == "six" and len(reads) == 4
    index.save()
    (saved,) = folder.iterdir()
    assert json.loads(saved.read_text())["files"] == {}
    saved.write_text("[broken")
    assert digest(FileDigests(folder)) == "six"
    with pytest.raises(FileNotFoundError):
        FileDigests(folder).digest(str(tmp_path / "none.png"), lambda: "")
