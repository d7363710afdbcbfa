# SPDX-License-Identifier: Apache-2.0
"""A folder looked at before it is trained on: read picture by picture, and nothing is refused for one bad file.

What it finds is what Load Images For Training finds. Few pictures are decoded, and remembered as decoded for the run;
of many only the headers are read, as decoding 100,000 takes an hour.
"""

import dataclasses
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path

from ...plain import plain
from ...trainers.data import Dataset, Item
from ...trainers.data.file_digests import FileDigests
from ...trainers.data.folder import (
    Listed,
    ReadEntry,
    check_alpha,
    read_entry,
    said_of_missing,
    said_of_problems,
)
from ...trainers.data.images import Checked, check_header, vanished
from ..files import paths
from . import folder_dataset
from .folder_dataset import FolderOptions

MOST_DECODED = 2000
WAIT_S = 0.05


@dataclass(frozen=True)
class Refused:
    """A picture that cannot be used: its name in the folder, and why."""

    name: str
    reason: str


class FolderLook:
    """A folder while it is read.

    Args:
        options: What the node's widgets say.
        sizes: What is known of headers.
    """

    def __init__(self, options: FolderOptions, sizes: FileDigests) -> None:
        self.options = options
        self.items: list[Item] = []
        self.refused: list[Refused] = []
        self.masks: dict[str, str] = {}  # what is wrong with one, by the picture's path
        self.total = self.read = 0
        self.is_done = False
        self._seen = ""
        self.is_decoded = True
        self.root: Path | None = None
        self._sizes = sizes
        self._problems: list[str] = []
        self._notes: list[str] = []
        self._listed: Listed | None = None

    def steps(self) -> Iterator[None]:
        """Read the folder, one picture a step; nothing where that was done.

        Raises:
            ValueError: There is no such folder, or nothing in it can be told apart.
        """
        if self.is_done:
            return
        # Names and texts of 100,000 files take half a minute: no request waits for them.
        pending: Future[Listed] = Future()
        threading.Thread(target=_settle, args=(pending, self.options), daemon=True).start()
        while not pending.done():
            wait([pending], WAIT_S)
            yield
        listed = self._listed = pending.result()
        self.root, self.total = listed.root, len(listed.entries)
        self._problems += listed.problems
        self.is_decoded = self.total <= MOST_DECODED
        known = folder_dataset.checks()
        check: Callable[[Path], Checked] = known if self.is_decoded else Headers(self._sizes)
        if self.is_decoded:
            self._seen = self.options.fingerprint()
        yield
        for entry in listed.entries:
            name = entry.image.as_posix()
            try:
                self._take(name, read_entry(listed, entry, check))
            except ValueError as error:  # captions that no picture may have
                self._refuse(name, str(error))
            except OSError as error:
                self._refuse(name, f"cannot be read ({error.strerror})")
            self.read += 1
            yield
        if self.is_decoded:
            known.save()
        self.is_done = True

    def is_stale(self) -> bool:
        """Whether files changed since; of many pictures only who looks again knows."""
        try:
            return bool(self._seen) and self._seen != self.options.fingerprint()
        except (ValueError, OSError):  # the folder is gone
            return True

    def dataset(self, options: FolderOptions) -> Dataset:
        """The dataset of all pictures that can be used, for options that read alike.

        Raises:
            ValueError: There is none, or a widget's value is not possible.
        """
        notes = (*self._notes, *(self._listed.warnings if self._listed else ()))
        return options.dataset(self.items, tuple(map(plain, notes)))

    def refusal(self, options: FolderOptions) -> str:
        """What the node says of the folder instead of making a dataset; empty as a rule."""
        listed = self._listed
        if listed is None:
            return ""
        if listed.without_caption and not options.allow_no_caption and not listed.problems:
            return said_of_missing(listed)
        if self._problems:
            return said_of_problems(listed.root, self._problems)
        try:
            check_alpha(listed, self.items)
        except ValueError as error:
            return str(error)
        return ""

    def _take(self, name: str, read: ReadEntry) -> None:
        self._notes += read.notes
        if read.item is None:
            self._refuse(name, "; ".join(read.problems).removeprefix(f"{name}: "))
            return
        self.items.append(read.item)
        if read.problems:
            self._problems += read.problems
            self.masks[str(read.item.path)] = plain("; ".join(read.problems))

    def _refuse(self, name: str, reason: str) -> None:
        reason = reason.replace(str(self.root), "the folder")
        self.refused.append(Refused(plain(name), plain(reason)))
        self._problems.append(f"{name}: {reason}")


def _settle(pending: "Future[Listed]", options: FolderOptions) -> None:
    try:
        pending.set_result(options.listed())
    except BaseException as error:  # noqa: BLE001 - told where the result is asked for
        pending.set_exception(error)


class Headers:
    """`check_header`, which reads a file once; what is known by decoding counts more.

    Args:
        sizes: Remembers what was read.
    """

    def __init__(self, sizes: FileDigests) -> None:
        self._read = sizes
        self._decoded = FileDigests(paths.cache_folder() / "checks")

    def __call__(self, path: Path) -> Checked:
        """As ``check_header(path)``."""
        try:
            found = self._decoded.digest(str(path), _unknown)
        except _UnknownError:
            found = self._read.digest(str(path), lambda: _written(check_header(path)))
        except FileNotFoundError as error:
            raise vanished(path) from error
        try:
            return Checked(**json.loads(found))
        except (TypeError, ValueError):  # of another version of this pack
            return check_header(path)


class _UnknownError(Exception):
    """A file was not decoded yet."""


def _unknown() -> str:
    raise _UnknownError


def _written(checked: Checked) -> str:
    return json.dumps(dataclasses.asdict(checked))


__all__ = ["MOST_DECODED", "FolderLook", "Headers", "Refused"]
