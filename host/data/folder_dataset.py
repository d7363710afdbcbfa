# SPDX-License-Identifier: Apache-2.0
"""The dataset of a folder, as Load Images For Training makes it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...trainers.data import Dataset, Item, class_names, folder_fingerprint, read_folder
from ...trainers.data.folder import NO_MASKS, Listed, list_folder
from ...trainers.data.layouts import CLASSES, PLAIN
from .. import graph
from ..files import paths
from .picture_index import Checks

MIN_RESOLUTION, MAX_RESOLUTION = 8, 8192


@dataclass(frozen=True)
class FolderOptions:
    """What the node's widgets say, each by its id.

    Attributes:
        folder: Name of a folder that a node may read.
        caption: Of pictures that have none.
        trigger: What captions call the concept by.
        recursive: Whether folders inside are read.
        resolution: Side of the square whose area no trained picture exceeds.
        crops: Crops of each picture.
        layout: What folders inside mean.
        masks: Where masks come from.
        caption_lines: Whether each line of a caption file is one.
        allow_no_caption: Whether pictures without a caption are taken.
    """

    folder: str
    caption: str = ""
    trigger: str = ""
    recursive: bool = False
    resolution: int = 1024
    crops: int = 1
    layout: str = PLAIN
    masks: str = NO_MASKS
    caption_lines: bool = False
    allow_no_caption: bool = False

    @property
    def path(self) -> Path:
        """The folder.

        Raises:
            ValueError: There is none of that name, or it is outside of those that may be read.
        """
        return graph.picture_folder(self.folder)

    @property
    def reading(self) -> "FolderOptions":
        """Only what decides on how files are read."""
        return replace(self, trigger="", resolution=MAX_RESOLUTION, crops=1, allow_no_caption=True)

    def listed(self) -> Listed:
        """Names and texts of the folder; as ``list_folder``."""
        given = (self.path, self.caption, self.recursive, self.layout, self.caption_lines)
        return list_folder(*given, self.masks)

    def fingerprint(self) -> str:
        """Changes with the files that are read; as ``folder_fingerprint``."""
        return folder_fingerprint(self.path, self.recursive or self.layout != PLAIN)

    def dataset(self, items: Sequence[Item], warnings: Sequence[str]) -> Dataset:
        """The dataset of pictures that were read.

        Raises:
            ValueError: There is no picture, or a widget's value is not possible.
        """
        labels = class_names(self.path) if self.layout == CLASSES else ()
        given = (tuple(items), self.trigger.strip(), self.resolution, self.folder, tuple(warnings))
        return Dataset(*given, self.crops, labels=labels)


def checks() -> Checks:
    """`check_image` with a memory, which all that read folders share."""
    return Checks(paths.cache_folder() / "checks")


def load(options: FolderOptions) -> Dataset:
    """Read a folder.

    Raises:
        ValueError: What is wrong with it, all of it.
    """
    check = checks()
    given = (options.path, options.caption, options.recursive, options.layout)
    more = (options.caption_lines, options.masks, check)
    items, warnings = read_folder(*given, *more, needs_captions=not options.allow_no_caption)
    check.save()
    return options.dataset(items, warnings)
