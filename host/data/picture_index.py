# SPDX-License-Identifier: Apache-2.0
"""What is known of picture files from before, so that an unchanged file is neither read nor decoded for it again."""

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path

from ...trainers.data import Item, check_image
from ...trainers.data.file_digests import FileDigests
from ...trainers.data.images import Checked, vanished

_log = logging.getLogger(__name__)


class Digests:
    """Digests of pictures and masks: of files by an index, of pixels once a run.

    Args:
        folder: Where the index is kept; None keeps it in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._files = FileDigests(folder)
        self._pixels: dict[int, tuple[Item, str]] = {}

    def picture(self, item: Item) -> str:
        """As ``item.picture_digest()``."""
        if item.path is not None:
            return self._digest(item.path, item.picture_digest)
        if id(item) not in self._pixels:
            self._pixels[id(item)] = (item, item.picture_digest())
        return self._pixels[id(item)][1]

    def mask(self, item: Item) -> str:
        """As ``item.mask_digest()``."""
        if isinstance(item.mask, str):
            return self._digest(item.mask, item.mask_digest)
        return item.mask_digest()

    def save(self) -> None:
        """Write the index.

        Raises:
            OSError: The disk is full, or the folder cannot be written.
        """
        self._files.save()

    def _digest(self, path: str, read: Callable[[], str]) -> str:
        try:
            return self._files.digest(path, read)
        except FileNotFoundError as error:
            raise vanished(path) from error


class Checks:
    """`check_image`, which decodes a file once and for all.

    Args:
        folder: Where it is kept what was found.
    """

    def __init__(self, folder: Path) -> None:
        self._files = FileDigests(folder)

    def __call__(self, path: Path) -> Checked:
        """As ``check_image(path)``; what cannot be used is decoded every time."""
        found = self._files.digest(
            str(path), lambda: json.dumps(dataclasses.asdict(check_image(path)))
        )
        try:
            return Checked(**json.loads(found))
        except (TypeError, ValueError):  # of another version of this pack
            return check_image(path)

    def save(self) -> None:
        """Keep what was found, where the disk allows it."""
        try:
            self._files.save()
        except OSError as error:
            _log.info("which pictures are good cannot be kept: %s", error)
