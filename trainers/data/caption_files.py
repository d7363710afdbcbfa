# SPDX-License-Identifier: Apache-2.0
"""Captions in text files beside the pictures."""

import re
from collections.abc import Sequence
from pathlib import Path

from ...plain import has_halves, plain
from .listing import NO_FILE, some, stem

MAX_FILE_BYTES = 2**20  # of a caption file; a text encoder reads some hundred words
MAX_CAPTION, MAX_CAPTIONS = 20_000, 1000  # characters of one, and how many a picture may have
NEWLINE = re.compile(r"\r\n|\r|\n")


def read_text(root: Path, path: Path, most: int = MAX_FILE_BYTES) -> str:
    """Read a text file.

    Args:
        root: Where it lies.
        path: Relative to the root.
        most: Bytes that it may have.

    Returns:
        The text, without a byte-order mark.

    Raises:
        ValueError: The file cannot be read as UTF-8; says what is wrong, without the file's name.
    """
    if not (root / path).is_file():
        raise ValueError(NO_FILE)
    try:
        size = (root / path).stat().st_size
        if size > most:
            raise ValueError(f"has {size} bytes, and at most {most} are read: shorten it")
        data = (root / path).read_bytes()
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error
    remedy = "save it as UTF-8 in an editor"
    if b"\0" in data or data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError(f"is not UTF-8 text but {_wide(data)}: {remedy}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        where = f"byte 0x{byte:02x} at position {error.start}"
        raise ValueError(f"is not UTF-8 text ({where}): {remedy}") from error


def _wide(data: bytes) -> str:
    """Name the encoding of a text that has zero bytes or a byte-order mark of two bytes."""
    if data[:2] == b"\xff\xfe":
        return "UTF-16-LE or UTF-32-LE, as its byte-order mark says"
    if data[:2] == b"\xfe\xff":
        return "UTF-16-BE, as its byte-order mark says"
    counts = [data[start::4].count(0) for start in range(4)]
    quarter = len(data) // 4
    if 0 < quarter in (min(counts[:2]), min(counts[2:])):
        return "UTF-32, as its zero bytes show"
    even, odd = counts[0] + counts[2], counts[1] + counts[3]
    if len(data) % 2 or min(even, odd) > max(even, odd) // 4:
        return "has zero bytes, which no text has"
    return f"UTF-16-{'LE' if odd > even else 'BE'}, as its zero bytes show"


def lines_of(text: str) -> list[str]:
    """The lines of a text; only CR, LF and both end one, and not all that `str.splitlines` takes for an end.

    Args:
        text: As it was read.

    Returns:
        One or more lines, without their ends.
    """
    return NEWLINE.split(text)


def captions_of(text: str, several: bool = False) -> tuple[str, ...]:
    """Split a text into captions.

    Args:
        text: As it was read.
        several: Whether each line is a caption of its own, or all of it is one.

    Returns:
        Captions with single spaces between words; none for a blank text.

    Raises:
        ValueError: There are too many, or one is too long.
    """
    lines = lines_of(text) if several else [text]
    found = tuple(caption for caption in (" ".join(line.split()) for line in lines) if caption)
    check_captions(found)
    return found


def check_captions(captions: Sequence[str]) -> None:
    """Find out whether captions can be a picture's: each is encoded, and made variants of.

    Args:
        captions: Of one picture.

    Raises:
        ValueError: There are too many, one is too long, or is no text.
    """
    if len(captions) > MAX_CAPTIONS:
        raise ValueError(
            f"has {len(captions)} captions, and a picture has at most {MAX_CAPTIONS}: remove some"
        )
    for caption in captions:
        if not isinstance(caption, str):
            raise ValueError(f"has a {type(caption).__name__} as caption: it has to be a text")
        if len(caption) > MAX_CAPTION:
            raise ValueError(
                f"has a caption of {len(caption)} characters, and at most {MAX_CAPTION} are read: shorten it"
            )
        if has_halves(caption):
            raise ValueError(
                f"has half a character in the caption '{plain(caption, 80)}': write the text anew"
            )


def read_captions(
    root: Path, paths: Sequence[Path], several: bool, problems: list[str]
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Read caption files.

    Args:
        root: Where they lie.
        paths: Relative to the root.
        several: Whether each line is a caption of its own.
        problems: What is wrong with a file is added here, with its name.

    Returns:
        Captions by what file and picture share (see `stem`), and warnings for people: of two files for
        one picture, .txt is read.
    """
    texts: dict[str, tuple[str, ...]] = {}
    passed_over = []
    # .caption comes before .txt, which overwrites it.
    for path in sorted(paths, key=lambda path: path.suffix.lower()):
        try:
            captions = captions_of(read_text(root, path), several)
        except ValueError as error:
            problems.append(f"{path.as_posix()}: {error}")
            continue
        if stem(path) in texts:
            passed_over.append(path)
        if captions or stem(path) not in texts:
            texts[stem(path)] = captions
    if not passed_over:
        return texts, []
    return texts, [f"both .txt and .caption are there, .txt is read: {some(passed_over)}"]
