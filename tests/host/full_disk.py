# SPDX-License-Identifier: Apache-2.0
"""A disk that is full at one file, at a chosen byte, at the fsync or at the rename; and what must never be on a disk.

Files are told apart by the order in which they are opened for writing, which is that of an equal run before.
"""

import builtins
import contextlib
import errno
import io
import json
import os
import pathlib
import re
from pathlib import Path
from typing import Any

FAULTS = ("write", "half", "fsync", "rename")


class Disk:
    """What is written below a folder while ``patch`` lasts.

    Args:
        folder: The folder.
        fails: Number of the file that fails, from 0; None only watches.
        fault: How: ``write`` takes not one byte of it, ``half`` half of it.
        stays: Everything after it fails, too.

    Attributes:
        sizes: Bytes written to each file.
        names: The name that each file got in the end, relative to the folder.
    """

    def __init__(
        self,
        folder: Path,
        fails: int | None = None,
        fault: str = "half",
        size: int = 0,
        stays: bool = False,
    ) -> None:
        self.folder = folder.resolve()
        self.fails, self.fault, self.stays = fails, fault, stays
        self.room = size // 2 if fault == "half" else 0
        self.sizes: list[int] = []
        self.names: list[str] = []
        self.hit = False
        self._by_path: dict[str, int] = {}

    @contextlib.contextmanager
    def patch(self, monkeypatch: Any) -> Any:
        """Watch, or fail, inside the block."""
        real_open, real_fsync, real_replace = io.open, os.fsync, os.replace

        def opened(file, mode="r", *args, **kwargs):
            if not set(mode) & set("wax") or not self._is_here(file):
                return real_open(file, mode, *args, **kwargs)
            return self._open(file, mode, *args, **kwargs)

        def fsync(descriptor):
            number = len(self.sizes) - 1
            if self.fault == "fsync" and self._is_failing(number):
                self._full()
            return real_fsync(descriptor)

        def replace(source, target, **kwargs):
            number = self._by_path.get(str(source), -1)
            if self.fault == "rename" and self._is_failing(number):
                self._full()
            made = real_replace(source, target, **kwargs)
            if number >= 0:
                self.names[number] = self._relative(target)
            return made

        with monkeypatch.context() as patched:
            patched.setattr(builtins, "open", opened)
            patched.setattr(io, "open", opened)
            patched.setattr(
                pathlib.Path,
                "open",
                lambda path, mode="r", *rest, **more: opened(path, mode, *rest, **more),
            )
            patched.setattr(io, "FileIO", self._file_io())
            patched.setattr(os, "fsync", fsync)
            patched.setattr(os, "replace", replace)
            yield self

    def number_of(self, ending: str) -> int:
        """The first file whose name matches."""
        (*_, number) = [
            n for n in reversed(range(len(self.names))) if re.search(ending, self.names[n])
        ]
        return number

    def _is_here(self, file: Any) -> bool:
        return not isinstance(file, int) and str(file).startswith(str(self.folder))

    def _relative(self, file: Any) -> str:
        return Path(file).relative_to(self.folder).as_posix()

    def _is_failing(self, number: int) -> bool:
        if self.fails is None or number < 0:
            return False
        return number == self.fails or (self.stays and number > self.fails)

    def _full(self) -> None:
        self.hit = True
        raise OSError(errno.ENOSPC, "No space left on device")

    def _new(self, file: Any) -> int:
        self.sizes.append(0)
        self.names.append(self._relative(file))
        self._by_path[str(file)] = len(self.sizes) - 1
        return len(self.sizes) - 1

    def _take(self, number: int, data: Any) -> int:
        """How many bytes of ``data`` fit."""
        count = len(memoryview(data).cast("B"))
        if self._is_failing(number) and self.fault in ("write", "half"):
            room = self.room - self.sizes[number] if number == self.fails else 0
            if room <= 0 and count:
                self._full()
            count = min(count, room)
        self.sizes[number] += count
        return count

    def _file_io(self) -> type:
        disk, plain = self, io.FileIO

        class Counted(plain):
            def __init__(self, file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> None:
                super().__init__(file, mode, *args, **kwargs)
                writes = set(mode) & set("wax") and disk._is_here(file)
                self.number = disk._new(file) if writes else -1

            def write(self, data: Any) -> int:
                if self.number < 0:
                    return super().write(data)
                count = disk._take(self.number, data)
                return super().write(memoryview(data).cast("B")[:count])

        self.counted = Counted
        return Counted

    def _open(self, file: Any, mode: str, buffering: int = -1, *args: Any, **kwargs: Any) -> Any:
        raw = self.counted(file, mode.replace("b", "").replace("t", ""))
        buffer = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffer if "b" in mode else io.TextIOWrapper(buffer, *args, **kwargs)


def damaged(folder: Path) -> list[str]:
    """The files below a folder that are cut off, by whoever reads such files, and what is left half-written."""
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            _check(path)
        except Exception as error:  # noqa: BLE001 - each reader has its own
            found.append(f"{path.relative_to(folder)}: {type(error).__name__} {error}")
    return found


def _check(path: Path) -> None:
    from PIL import Image
    from safetensors.torch import load_file

    if path.name.endswith(".tmp"):
        raise ValueError("a temporary file is left")
    if path.suffix in (".safetensors", ".tensors"):
        load_file(str(path))
    if path.name.endswith(".state.safetensors"):
        from graft.host.files import states

        states.load(path)
    if path.suffix == ".png":
        Image.open(path).load()
    if path.suffix == ".json":
        json.loads(path.read_text("utf-8"))
    if path.suffix == ".jsonl":
        text = path.read_text("utf-8")
        rows = [json.loads(line) for line in text.splitlines()]
        if text and (not text.endswith("\n") or not all(isinstance(row, dict) for row in rows)):
            raise ValueError("its last row is cut off")
