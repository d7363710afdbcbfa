# SPDX-License-Identifier: Apache-2.0
"""Datasets as immutable values: what flows on a GRAFT_DATASET wire.

A dataset is either pictures with one way to treat them, or parts, each of which keeps its own.
Everything about picture i is asked of the dataset, which asks the part.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from ...plain import has_halves
from ...registry import check_limits, option
from .buckets import Fitted
from .captions import Captioning
from .framing import Framing
from .images import MIN_PX
from .item import Item, sha

MAX_ROUNDS = 10_000_000
MAX_TRIGGER = 1000


@dataclass(frozen=True, eq=False)
class Dataset:
    """Pictures with captions, and how they are to be trained on.

    Attributes:
        items: The pictures; of joined datasets those of all parts.
        trigger: The word that the captions call the concept by, if there is one.
        resolution: Side of the square whose area no trained picture exceeds, in pixels; of joined
            datasets the largest.
        source: Where they came from, for people only.
        warnings: What was odd about them, for people only.
        crops: Crops of each picture that are trained on: the whole one, and random ones beyond the first.
        captioning: How captions become texts.
        framing: Buckets, crops and mirror images.
        classes: Class images of prior preservation, with captions of their own.
        class_weight: Factor of the loss of the class images.
        labels: Names of the classes that the items' labels count.
        parts: What was joined; see `join`. Trigger, resolution, crops, captioning and framing of the
            parts are what counts then.

    Raises:
        ValueError: There are no items, the resolution is too small, crops are out of range, a label has
            no name, or the items are not those of the parts.
    """

    items: tuple[Item, ...]
    trigger: str = ""
    resolution: int = 1024
    source: str = ""
    warnings: tuple[str, ...] = ()
    crops: int = option(
        1,
        "Crops of each picture that are trained on: 1 is the whole picture, more add random crops of 75 to 100 % of "
        "its width and height. For few pictures, where the place of things is not what is to be learned.",
        min=1,
        max=64,
    )
    captioning: Captioning = field(default_factory=Captioning)
    framing: Framing = field(default_factory=Framing)
    classes: "Dataset | None" = None
    class_weight: float = option(
        1.0,
        "How much the class images count beside the pictures; 1 is DreamBooth's.",
        min=0.0,
        max=100.0,
    )
    labels: tuple[str, ...] = ()
    parts: tuple["Dataset", ...] = ()

    def __post_init__(self) -> None:
        for name in ("items", "warnings", "labels", "parts"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.items:
            raise ValueError("the dataset holds no images: give it at least one")
        if self.resolution < MIN_PX:
            raise ValueError(
                f"resolution is {self.resolution} px, the least is {MIN_PX}: "
                "use what the model was made for, 1024 for SDXL or 512 for SD 1.5"
            )
        if self.labels and any((item.label or 0) >= len(self.labels) for item in self.items):
            raise ValueError(
                f"a picture's class label is beyond the {len(self.labels)} named classes"
            )
        if sum(self.repeats) > MAX_ROUNDS:
            raise ValueError(
                f"an epoch has {sum(self.repeats)} pictures with their repeats, {MAX_ROUNDS} are possible: lower the "
                "repeats"
            )
        if len(self.trigger) > MAX_TRIGGER:
            raise ValueError(
                f"the trigger has {len(self.trigger)} characters, {MAX_TRIGGER} are possible: give a word or two"
            )
        if has_halves(self.trigger):
            raise ValueError("the trigger has half a character: write it anew")
        self._check_parts()
        check_limits(self)

    def __len__(self) -> int:
        """Return the number of items, each once."""
        return len(self.items)

    @property
    def repeats(self) -> tuple[int, ...]:
        """How often an epoch has each picture."""
        return tuple(item.repeats for item in self.items)

    @property
    def triggers(self) -> tuple[str, ...]:
        """The different triggers of the parts, without empty ones."""
        return tuple(dict.fromkeys(p.trigger for p in self.parts or (self,) if p.trigger))

    def order_items(self) -> tuple[int, ...]:
        """Indices of the pictures of one epoch, before they are shuffled, each ``repeats`` times."""
        return tuple(i for i, item in enumerate(self.items) for _ in range(item.repeats))

    def part(self, index: int) -> tuple["Dataset", int]:
        """The part that a picture is of, and its number there; the dataset itself where nothing was joined."""
        if not 0 <= index < len(self.items):
            raise IndexError(f"picture {index} of a dataset of {len(self.items)}")
        for part in self.parts:
            if index < len(part):
                return part, index
            index -= len(part)
        return self, index

    def texts(self, index: int) -> tuple[str, ...]:
        """All texts that a step may draw for a picture, the empty one of caption dropout among them.

        Args:
            index: Number of the picture.

        Returns:
            One or more different texts.

        Raises:
            ValueError: A wildcard cannot be read.
        """
        part, i = self.part(index)
        return part.captioning.all_texts(part.items[i].captions, part.trigger)

    def choose_text(self, index: int, u: float) -> str:
        """The text of a picture for a uniform draw ``u`` in [0, 1).

        The first ``captioning.dropout`` of the interval gives the empty text, the rest each variant alike; see
        `Captioning.choose`.

        Args:
            index: Number of the picture.
            u: What was drawn.

        Returns:
            One of `texts`.

        Raises:
            ValueError: ``u`` is outside, or a wildcard cannot be read.
        """
        part, i = self.part(index)
        return part.captioning.choose(part.items[i].captions, part.trigger, u)

    def size(self, index: int) -> tuple[int, int]:
        """The bucket of a picture.

        Args:
            index: Number of the picture.

        Returns:
            Width and height.

        Raises:
            ImageError: The file cannot be read.
            ValueError: The framing has no size for it.
        """
        part, i = self.part(index)
        return part.framing.size(*part.items[i].measure(), part.resolution)

    def views(self, index: int) -> int:
        """The number of views of a picture: its crops, and their mirror images."""
        part, _ = self.part(index)
        return part.framing.views(part.crops)

    def view(self, index: int, number: int) -> Fitted:
        """Decode a picture, and its mask, and frame them.

        Args:
            index: Number of the picture.
            number: Number of the view.

        Returns:
            Both at the bucket's size, with the size conditioning of this view.

        Raises:
            ImageError: A file cannot be read, or the mask is of another size.
            ValueError: There is no such view, or the framing has no size for the picture.
        """
        return next(self.some_views(index, (number,)))

    def some_views(self, index: int, numbers: Iterable[int]) -> Iterator[Fitted]:
        """As `view`, of several views in turn; the files are decoded once.

        Args:
            index: Number of the picture.
            numbers: Numbers of the views.

        Yields:
            The views, in their order.

        Raises:
            ImageError: A file cannot be read, or the mask is of another size.
            ValueError: There is no such view, or the framing has no size for the picture.
        """
        part, i = self.part(index)
        size = self.size(index)
        views = [part.framing.view(size, i, number, part.crops) for number in numbers]
        pixels, mask = part.items[i].read(), part.items[i].read_mask()
        for view in views:
            yield part.framing.fitted(pixels, mask, view)

    def view_key(self, index: int, number: int) -> str:
        """Hash everything that `view` depends on beside the contents of the picture and of the mask.

        Those have `Item.picture_digest` and `Item.mask_digest`. Nothing but a header is read.

        Args:
            index: Number of the picture.
            number: Number of the view.

        Returns:
            A SHA-256 in hexadecimal.

        Raises:
            ImageError: The file cannot be read.
            ValueError: There is no such view, or the framing has no size for the picture.
        """
        part, i = self.part(index)
        view = part.framing.view(self.size(index), i, number, part.crops)
        item = part.items[i]
        mask = (item.mask_from_alpha, part.framing.outside) if item.has_mask else ()
        return sha(b"graft view 1", repr((view, mask)).encode())

    def map(self, change: Callable[["Dataset"], "Dataset"]) -> "Dataset":
        """The dataset with a change of every part; of itself where nothing was joined."""
        if not self.parts:
            return change(self)
        parts = tuple(change(part) for part in self.parts)
        items = tuple(item for part in parts for item in part.items)
        resolution = max(part.resolution for part in parts)
        return replace(self, items=items, parts=parts, resolution=resolution)

    def select(self, indices: Sequence[int]) -> "Dataset":
        """The dataset of some of the pictures, in the order of the dataset.

        Args:
            indices: Their numbers, in any order.

        Returns:
            The same settings with fewer items; parts of which none is left are left out.

        Raises:
            ValueError: None is left.
        """
        chosen = set(indices)
        if not self.parts:
            items = tuple(item for i, item in enumerate(self.items) if i in chosen)
            return replace(self, items=items)
        parts, start = [], 0
        for part in self.parts:
            inside = [i - start for i in chosen if start <= i < start + len(part)]
            start += len(part)
            if inside:
                parts.append(part.select(inside))
        items = tuple(item for part in parts for item in part.items)
        return replace(self, items=items, parts=tuple(parts))

    def without_classes(self) -> "Dataset":
        """The dataset without its class images."""
        return replace(self, classes=None, class_weight=1.0)

    def digest(
        self,
        picture_digest: Callable[[Item], str] = Item.picture_digest,
        mask_digest: Callable[[Item], str] = Item.mask_digest,
    ) -> str:
        """Hash pictures, captions, masks, their order, and every setting that training depends on.

        File names, folders and times do not count: a copy of a folder has its digest.

        Args:
            picture_digest: Hashes the contents of a picture; another one may remember them.
            mask_digest: Likewise those of its mask.

        Returns:
            A SHA-256 in hexadecimal.

        Raises:
            OSError: A file cannot be read.
        """
        if self.parts:
            parts = [part.digest(picture_digest, mask_digest).encode() for part in self.parts]
        else:
            settings = (self.trigger, self.resolution, self.crops, self.captioning, self.framing)
            parts = [repr(settings).encode()]
            for item in self.items:
                facts = (item.captions, item.repeats, item.weight, item.label, mask_digest(item))
                parts += [picture_digest(item).encode(), repr(facts).encode()]
        classes = "" if self.classes is None else self.classes.digest(picture_digest, mask_digest)
        whole = (len(self.parts), self.labels, classes, self.class_weight if classes else None)
        return sha(b"graft dataset 3", repr(whole).encode(), *parts)

    def _check_parts(self) -> None:
        if not self.parts:
            return
        if self.items != tuple(item for part in self.parts for item in part.items):
            raise ValueError(
                "the items of a joined dataset are those of its parts: change the parts"
            )
        if (self.captioning, self.framing, self.crops) != (Captioning(), Framing(), 1):
            raise ValueError("captions and framing of a joined dataset are its parts': use map()")
        if any(part.parts for part in self.parts):
            raise ValueError("a joined dataset has parts that are joined themselves: use join()")
