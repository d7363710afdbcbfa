# SPDX-License-Identifier: Apache-2.0
"""Headers of safetensors files, read and checked before anything is made of them: a file may be anyone's.

The format: eight bytes with the header's length, a JSON object that says where each tensor lies, the tensors' bytes
without gaps. Only that object is parsed, nothing deeper, and reading stops where it breaks a limit: neither many
members nor deep nesting cost time or memory.
"""

import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .plain import is_plain, plain

MAX_BYTES = 2**25
"""Of a header. A tensor takes 100 to 200 bytes of it, and kohya's counts of tags, a workflow or a state's own text
some MiB; that is 4 MiB for a state of 5,000 trained matrices. The library's own limit is 100 MB, whose parsing can take
gigabytes."""
MAX_TENSORS = 100_000  # LoRAs and states of the largest models have some thousands
MAX_METADATA = 10_000  # entries; the tools that write most have about a hundred
MAX_NAME, MAX_SIDES = 1000, 16
MAX_NUMBERS = 2**48  # in one tensor; an empty one may still have sides beyond all sense
DTYPES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
_METADATA = "__metadata__"
_TOO_MANY = f"it has more tensors than the {MAX_TENSORS} that are read at most"
_SPACE = re.compile(r"[ \t\n\r]*")
_ASCII = re.compile(r'"([ !#-\[\]-~]*)"')  # a text without escapes
_ENTRY = re.compile(r"\{[^{}]{0,2000}\}")
_DECODER = json.JSONDecoder()
_ENTRIES = json.JSONDecoder(object_pairs_hook=list)


@dataclass(frozen=True)
class Place:
    """One tensor: its kind, its shape, and its first byte and the one behind its last, from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a file says of itself: tensors by name, in the header's order, and metadata."""

    tensors: Mapping[str, Place] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_header(path: Path) -> Header:
    """Read and check the header of a file; none of its tensors is read.

    Args:
        path: The file.

    Returns:
        What it holds, all of which is there.

    Raises:
        OSError: The file is not there, or cannot be read.
        ValueError: It is no safetensors file, cut off, or breaks a limit; says how.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = _length(file.read(8), size)
            return parse(file.read(length), size - 8 - length)
    except ValueError as error:
        raise ValueError(
            f"'{plain(path.name)}' ({size} bytes) is no safetensors file, or it is cut off or damaged: {error}. Save "
            "or download it again."
        ) from error


def check_whole(data: bytes) -> Header:
    """The header of a whole file's bytes, checked.

    Raises:
        ValueError: They are no safetensors file, cut off, or break a limit; says how.
    """
    length = _length(data[:8], len(data))
    return parse(data[8 : 8 + length], len(data) - 8 - length)


def parse(data: bytes, rest: int) -> Header:
    """Parse a header.

    Args:
        data: The header without its length.
        rest: How many bytes follow it in the file.

    Returns:
        What it says, and all of it is there.

    Raises:
        ValueError: It is no header, or does not go with what follows it; says how.
    """
    if (
        data.count(b'"data_offsets"') > MAX_TENSORS
    ):  # quotes inside a text have a backslash before them
        raise ValueError(_TOO_MANY)
    try:
        reader = _Reader(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"its header is no UTF-8 text at byte {error.start}") from error
    tensors: dict[str, Place] = {}
    metadata: dict[str, str] | None = None
    for name in reader.members():
        if name == _METADATA:
            if metadata is not None:
                raise ValueError("its header has metadata twice")
            metadata = _metadata(reader)
            continue
        if name in tensors:
            raise ValueError(f"its header has the tensor '{plain(name, 100)}' twice")
        if len(tensors) >= MAX_TENSORS:
            raise ValueError(_TOO_MANY)
        _check_name(name)
        tensors[name] = _place(name, reader.entry(name))
    reader.finish()
    _check_spans(tensors, rest)
    return Header(tensors, metadata or {})


class _Reader:
    """Takes JSON apart, one piece after the other."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0
        if not text.startswith("{"):
            raise ValueError("its header does not begin with {")

    def members(self) -> Iterator[str]:
        """The names in an object; the value is to be taken before the next one is asked for."""
        self._take("{")
        if self._is_at("}"):
            return self._take("}")
        while True:
            name = self.string()
            self._take(":")
            self._skip()
            yield name
            if self._is_at("}"):
                return self._take("}")
            self._take(",")

    def entry(self, name: str) -> list[tuple[str, Any]]:
        """The members of a small object without objects in it; ``name`` is the tensor's."""
        match = _ENTRY.match(self._text, self._at)
        if match is None:
            raise ValueError(f"'{plain(name, 100)}' is no object of its dtype, shape and offsets")
        self._at = match.end()
        try:
            found: list[tuple[str, Any]] = _ENTRIES.decode(match[0])
        except (ValueError, RecursionError) as error:
            raise ValueError(f"'{plain(name, 100)}' is no object in JSON") from error
        return found

    def string(self) -> str:
        """A text."""
        self._skip()
        match = _ASCII.match(self._text, self._at)
        if match:
            self._at = match.end()
            return match[1]
        if not self._is_at('"'):
            raise self._other("a text in quotes")
        try:
            text, self._at = _DECODER.raw_decode(self._text, self._at)
            text.encode("utf-8")
        except (
            ValueError
        ) as error:  # an end that is not there, control characters, half a character
            raise ValueError(f"its header has a damaged text at character {self._at}") from error
        return str(text)

    def finish(self) -> None:
        """Nothing but spaces may follow."""
        self._skip()
        if self._at < len(self._text):
            raise self._other("its end")

    def _skip(self) -> None:
        match = _SPACE.match(self._text, self._at)
        self._at = match.end() if match else self._at

    def _is_at(self, character: str) -> bool:
        self._skip()
        return self._text.startswith(character, self._at)

    def _take(self, character: str) -> None:
        if not self._is_at(character):
            raise self._other(character)
        self._at += 1

    def _other(self, wanted: str) -> ValueError:
        found = plain(self._text[self._at : self._at + 20]) or "nothing"
        return ValueError(f"its header has {found} at character {self._at}, where {wanted} belongs")


def _length(data: bytes, size: int) -> int:
    if len(data) < 8:
        raise ValueError("it has less than 8 bytes")
    (length,) = struct.unpack("<Q", data)
    if length > MAX_BYTES:
        raise ValueError(f"its header is {length} bytes long, and at most {MAX_BYTES} are read")
    if length > size - 8:
        raise ValueError(f"its header is {length} bytes long, of which {size - 8} are there")
    return int(length)


def _metadata(reader: _Reader) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in reader.members():
        if name in found:
            raise ValueError(f"its metadata have '{plain(name, 100)}' twice")
        if len(found) >= MAX_METADATA:
            raise ValueError(f"it has more than {MAX_METADATA} metadata, the most that are read")
        found[name] = reader.string()
    return found


def _check_name(name: str) -> None:
    if not name or len(name) > MAX_NAME or not is_plain(name):
        raise ValueError(
            f"a tensor is called '{plain(name, 100)}': names have 1 to {MAX_NAME} characters, all of them visible"
        )


def _place(name: str, members: list[tuple[str, Any]]) -> Place:
    told = dict(members)
    if len(members) != 3 or told.keys() != {"dtype", "shape", "data_offsets"}:
        found = plain(", ".join(key for key, _ in members), 100) or "nothing"
        raise ValueError(f"'{plain(name, 100)}' has {found}, not dtype, shape and data_offsets")
    dtype, shape, span = str(told["dtype"]), _sizes(told["shape"]), _sizes(told["data_offsets"])
    if shape is None or len(shape) > MAX_SIDES or span is None or len(span) != 2:
        raise ValueError(
            f"'{plain(name, 100)}' has sizes that are none: up to {MAX_SIDES} of a shape and 2 offsets are whole "
            "numbers of 0 to 2^63"
        )
    if dtype not in DTYPES:
        raise ValueError(
            f"'{plain(name, 100)}' is of the kind '{plain(dtype, 40)}'; {', '.join(DTYPES)} are read"
        )
    if math.prod(max(side, 1) for side in shape) > MAX_NUMBERS:
        raise ValueError(f"'{plain(name, 100)}' has the shape {list(shape)}, which no memory holds")
    needed, there = math.prod(shape) * DTYPES[dtype], span[1] - span[0]
    if needed != there:
        raise ValueError(
            f"'{plain(name, 100)}' is {dtype} of shape {list(shape)}, which is {needed} bytes, and has {there}"
        )
    return Place(dtype, shape, span[0], span[1])


def _sizes(value: Any) -> tuple[int, ...] | None:
    if not isinstance(value, list) or not all(type(n) is int and 0 <= n < 2**63 for n in value):
        return None
    return tuple(value)


def _check_spans(tensors: Mapping[str, Place], rest: int) -> None:
    """Each tensor has to begin where the one before it ends, and the last one to end with the file."""
    end = 0
    for name, place in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if place.start != end:
            kind = "overlaps another tensor" if place.start < end else "leaves a gap before it"
            raise ValueError(f"'{plain(name, 100)}' begins at byte {place.start} and {kind}")
        end = place.end
    if end != rest:
        raise ValueError(f"its tensors are {end} bytes long, and {rest} follow its header")
