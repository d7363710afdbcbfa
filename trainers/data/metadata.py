# SPDX-License-Identifier: Apache-2.0
"""metadata.jsonl and metadata.csv: the ImageFolder layout of the library `datasets`.

Each row names a file and gives it a caption, several ones as a list; a mask, repeats, a weight and a
class label may follow. Everything wrong with a row is named with its number.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ...plain import plain
from .caption_files import NEWLINE, captions_of, read_text
from .item import MAX_REPEATS
from .layouts import Entry
from .listing import METADATA, Listing, some, stays

FILE = "file_name"
CAPTIONS = ("text", "caption", "texts", "captions")
MASKS = ("mask", "mask_file_name")
MAX_BYTES, MAX_ROWS = 2**26, 200_000  # of the file: 300 bytes for each of 200,000 pictures
MAX_ROW, MAX_COLUMNS, MAX_PROBLEMS = 2**20, 1000, 100
MAX_LABEL = 2**31 - 1
_OTHERS = ("repeats", "weight", "label")
Row = tuple[str, dict[str, Any]]


def by_metadata(
    root: Path, listing: Listing, several: bool
) -> tuple[list[Entry], list[str], list[str]]:
    """Read the metadata file of a folder.

    Args:
        root: The folder.
        listing: What lies in it and its folders.
        several: Whether each line of a caption is one of its own.

    Returns:
        The pictures in the order of the rows, problems and warnings.

    Raises:
        ValueError: There is none or there are two, it cannot be read, or its columns do not fit.
    """
    name = _find(root)
    read = _jsonl if name.suffix == ".jsonl" else _csv
    try:
        columns = _names(read(root, name))
    except ValueError as error:
        raise ValueError(f"{name.name} in '{root.name}': {error}") from error
    if not columns:
        raise ValueError(f"{name.name} in '{root.name}' has no rows: give it one for each image")
    caption, mask, warnings = _columns(f"{name.name} in '{root.name}'", columns)
    files = {path.as_posix(): path for path in (*listing.images, *listing.masks)}
    files = {name.casefold(): path for name, path in files.items()} | files
    entries: list[Entry] = []
    problems: list[str] = []
    counts: Counter[Path] = Counter()
    for where, row in read(root, name):  # again: rows may hold much that is not used
        if len(problems) == MAX_PROBLEMS:
            problems.append(f"{name.name}: what comes after {where} was not looked at")
            break
        try:
            entry = _entry(files, row, caption, mask, several)
        except ValueError as error:
            problems.append(f"{name.name}, {where}: {error}")
            continue
        counts[entry.image] += 1
        if counts[entry.image] == 1:
            entries.append(entry)
    for path, count in counts.items():
        if count > 1:
            problems.append(f"{name.name}: {path.as_posix()} is in {count} rows: keep one of them")
    named = {entry.image for entry in entries} | {entry.mask for entry in entries}
    unnamed = [image for image in listing.images if image not in named]
    if unnamed and not problems:
        warnings.append(f"not read, as {name.name} does not name them: {some(unnamed)}")
    return entries, problems, warnings


def _find(root: Path) -> Path:
    found = [name for name in METADATA if (root / name).exists()]
    if len(found) != 1:
        there = " and ".join(found) or "neither is there"
        raise ValueError(
            f"the layout 'metadata' needs one of {' and '.join(METADATA)} in '{root.name}': {there}"
        )
    if not stays(root / found[0], root):
        raise ValueError(f"{found[0]} in '{root.name}' is a link out of the folder: copy the file")
    return Path(found[0])


def _jsonl(root: Path, name: Path) -> Iterator[Row]:
    text = read_text(root, name, MAX_BYTES).rstrip()
    for number, line in enumerate(_lines(text) if text else [], 1):
        where = f"row {number}"
        _check_number(number)
        if not line.strip():
            raise ValueError(f"{where} is empty: remove it")
        if len(line) > MAX_ROW:
            raise ValueError(f"{where} has {len(line)} characters, {MAX_ROW} are possible")
        try:
            row = json.loads(line, object_pairs_hook=_once, strict=False)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{where} cannot be read ({error}): it has to be one JSON object"
            ) from error
        if not isinstance(row, dict) or not row:
            raise ValueError(
                f"{where} is {plain(line.strip(), 40)}: it has to be a JSON object with {FILE}"
            )
        yield where, row


def _lines(text: str) -> Iterator[str]:
    """As `lines_of`, one after the other."""
    start = 0
    for end in NEWLINE.finditer(text):
        yield text[start : end.start()]
        start = end.end()
    yield text[start:]


def _check_number(number: int) -> None:
    if number > MAX_ROWS:
        raise ValueError(
            f"it has more than {MAX_ROWS} rows: divide the folder, and use Join Datasets"
        )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if twice:
        raise ValueError(f"'{plain(twice[0], 100)}' is given twice")
    return dict(pairs)


def _csv(root: Path, name: Path) -> Iterator[Row]:
    reader = csv.reader(
        io.StringIO(read_text(root, name, MAX_BYTES).rstrip() + "\n", newline=""), strict=True
    )
    header: list[str] = []
    try:
        for number, cells in enumerate(reader):
            cells = [cell.strip() for cell in cells]
            if number == 0:
                header = _header(cells)
                continue
            where = f"row {number}"
            _check_number(number)
            if not any(cells):
                raise ValueError(f"{where} is empty: remove it")
            if len(cells) != len(header):
                raise ValueError(
                    f"{where} has {len(cells)} cells for {len(header)} columns: put texts with commas into quotes"
                )
            yield where, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num} cannot be read ({error})") from error


def _header(cells: list[str]) -> list[str]:
    twice = [name for name, count in Counter(cells).items() if count > 1]
    if twice:
        raise ValueError(
            f"the column '{plain(twice[0], 100)}' is there twice: rename or remove one"
        )
    return cells


def _names(rows: Iterator[Row]) -> dict[str, None]:
    """The columns of all rows; each row may have others."""
    found: dict[str, None] = {}
    for _, row in rows:
        found.update(dict.fromkeys(row))
        if len(found) > MAX_COLUMNS:
            raise ValueError(f"it has more than {MAX_COLUMNS} columns: remove what is not used")
    return found


def _columns(name: str, columns: Mapping[str, None]) -> tuple[str, str, list[str]]:
    """Return the columns of captions and of masks, and warnings about columns that are not used."""
    if FILE not in columns:
        raise ValueError(f"{name} has no column '{FILE}': found {plain(', '.join(columns), 200)}")
    chosen = []
    for kind, known in (("captions", CAPTIONS), ("masks", MASKS)):
        found = [column for column in known if column in columns]
        if len(found) > 1:
            raise ValueError(
                f"{name} has several columns of {kind}, {' and '.join(found)}: keep one of them"
            )
        chosen.append(found[0] if found else "")
    unused = [column for column in columns if column not in (FILE, *chosen, *_OTHERS)]
    warnings = [f"{name}: columns not used: {plain(', '.join(unused), 200)}"] if unused else []
    return chosen[0], chosen[1], warnings


def _entry(
    files: Mapping[str, Path], row: Mapping[str, Any], caption: str, mask: str, several: bool
) -> Entry:
    return Entry(
        _file(files, row.get(FILE), FILE),
        _captions(row.get(caption), several),
        mask=_file(files, row[mask], mask) if mask and row.get(mask) else None,
        repeats=_repeats(row.get("repeats")),
        weight=_weight(row.get("weight")),
        label=_label(row.get("label")),
    )


def _file(files: Mapping[str, Path], name: Any, column: str) -> Path:
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{column} is empty: name a file, or remove the row")
    shown = plain(name, 100)
    path = PurePosixPath(name.strip().replace("\\", "/"))
    if path.is_absolute() or PureWindowsPath(path).drive or ".." in path.parts:
        raise ValueError(f"{column} '{shown}' leads out of the folder: name a file inside")
    found = files.get(path.as_posix()) or files.get(path.as_posix().casefold())
    if found is None or found.as_posix() != path.as_posix():  # not so on every system
        hint = f"did you mean {found.as_posix()}?" if found else "look at its spelling"
        raise ValueError(f"{column} '{shown}' is no image in the folder: {hint}")
    return found


def _captions(value: Any, several: bool) -> tuple[str, ...]:
    texts = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"the caption is {plain(value, 40)}: it has to be a text, or a list of texts"
        )
    return tuple(caption for text in texts for caption in captions_of(text, several))


def _repeats(value: Any) -> int:
    count = _whole("repeats", value, 1)
    if not 1 <= count <= MAX_REPEATS:
        raise ValueError(f"repeats are {count:g}: 1 to {MAX_REPEATS} are allowed")
    return count


def _label(value: Any) -> int | None:
    if value is None or value == "":
        return None
    label = _whole("label", value, 0)
    if not 0 <= label <= MAX_LABEL:
        raise ValueError(f"label is {label:g}: 0 to {MAX_LABEL} is allowed")
    return label


def _whole(column: str, value: Any, default: int) -> int:
    if value is None or value == "":
        return default
    try:
        number = float(value)
        if isinstance(value, bool) or number != int(number):
            raise ValueError(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{column} is {plain(value, 40)}: it has to be a whole number") from error
    return int(number)


def _weight(value: Any) -> float:
    if value is None or value == "":
        return 1.0
    try:
        weight = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"weight is {plain(value, 40)}: it has to be a number") from error
    if isinstance(value, bool) or not 0 <= weight < float("inf"):
        raise ValueError(f"weight is {plain(value, 40)}: 0 or more is allowed")
    return weight
