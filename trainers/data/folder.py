# SPDX-License-Identifier: Apache-2.0
"""A folder of pictures with their captions and masks.

Everything that is wrong is found before any training starts, and is named in one error rather
than one at a time.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
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
    root = _root(folder)
    listing = _listing(root, recursive or layout != PLAIN)
    entries, problems, warnings = _entries(root, listing, recursive, layout, several)
    texts, notes = read_captions(root, listing.captions, several, problems)
    warnings += notes
    entries = [_captioned(entry, texts, caption) for entry in entries]
    entries, notes = _masked(root, entries, listing, masks)
    warnings += notes
    missing = [entry.image for entry in entries if not entry.captions]
    if missing and needs_captions and not problems:
        raise ValueError(_no_captions(root, missing, len(entries), layout))
    items, notes = _items(root, entries, masks, problems, check)
    if problems:
        raise ValueError(_bad_files(root, problems))
    _check_alpha(root, items, masks)
    return items, tuple(map(plain, (*notes, *warnings, *_left_out(listing, entries))))


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


def _items(
    root: Path,
    entries: Sequence[Entry],
    masks: str,
    problems: list[str],
    known: Callable[[Path], Checked],
) -> tuple[tuple[Item, ...], list[str]]:
    """Decode every picture once; reasons against the bad ones are added to the problems."""
    items, notes = [], []
    for entry in entries:
        check = _checked(root, entry.image, problems, known)
        if check is None:
            continue
        if check.warning:
            notes.append(f"{entry.image.as_posix()} {check.warning}")
        item = Item(
            entry.captions,
            path=str(root / entry.image),
            size=(check.width, check.height),
            mask=None if entry.mask is None else str(root / entry.mask),
            mask_from_alpha=masks == ALPHA and check.has_alpha,
            repeats=entry.repeats,
            weight=entry.weight,
            label=entry.label,
        )
        if entry.mask is not None and _checked(root, entry.mask, problems, known):
            try:
                item.check_mask_size()
            except ImageError as error:
                problems.append(f"{entry.mask.as_posix()}: {error.reason}")
        items.append(item)
    return tuple(items), notes


def _check_alpha(root: Path, items: Sequence[Item], masks: str) -> None:
    if masks == ALPHA and not any(item.mask_from_alpha for item in items):
        raise ValueError(
            f"masks are to come from alpha, but no image in '{root.name}' is transparent anywhere: save them with "
            "transparency, or choose other masks"
        )


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


def _no_captions(root: Path, missing: Sequence[Path], count: int, layout: str) -> str:
    hint = "Put a .txt file with text and the same name beside each, or give one prompt for all"
    metadata = [name for name in METADATA if (root / name).is_file()]
    if metadata and layout != METADATA_FILE:
        hint += f"; to read {metadata[0]}, choose the layout '{METADATA_FILE}'"
    hint += "; or switch allow_no_caption on, for class images that Class Images gives a caption"
    return f"{len(missing)} of {count} images in '{root.name}' have no caption: {some(missing)}. {hint}"


def _bad_files(root: Path, problems: Sequence[str], limit: int = 10) -> str:
    count = "1 file" if len(problems) == 1 else f"{len(problems)} files"
    lines = [f"{count} in '{plain(root.name)}' cannot be used:", *map(plain, problems[:limit])]
    if len(problems) > limit:
        lines.append(f"and {len(problems) - limit} more")
    return "\n  ".join(lines)


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
