# SPDX-License-Identifier: Apache-2.0
"""What is encoded once and used at every step: in memory up to a number of bytes, the rest in files.

The key of an entry is a hash of all that it depends on, so an entry is never out of date, only unused.
"""

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, Generic, TypeVar

from .tensor_files import BrokenFile, Entry, TensorFiles

V = TypeVar("V")
MEMORY_BYTES = 2**30
ENTRY_BYTES = 2**11  # of Python's objects around the tensors of an entry
_log = logging.getLogger(__name__)


def key_of(*parts: str) -> str:
    """The key of what depends on ``parts``: 40 hexadecimal digits."""
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        # The length keeps ("ab", "c") and ("a", "bc") apart.
        sha.update(len(data).to_bytes(8, "little"))
        sha.update(data)
    return sha.hexdigest()[:40]


class Recent(Generic[V]):
    """Values used last, up to a number of bytes; the newest is kept whatever its size.

    Args:
        most_bytes: The limit.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._kept: OrderedDict[Hashable, tuple[V, int]] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        """Return the number of values."""
        return len(self._kept)

    def __contains__(self, key: Hashable) -> bool:
        """Whether the value of a key is kept; does not count as a use."""
        return key in self._kept

    def get(self, key: Hashable) -> V | None:
        """The value of a key, which becomes the newest; None where it is not kept."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def put(self, key: Hashable, value: V, size: int) -> None:
        """Keep a value of ``size`` bytes, and drop the oldest beyond the limit."""
        self.pop(key)
        self._kept[key] = (value, size)
        self.bytes += size
        while self.bytes > self._most and len(self._kept) > 1:
            self.bytes -= self._kept.popitem(last=False)[1][1]

    def pop(self, key: Hashable) -> None:
        """Drop a value, where it is kept."""
        if key in self._kept:
            self.bytes -= self._kept.pop(key)[1]


class Cache:
    """Entries by key.

    What cannot be written, because the disk is full or read-only, stays in memory beyond its limit: it would have to
    be made again otherwise. A file that is broken counts as none.

    Args:
        folder: Where the files go; None keeps everything in memory.
        warn: Told once about a disk that cannot be written, and of every broken file.
        most_bytes: Limit of what is kept in memory although it is in a file.
    """

    def __init__(
        self,
        folder: Path | None,
        warn: Callable[[str], None] = _log.warning,
        most_bytes: int = MEMORY_BYTES,
    ) -> None:
        self._files = None if folder is None else TensorFiles(folder)
        self._warn = warn
        self._can_write = folder is not None
        self._recent: Recent[Entry] = Recent(most_bytes)
        self._only: dict[str, Entry] = {}

    def facts(self, key: str) -> dict[str, Any] | None:
        """What an entry says beside its tensors; of a file only the header is read.

        Args:
            key: Of the entry.

        Returns:
            The facts, and under ``shapes`` the shape of each tensor; None where there is no entry.
        """
        kept = self._kept(key)
        if kept is not None:
            shapes = {name: tuple(tensor.shape) for name, tensor in kept.tensors.items()}
            return {**kept.facts, "shapes": shapes}
        return self._whole(key, lambda files: files.facts(key))

    def get(self, key: str) -> Entry | None:
        """Get an entry, from memory if it is there.

        Args:
            key: Of the entry.

        Returns:
            The entry, None where there is none.
        """
        kept = self._kept(key)
        if kept is None:
            kept = self._whole(key, lambda files: files.read(key))
            if kept is not None:
                self._recent.put(key, kept, kept.bytes + ENTRY_BYTES)
        return kept

    def put(self, key: str, entry: Entry) -> None:
        """Keep an entry.

        Args:
            key: Of the entry.
            entry: Tensors on the CPU that nothing changes any more.
        """
        if self._files is not None and self._can_write:
            try:
                self._files.write(key, entry)
                # Small tensors that outlive an encoder's large ones keep the heap from ever shrinking.
                self._recent.pop(key)
                return
            except OSError as error:
                self._can_write = False
                self._warn(
                    f"What is encoded cannot be kept in {self._files.folder} ({error.strerror or error}): it stays in "
                    "memory, and the next run encodes again. Free some space, or allow ComfyUI to write there."
                )
        self._only[key] = entry

    def spoil(self, key: str, reason: str) -> None:
        """Count an entry as broken: it is told, and gone.

        Args:
            key: Of the entry.
            reason: What is wrong with it.
        """
        self._recent.pop(key)
        self._only.pop(key, None)
        self._warn(f"A file of the cache is broken and is made again: {reason}")
        if self._files is not None:
            self._files.remove(key)

    def _kept(self, key: str) -> Entry | None:
        return self._only.get(key) or self._recent.get(key)

    def _whole(self, key: str, read: Callable[[TensorFiles], Any]) -> Any:
        if self._files is None:
            return None
        try:
            return read(self._files)
        except BrokenFile as error:
            self.spoil(key, str(error))
            return None
