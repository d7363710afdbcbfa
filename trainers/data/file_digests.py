# SPDX-License-Identifier: Apache-2.0
"""Digests of files, found again by path, size and time of change, so that an unchanged file is not read twice.

One small JSON file a folder of pictures. A file that changed a moment ago is not put into it: another change could
leave size and time as they are (git's racy entries).
"""

import contextlib
import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path

SETTLED_NS = 2 * 10**9  # FAT keeps times to 2 s
_VERSION = 1
_Known = dict[str, tuple[int, int, str]]


class FileDigests:
    """The digests of files that were asked for once.

    Args:
        folder: Where they are kept; None keeps them in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._known: dict[str, _Known] = {}
        self._changed: set[str] = set()
        self._real: dict[str, str] = {}

    def digest(self, path: str, read: Callable[[], str]) -> str:
        """The digest of a file.

        Args:
            path: The file.
            read: Makes the digest, where it is not known for the file as it is now.

        Returns:
            What ``read`` gives, or gave.

        Raises:
            OSError: The file is not there, or cannot be read.
        """
        parent, name = os.path.split(path)
        where = self._real.get(parent) or self._real.setdefault(parent, os.path.realpath(parent))
        known = self._of(where)
        stat = os.stat(path)  # noqa: PTH116 - called per file
        size, changed, digest = known.get(name, (-1, -1, ""))
        if (size, changed) == (stat.st_size, stat.st_mtime_ns):
            return digest
        digest = read()
        if time.time_ns() - stat.st_mtime_ns > SETTLED_NS:
            known[name] = (stat.st_size, stat.st_mtime_ns, digest)
            self._changed.add(where)
        elif known.pop(name, None):
            self._changed.add(where)
        return digest

    def save(self) -> None:
        """Write what is new, without the files that are gone.

        Raises:
            OSError: The disk is full, or the folder cannot be written.
        """
        if self._folder is None:
            return
        for where in sorted(self._changed):
            with os.scandir(where) as entries:
                there = {entry.name for entry in entries}
            kept = {name: row for name, row in self._known[where].items() if name in there}
            self._write(where, json.dumps({"version": _VERSION, "folder": where, "files": kept}))
        self._changed.clear()

    def _write(self, where: str, text: str) -> None:
        path = self._path(where)
        path.parent.mkdir(parents=True, exist_ok=True)
        made = path.with_name(f".graft-{uuid.uuid4().hex}.tmp")
        try:
            made.write_text(text, encoding="utf-8", errors="surrogatepass")
            made.replace(path)
        finally:
            with contextlib.suppress(OSError):
                made.unlink()

    def _path(self, where: str) -> Path:
        name = hashlib.sha256(where.encode("utf-8", "surrogatepass")).hexdigest()[:40]
        return Path(str(self._folder)) / f"{name}.json"

    def _of(self, where: str) -> _Known:
        if where not in self._known:
            self._known[where] = {} if self._folder is None else self._read(where)
        return self._known[where]

    def _read(self, where: str) -> _Known:
        """A damaged file counts as none: all that is lost is time."""
        try:
            text = self._path(where).read_text(encoding="utf-8", errors="surrogatepass")
            said = json.loads(text)
            if said["version"] != _VERSION or said["folder"] != where:
                return {}
            rows = said["files"].items()
            return {str(name): (int(s), int(t), str(digest)) for name, (s, t, digest) in rows}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}
