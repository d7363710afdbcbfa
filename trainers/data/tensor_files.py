# SPDX-License-Identifier: Apache-2.0
"""Tensors in files by key: one safetensors file an entry, under a name that no host takes for a model.

A file is written beside its place and moved into it in one step, and carries its key and a checksum: a reader sees
a whole entry or none, so several processes may share a folder without a lock.
"""

import contextlib
import json
import os
import shutil
import sys
import uuid
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from ...safetensors_header import check_whole, read_header

SUFFIX = ".tensors"
RESERVE_BYTES = 2**31  # left free on the disk: results have to go there, too
ASK_EVERY_BYTES = 2**27
_VERSION = "1"
_OWN = ("crc", "halved")


class BrokenFile(ValueError):
    """A file that does not hold what its name says."""


@dataclass(frozen=True, eq=False)
class Entry:
    """Tensors by name, and what JSON can hold beside them."""

    tensors: Mapping[str, torch.Tensor]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())


class TensorFiles:
    """The files of a folder.

    Args:
        folder: Made when something is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._unasked = ASK_EVERY_BYTES

    def path(self, key: str) -> Path:
        """The file of a key; 256 folders share the files, as some systems are slow with many in one."""
        return self.folder / key[:2] / f"{key}{SUFFIX}"

    def facts(self, key: str) -> dict[str, Any] | None:
        """What an entry says beside its tensors, by the file's header; None where there is no file.

        Args:
            key: Lower-case hexadecimal digits.

        Returns:
            The facts, and under ``shapes`` the shape of each tensor.

        Raises:
            BrokenFile: The header is damaged, of another entry, or the file is not as long as it says.
        """
        path = self.path(key)
        try:
            header = read_header(path)
            facts = _facts(key, header.metadata)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise BrokenFile(f"{path.name}: {error}") from error
        shapes = {name: place.shape for name, place in header.tensors.items()}
        return {n: facts[n] for n in facts if n not in _OWN} | {"shapes": shapes}

    def read(self, key: str) -> Entry | None:
        """Read an entry and test its checksum.

        Args:
            key: Lower-case hexadecimal digits.

        Returns:
            The entry, None where there is no file.

        Raises:
            BrokenFile: The file is damaged or of another entry.
        """
        path = self.path(key)
        try:
            data = path.read_bytes()
            facts = _facts(key, check_whole(data).metadata)
            with torch.inference_mode(False):
                tensors = load(data)
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, ValueError) as error:
            raise BrokenFile(f"{path.name}: {error}") from error
        if facts.pop("crc") != _checksum(tensors):
            raise BrokenFile(f"{path.name}: the checksum is another")
        halved = facts.pop("halved")
        with torch.inference_mode(False):
            whole = {n: t.float() if n in halved else t.clone() for n, t in tensors.items()}
        return Entry(whole, facts)

    def write(self, key: str, entry: Entry) -> None:
        """Write an entry, in place of one that is there.

        Args:
            key: Lower-case hexadecimal digits.
            entry: Plain tensors on the CPU.

        Raises:
            OSError: The disk is full or nearly so, or the folder cannot be written.
        """
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        kept, halved = _smaller(entry.tensors)
        facts = {**entry.facts, "crc": _checksum(kept), "halved": halved}
        metadata = {"key": key, "version": _VERSION, "facts": json.dumps(facts)}
        data = save(kept, metadata)
        self._ask_for_room(len(data))
        with _temporary(path.parent) as made:
            made.write_bytes(data)
            try:
                os.replace(made, path)  # noqa: PTH105 - one call for both kinds of system
            except PermissionError:
                # Windows keeps a file that someone reads: of this name it has these contents.
                if sys.platform != "win32" or not path.is_file():
                    raise

    def remove(self, key: str) -> None:
        """Remove an entry's file, where that can be done."""
        with contextlib.suppress(OSError):
            self.path(key).unlink()

    def _ask_for_room(self, size: int) -> None:
        self._unasked += size
        if self._unasked >= ASK_EVERY_BYTES:
            free = shutil.disk_usage(self.folder).free
            if free < RESERVE_BYTES:
                raise OSError(28, f"{free / 2**30:.1f} GiB are left on the disk")
            self._unasked = 0


@contextlib.contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    made = folder / f".graft-{uuid.uuid4().hex}.tmp"
    try:
        yield made
    finally:
        with contextlib.suppress(OSError):
            made.unlink()


def _facts(key: str, said: Mapping[str, str]) -> dict[str, Any]:
    if said.get("key") != key or said.get("version") != _VERSION:
        raise ValueError("it is of another entry")
    try:
        facts = json.loads(said.get("facts", ""))
    except RecursionError as error:
        raise ValueError("its header is damaged") from error
    is_whole = isinstance(facts, dict) and facts.keys() >= set(_OWN)
    if not is_whole or not isinstance(facts["halved"], list):
        raise ValueError("its header is damaged")
    return facts


def _checksum(tensors: Mapping[str, torch.Tensor]) -> int:
    crc = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        crc = zlib.crc32(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode(), crc)
        if tensor.numel():
            crc = zlib.crc32(tensor.flatten().view(torch.uint8).numpy().data, crc)
    return crc


def _smaller(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The tensors, in half precision where that loses nothing: what an encoder in fp16 has made."""
    kept, halved = {}, []
    for name, tensor in tensors.items():
        whole = tensor.detach().cpu().contiguous()
        if whole.dtype == torch.float32 and torch.equal(whole.half().float(), whole):
            whole = whole.half()
            halved.append(name)
        kept[name] = whole
    return kept, halved
