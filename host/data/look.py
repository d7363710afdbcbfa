# SPDX-License-Identifier: Apache-2.0
"""A look at a dataset: what it holds and what is odd about each picture, worked out bit by bit.

A browser asks for a look until it is done, and then for pages of pictures. No picture is read between two requests,
so that a browser that goes away leaves no work behind.
"""

import contextlib
import os
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ...plain import plain
from ...trainers.data import Dataset, Item, notes
from ...trainers.data import findings as find
from ...trainers.data.names import picture_names
from ...trainers.data.thumbnails import thumbnail
from ..files import paths
from .folder_dataset import FolderOptions
from .folder_look import MOST_DECODED, FolderLook
from .picture_index import Digests
from .plan import Plan
from .summary import Finding, Summary, ordered, row_of, summary_of, texts_of

REFUSED, BAD_MASK, BAD_CAPTION = "cannot be used", "mask cannot be used", "caption cannot be used"
MOST_ROWS, SIDE_PX = 200, 128


class Gone(Exception):
    """The dataset of a look is not kept any more."""


class Look:
    """A look at what a plan names, or at a dataset that a node made.

    Args:
        plan: What the widgets of nodes name.
        dataset: What a node made, where there is no plan.
        folder: Reads a folder, or has read it.
    """

    def __init__(
        self,
        plan: Plan | None = None,
        dataset: Dataset | None = None,
        folder: Callable[[FolderOptions], FolderLook] | None = None,
    ) -> None:
        self._lock = threading.Lock()
        self._options = list(plan.folders()) if plan else []
        self._leaves = [folder(one) for one in self._options] if folder else []
        self._roots: list[Path] = []
        self._own: Dataset | None = None
        self._dataset: Callable[[], Dataset | None] = lambda: self._own
        if dataset is not None:
            self._dataset = weakref.ref(dataset)  # the host decides how long it is kept
        self._found: dict[int, dict[str, Finding]] = {}
        self._flagged: list[int] = []
        self._names: list[str] = []
        self._done, self._stage = 0, "reading"
        self._summary = Summary()
        self._steps = self._run(plan)
        self.is_done = False

    @property
    def rows(self) -> int:
        """Pictures, with those that cannot be used."""
        return len(self._names) + sum(len(leaf.refused) for leaf in self._leaves)

    def is_stale(self) -> bool:
        """Whether files changed since they were read, or nothing could be read at all."""
        return any(leaf.is_stale() or (self.is_done and not leaf.is_done) for leaf in self._leaves)

    def advance(self, seconds: float) -> dict[str, Any]:
        """Work for a while.

        Args:
            seconds: How long, about.

        Returns:
            How far it is, and the summary at its end.

        Raises:
            Gone: The dataset is not kept any more.
        """
        end = time.monotonic() + seconds
        if self._lock.acquire(blocking=False):  # another page asks for the same work
            try:
                while not self.is_done and time.monotonic() < end:
                    self.is_done = next(self._steps, StopIteration) is StopIteration
            except (ValueError, OSError, MemoryError) as error:
                reason = error.strerror if isinstance(error, OSError) else str(error)
                self._summary.refuse(reason or type(error).__name__)
                self.is_done = True
            finally:
                self._lock.release()
        total = sum(leaf.total for leaf in self._leaves) or len(self._names)
        told = {"done": self.is_done, "stage": self._stage, "read": self._done, "total": total}
        return told | ({"summary": self._summary.said()} if self.is_done else {})

    def page(self, first: int, count: int, only_odd: bool) -> dict[str, Any]:
        """Some pictures; those that cannot be used come first.

        Args:
            first: The first one's place, from 0.
            count: How many, at most.
            only_odd: Whether only those that something is odd about count.

        Returns:
            ``total`` and ``rows``.

        Raises:
            Gone: The dataset is not kept any more.
        """
        refused = [(leaf, one) for leaf in self._leaves for one in leaf.refused]
        chosen = self._flagged if only_odd else range(len(self._names))
        places = range(first, min(first + min(count, MOST_ROWS), len(refused) + len(chosen)))
        rows = []
        for place in places:
            if place < len(refused):
                _, one = refused[place]
                finding = Finding(REFUSED, one.reason, is_error=True)
                rows.append({"row": None, "name": one.name, "problems": [finding.said()]})
            else:
                rows.append(self._row(chosen[place - len(refused)]))
        return {"total": len(refused) + len(chosen), "first": first, "rows": rows}

    def picture(self, index: int) -> dict[str, Any]:
        """All that is known of one picture: its texts, and its size on the disk.

        Raises:
            Gone: The dataset is not kept any more.
            IndexError: There is no such picture.
        """
        dataset = self._kept()
        part, i = dataset.part(index)
        texts, more = texts_of(dataset, index)
        known = {"texts": texts, "more_texts": more, "resolution": part.resolution}
        path = part.items[i].path
        if path is not None:
            try:
                known["bytes"] = os.path.getsize(path)  # noqa: PTH202 - a text already
            except OSError:
                known["bytes"] = None
        return self._row(index) | known

    def thumbnail(self, index: int) -> bytes:
        """A small JPEG of one picture.

        Raises:
            Gone: The dataset is not kept any more.
            IndexError: There is no such picture.
            ImageError: It cannot be read, or is not inside of its folder any more.
        """
        dataset = self._kept()
        part, i = dataset.part(index)
        item = part.items[i]
        self._check_inside(item)
        return thumbnail(item, SIDE_PX)

    def _row(self, index: int) -> dict[str, Any]:
        row = row_of(self._kept(), index, self._names[index])
        found = self._found.get(index, {})
        row["problems"] = [found[kind].said() for kind in ordered(found)]
        return row

    def _kept(self) -> Dataset:
        dataset = self._dataset()
        if dataset is None:
            raise Gone
        return dataset

    def _check_inside(self, item: Item) -> None:
        """Links may have changed since the folder was listed."""
        if item.path is None or not self._leaves:
            return
        for root in self._roots:
            if Path(item.path).is_relative_to(root):
                paths.inside(root, item.path)
                return

    def _run(self, plan: Plan | None) -> Iterator[None]:
        for leaf in self._leaves:
            before = self._done
            for _ in leaf.steps():
                self._done = before + leaf.read
                yield
            self._done = before + leaf.total
        pairs = list(zip(self._leaves, self._options, strict=True))
        refusals = [text for leaf, options in pairs if (text := leaf.refusal(options))]
        for text in refusals:
            self._summary.refuse(text)
        self._roots = [leaf.root for leaf in self._leaves if leaf.root is not None]
        self._summary.refused = sum(len(leaf.refused) for leaf in self._leaves)
        if plan is not None:
            if refusals and not all(leaf.items for leaf in self._leaves):
                return
            rest = iter(self._leaves)  # in the order in which the plan names them
            self._own = plan.build(lambda options: next(rest).dataset(options))
        yield from self._look_at(self._kept())

    def _look_at(self, dataset: Dataset) -> Iterator[None]:
        self._stage, self._done = "looking", 0
        self._names = self._said_names(dataset)
        is_thorough = len(dataset) <= MOST_DECODED
        random = any(part.captioning.is_random for part in dataset.parts or (dataset,))
        sizes: Counter[tuple[int, int]] = Counter()
        masks = {path: text for leaf in self._leaves for path, text in leaf.masks.items()}
        needs = {one.folder for one in self._options if not one.allow_no_caption}
        for index, item in enumerate(dataset.items):
            sizes[dataset.size(index)] += 1
            self._add(index, find.of_size(dataset, index))
            part, _ = dataset.part(index)
            self._add_texts(dataset, index, is_thorough or not random, part.source in needs)
            if item.path in masks:
                self._found.setdefault(index, {})[BAD_MASK] = Finding(
                    BAD_MASK, masks[item.path], is_error=True
                )
            self._done = index + 1
            yield
        yield from self._look_at_all(dataset, is_thorough)
        self._flagged = sorted(self._found, key=self._rank)
        kinds = Counter(kind for one in self._found.values() for kind in one)
        self._summary = summary_of(dataset, self._summary, sizes, kinds, notes(dataset))
        self._summary.odd = len(self._flagged) + self._summary.refused
        is_decoded = all(leaf.is_decoded for leaf in self._leaves)
        self._summary.is_thorough = is_thorough and is_decoded

    def _look_at_all(self, dataset: Dataset, is_thorough: bool) -> Iterator[None]:
        """What shows only when pictures are compared."""
        for index, text in find.shared_captions(dataset).items():
            self._add(index, {find.SAME_CAPTION: text})
        yield
        for index, kind, text in find.of_order(dataset):
            self._add(index, {kind: text})
        yield
        if is_thorough:
            digests = Digests(paths.cache_folder() / "files")
            groups = find.duplicates(dataset, digests.picture)
            with contextlib.suppress(OSError):
                digests.save()
            said = find.said_of_duplicates(groups, dict(enumerate(self._names)))
            for index, text in said.items():
                self._add(index, {find.DUPLICATE: text})

    def _rank(self, index: int) -> tuple[bool, int]:
        """What the node refuses comes first."""
        return (not any(one.is_error for one in self._found[index].values()), index)

    def _add(self, index: int, found: dict[str, str]) -> None:
        for kind, text in found.items():
            self._found.setdefault(index, {})[kind] = Finding(kind, plain(text))

    def _add_texts(self, dataset: Dataset, index: int, made: bool, needs: bool) -> None:
        """What is missing in texts; of many random ones, in the captions that they are made of."""
        try:
            texts = dataset.texts(index) if made else dataset.items[index].captions
        except ValueError as error:
            finding = Finding(BAD_CAPTION, plain(error), is_error=True)
            self._found.setdefault(index, {})[BAD_CAPTION] = finding
            return
        for kind, text in find.of_texts(dataset, index, texts).items():
            is_error = kind == find.NO_CAPTION and needs
            self._found.setdefault(index, {})[kind] = Finding(kind, plain(text), is_error)

    def _said_names(self, dataset: Dataset) -> list[str]:
        """Names of pictures in their folder, with the folders inside where there are such."""
        names = picture_names(dataset)
        roots = [str(root) + os.sep for root in self._roots]
        for index, item in enumerate(dataset.items):
            path = item.path or ""
            root = next((root for root in roots if path.startswith(root)), "")
            if root:
                names[index] = plain(path[len(root) :].replace(os.sep, "/"))
        return names
