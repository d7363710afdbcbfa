# SPDX-License-Identifier: Apache-2.0
"""A folder of pictures with their captions and masks.

Everything that is wrong is found before any training starts, and is named in one error rather
than one at a time.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...plain import plain
from .caption_files import captions_of, read_captions
from .images import EXTENSIONS, Checked, ImageError, check_image
from .item import Item
from .layouts import CLASSES, LAYOUTS, METADATA_FILE, PLAIN, REPEATS, Entry, by_classes, by_repeats
from .layouts import class_names as _class_names
from .listing import METADATA, NO_FILE, Listing, scan, some, stem
from .metadata import by_metadata

NO_MASKS, MASK_FILES, ALPHA = "none", "files", "alpha"
MASKS = (NO_MASKS, MASK_FILES, ALPHA)

_UNREAD_PICTURES = frozenset(
    ".arw .avif .cr2 .cr3 .dng .exr .hdr .heic .heif .jfif .jp2 .jxl .nef .ppm .psd .qoi .raw"
    " .svg .tga .webp".split()
)


def read_folder(
    folder: str | Path,
    caption: str = "",
    recursive: bool = False,
    layout: str = PLAIN,
    several: bool = False,
    masks: str = NO_MASKS,
    check: Callable[[Path], Checked] = check_image,
    needs_captions: bool = True,
) -> tuple[tuple[Item, ...], tuple[str, ...]]:
    """Read a folder of pictures and their captions, in natural order of their names.

    The caption of ``cat.png`` is ``cat.txt`` or ``cat.caption`` beside it, in UTF-8, also that of ``cat.jpg``. Every
    picture is decoded once, so that a bad one is known now. Hidden files are skipped.

    Args:
        folder: Where the pictures are.
        caption: For pictures without a caption of their own, or with an empty one.
        recursive: Also read folders inside the folder.
        layout: "plain"; "repeats": folders called ``10_sks dog``; "classes": a folder for each class;
            "metadata": captions in metadata.jsonl or metadata.csv.
        several: Whether each line of a caption file is a caption of its own.
        masks: "none"; "files": ``cat-masklabel.png`` beside ``cat.png``, white counts; "alpha": what is
            opaque in the picture counts.
        check: Finds out whether a picture can be used; another one may remember it.
        needs_captions: Whether a picture without one is refused.

    Returns:
        The items, and warnings for people.

    Raises:
        ValueError: No folder, no pictures, pictures without a caption, files that cannot be read
            or that lie outside of the folder behind a link. All of them are named.
    """
    listed = list_folder(folder, caption, recursive, layout, several, masks)
    if needs_captions and listed.without_caption and not listed.problems:
        raise ValueError(said_of_missing(listed))
    problems, items = list(listed.problems), list[Item]()
    notes: list[str] = []
    for entry in listed.entries:
        read = read_entry(listed, entry, check)
        problems += read.problems
        notes += read.notes
        items += [] if read.item is None else [read.item]
    if problems:
        raise ValueError(said_of_problems(listed.root, problems))
    check_alpha(listed, items)
    return tuple(items), tuple(map(plain, (*notes, *listed.warnings)))


@dataclass(frozen=True)
class Listed:
    """A folder whose names and texts are known, and of whose pictures none was opened yet.

    Attributes:
        root: The folder, resolved.
        entries: The pictures with captions and masks, in their order.
        problems: What is wrong with texts and names; any of them refuses the folder.
        warnings: What was odd, for people.
        layout: As it was read.
        masks: As they were asked for.
    """

    root: Path
    entries: tuple[Entry, ...]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    layout: str = PLAIN
    masks: str = NO_MASKS

    @property
    def without_caption(self) -> list[Path]:
        """Pictures that have none."""
        return [entry.image for entry in self.entries if not entry.captions]


@dataclass(frozen=True)
class ReadEntry:
    """What came of one picture.

    Attributes:
        item: The picture; None where it cannot be used.
        problems: What is wrong with it or with its mask, each with a file's name.
        notes: What was passed over.
    """

    item: Item | None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def list_folder(
    folder: str | Path,
    caption: str = "",
    recursive: bool = False,
    layout: str = PLAIN,
    several: bool = False,
    masks: str = NO_MASKS,
) -> Listed:
    """As `read_folder`, without opening a picture and without refusing what is wrong with single files.

    Args:
        folder: Where the pictures are.
        caption: For pictures without a caption of their own.
        recursive: Also read folders inside the folder.
        layout: See `read_folder`.
        several: Whether each line of a caption file is a caption of its own.
        masks: See `read_folder`.

    Returns:
        What was found.

    Raises:
        ValueError: No folder, no pictures, links out of it, or another layout or other masks than said.
    """
    root = _root(folder)
    listing = _listing(root, recursive or layout != PLAIN)
    entries, problems, warnings = _entries(root, listing, recursive, layout, several)
    texts, notes = read_captions(root, listing.captions, several, problems)
    warnings += notes
    entries = [_captioned(entry, texts, caption) for entry in entries]
    entries, notes = _masked(root, entries, listing, masks)
    warnings += [*notes, *_left_out(listing, entries)]
    return Listed(root, tuple(entries), tuple(problems), tuple(warnings), layout, masks)


def read_entry(
    listed: Listed, entry: Entry, check: Callable[[Path], Checked] = check_image
) -> ReadEntry:
    """Find out whether a picture and its mask can be used.

    Args:
        listed: The folder.
        entry: One of its pictures.
        check: Finds out whether a file can be used; another one may remember it, or look less closely.

    Returns:
        The picture as an item, or what is wrong.
    """
    root, problems = listed.root, list[str]()
    checked = _checked(root, entry.image, problems, check)
    if checked is None:
        return ReadEntry(None, tuple(problems))
    notes = (f"{entry.image.as_posix()} {checked.warning}",) if checked.warning else ()
    item = Item(
        entry.captions,
        path=str(root / entry.image),
        size=(checked.width, checked.height),
        mask=None if entry.mask is None else str(root / entry.mask),
        mask_from_alpha=listed.masks == ALPHA and checked.has_alpha,
        repeats=entry.repeats,
        weight=entry.weight,
        label=entry.label,
    )
    if entry.mask is not None and _checked(root, entry.mask, problems, check):
        try:
            item.check_mask_size()
        except ImageError as error:
            problems.append(f"{entry.mask.as_posix()}: {error.reason}")
    return ReadEntry(item, tuple(problems), notes)


def check_alpha(listed: Listed, items: Sequence[Item]) -> None:
    """Look whether there is a mask at all, where masks are to come from transparency.

    Args:
        listed: The folder.
        items: All of its pictures.

    Raises:
        ValueError: There is none.
    """
    if listed.masks == ALPHA and not any(item.mask_from_alpha for item in items):
        raise ValueError(
            f"masks are to come from alpha, but no image in '{listed.root.name}' is transparent anywhere: save them "
            "with transparency, or choose other masks"
        )


def said_of_missing(listed: Listed) -> str:
    """The error for pictures without a caption.

    Args:
        listed: The folder, of which some have none.

    Returns:
        Which ones, and what to do.
    """
    missing = listed.without_caption
    hint = "Put a .txt file with text and the same name beside each, or give one prompt for all"
    metadata = [name for name in METADATA if (listed.root / name).is_file()]
    if metadata and listed.layout != METADATA_FILE:
        hint += f"; to read {metadata[0]}, choose the layout '{METADATA_FILE}'"
    hint += "; or switch allow_no_caption on, for class images that Class Images gives a caption"
    count = f"{len(missing)} of {len(listed.entries)} images in '{listed.root.name}'"
    return f"{count} have no caption: {some(missing)}. {hint}"


def said_of_problems(root: Path, problems: Sequence[str], limit: int = 10) -> str:
    """The error for files that cannot be used.

    Args:
        root: The folder.
        problems: What is wrong, each with a file's name.
        limit: How many are named.

    Returns:
        How many there are, and the first ones.
    """
    count = "1 file" if len(problems) == 1 else f"{len(problems)} files"
    lines = [f"{count} in '{plain(root.name)}' cannot be used:", *map(plain, problems[:limit])]
    if len(problems) > limit:
        lines.append(f"and {len(problems) - limit} more")
    return "\n  ".join(lines)


def class_names(folder: str | Path) -> tuple[str, ...]:
    """The names of the classes of a folder with the layout "classes", in the order of their labels.

    Args:
        folder: Where the folders of the classes are.

    Returns:
        The names of the folders, sorted as strings.

    Raises:
        ValueError: There is no such folder.
    """
    return _class_names(scan(_root(folder), recursive=False))


def _root(folder: str | Path) -> Path:
    root = Path(folder).resolve()
    if not root.exists():
        raise ValueError(f"there is no folder '{folder}'")
    if not root.is_dir():
        raise ValueError(f"'{folder}' is a file: give the folder that it lies in")
    return root


def _listing(root: Path, recursive: bool) -> Listing:
    listing = scan(root, recursive)
    if listing.outside:
        raise ValueError(
            f"links in '{root.name}' lead out of the folder, which is not allowed: "
            f"{some(listing.outside)}. Copy the files instead"
        )
    if not listing.images:
        raise ValueError(_nothing_found(root, listing, recursive))
    return listing


def _entries(
    root: Path, listing: Listing, recursive: bool, layout: str, several: bool
) -> tuple[list[Entry], list[str], list[str]]:
    if layout == REPEATS:
        return by_repeats(root, listing, recursive)
    if layout == CLASSES:
        return by_classes(root, listing, recursive)
    if layout == METADATA_FILE:
        return by_metadata(root, listing, several)
    if layout != PLAIN:
        raise ValueError(f"the layout is '{layout}': {', '.join(LAYOUTS)} are known")
    return [Entry(image) for image in listing.images], [], []


def _captioned(entry: Entry, texts: Mapping[str, tuple[str, ...]], caption: str) -> Entry:
    """Give a picture its captions: the metadata's, its file's, the one for all, its folder's name."""
    beside = texts.get(stem(entry.image), ())
    shared = captions_of(caption) and (caption.strip(),)
    fallback = (entry.fallback,) if entry.fallback else ()
    return replace(entry, captions=entry.captions or beside or shared or fallback)


def _masked(
    root: Path, entries: Sequence[Entry], listing: Listing, masks: str
) -> tuple[list[Entry], list[str]]:
    """Give pictures their masks, and say which have none."""
    if masks not in MASKS:
        raise ValueError(f"masks are '{masks}': {', '.join(MASKS)} are known")
    beside = {stem(mask): mask for mask in listing.masks}
    files = [entry.mask or beside.get(f"{stem(entry.image)}-masklabel") for entry in entries]
    if masks != MASK_FILES:
        unused = [file for file in files if file is not None]
        notes = [f"masks that are not used (choose '{MASK_FILES}'): {some(unused)}"]
        return [replace(entry, mask=None) for entry in entries], notes if unused else []
    if entries and not any(files):
        raise ValueError(
            f"masks are to come from files, but '{root.name}' has none: put cat-masklabel.png beside cat.png, or "
            "choose other masks"
        )
    without = [entry.image for entry, file in zip(entries, files, strict=True) if file is None]
    notes = [f"images without a mask, of which all counts: {some(without)}"] if without else []
    return [replace(entry, mask=file) for entry, file in zip(entries, files, strict=True)], notes


def _checked(
    root: Path, image: Path, problems: list[str], check: Callable[[Path], Checked]
) -> Checked | None:
    if not (root / image).is_file():
        problems.append(f"{image.as_posix()}: {NO_FILE}")
        return None
    try:
        return check(root / image)
    except ImageError as error:
        problems.append(f"{image.as_posix()}: {error.reason}")
        return None


def _nothing_found(root: Path, listing: Listing, recursive: bool) -> str:
    files = [*listing.captions, *listing.others]
    kinds = Counter(path.suffix.lower() or "without an extension" for path in files)
    found = [f"{count} {kind}" for kind, count in kinds.most_common(5)]
    if listing.folders and not recursive:
        found.append(f"{len(listing.folders)} folders (read only with 'recursive' on)")
    return (
        f"there are no images in '{root.name}': looked for {', '.join(EXTENSIONS)}; "
        f"found {', '.join(found) if found else 'nothing at all'}"
    )


def _left_out(listing: Listing, entries: Sequence[Entry]) -> list[str]:
    """Return warnings about captions without a picture and pictures that are not read."""
    stems = {stem(image) for image in (*listing.images, *(entry.image for entry in entries))}
    orphans = [path for path in listing.captions if stem(path) not in stems]
    unread = [path for path in listing.others if path.suffix.lower() in _UNREAD_PICTURES]
    warnings = []
    if orphans:
        warnings.append(f"captions without an image: {some(orphans)}")
    if unread:
        warnings.append(f"not read, as their format is not supported: {some(unread)}")
    return warnings
