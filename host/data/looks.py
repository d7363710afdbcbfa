# SPDX-License-Identifier: Apache-2.0
"""The looks that browsers asked for last, by names that nobody can guess, and their thumbnails."""

import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from ...trainers.data import ImageError
from ...trainers.data.file_digests import FileDigests
from .folder_dataset import FolderOptions
from .folder_look import FolderLook
from .look import Gone, Look
from .plan import Plan
from .shown import SHOWN, Shown

MOST_LOOKS, MOST_ROWS = 32, 300_000
THUMBNAIL_BYTES = 2**24  # 4000 thumbnails or so
STEP_S = 0.4


class Looks:
    """Looks by name; the ones not asked for longest are forgotten.

    Args:
        shown: Datasets that nodes made.
    """

    def __init__(self, shown: Shown = SHOWN) -> None:
        self._lock = threading.Lock()
        self._looks: OrderedDict[str, Look] = OrderedDict()
        self._plans: dict[Plan, str] = {}
        self._shown = shown
        self._folders: dict[FolderOptions, FolderLook] = {}
        self._sizes = FileDigests()
        self._thumbnails: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._bytes = 0

    def open(self, plan: Plan, is_fresh: bool = False) -> str:
        """A look at what a plan names.

        Args:
            plan: The nodes.
            is_fresh: Whether files are looked at again; what is known of them counts where they did not change.

        Returns:
            Its name; another one where files changed.
        """
        with self._lock:
            known = self._plans.get(plan, "")
            look = self._looks.get(known)
            read = [self._folders.get(options.reading) for options in plan.folders()]
        if look is not None and not is_fresh and not look.is_stale():
            return known
        usable = [
            leaf for leaf in read if leaf and leaf.is_done and not (is_fresh or leaf.is_stale())
        ]
        with self._lock:
            self._forget(known)
            name = secrets.token_hex(16)
            self._plans[plan] = name
            self._keep(name, Look(plan, folder=lambda options: self._folder(options, usable)))
            return name

    def get(self, name: str) -> Look:
        """A look by its name, or that at a dataset which a node shows under this name.

        Raises:
            Gone: There is none any more.
        """
        with self._lock:
            if name not in self._looks:
                dataset = self._shown.get(name)
                if dataset is None:
                    raise Gone
                self._keep(name, Look(dataset=dataset))
            self._looks.move_to_end(name)
            return self._looks[name]

    def advance(self, name: str) -> dict[str, Any]:
        """Work on a look for a moment, and say how far it is.

        Raises:
            Gone: There is none any more.
        """
        told = self.get(name).advance(STEP_S)
        with self._lock:
            self._limit(name)
        return {"id": name} | told

    def thumbnail(self, name: str, index: int) -> bytes:
        """A small JPEG; see ``Look.thumbnail``.

        Raises:
            Gone: There is no such look any more, or no such picture, or it cannot be read.
        """
        key = (name, index)
        with self._lock:
            if key in self._thumbnails and name in self._looks:
                self._thumbnails.move_to_end(key)
                return self._thumbnails[key]
        try:
            made = self.get(name).thumbnail(index)
        except (ImageError, ValueError, IndexError, OSError, MemoryError) as error:
            raise Gone(str(error)) from error
        with self._lock:
            if key not in self._thumbnails:
                self._thumbnails[key] = made
                self._bytes += len(made)
            while self._bytes > THUMBNAIL_BYTES:
                self._bytes -= len(self._thumbnails.popitem(last=False)[1])
        return made

    def _keep(self, name: str, look: Look) -> None:
        self._looks[name] = look
        self._limit(name)

    def _folder(self, options: FolderOptions, usable: Sequence[FolderLook]) -> FolderLook:
        """The folder as it was read last; other triggers and resolutions need not read it again."""
        found = next((leaf for leaf in usable if leaf.options == options.reading), None)
        if found is None:
            found = FolderLook(options.reading, self._sizes)
            self._folders[found.options] = found
            while len(self._folders) > MOST_LOOKS:
                del self._folders[next(iter(self._folders))]
        return found

    def _limit(self, kept: str) -> None:
        """Forget the oldest looks while there are too many, or too many pictures in them."""
        while len(self._looks) > 1:
            rows = sum(look.rows for look in self._looks.values())
            if len(self._looks) <= MOST_LOOKS and rows <= MOST_ROWS:
                return
            if rows > MOST_ROWS:
                self._folders, self._sizes = {}, FileDigests()  # which have no limit of their own
            self._forget(next(name for name in self._looks if name != kept))

    def _forget(self, name: str) -> None:
        self._looks.pop(name, None)
        self._plans = {plan: known for plan, known in self._plans.items() if known != name}
        for key in [key for key in self._thumbnails if key[0] == name]:
            self._bytes -= len(self._thumbnails.pop(key))


LOOKS = Looks()
