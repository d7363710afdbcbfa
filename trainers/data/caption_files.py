# SPDX-License-Identifier: Apache-2.0
"""Captions in text files beside the pictures."""

from collections.abc import Sequence
from pathlib import Path

from .listing import NO_FILE, some, stem


def read_text(root: Path, path: Path) -> str:
    """Read a text file.

    Args:
        root: Where it lies.
        path: Relative to the root.

    Returns:
        The text, without a byte-order mark.

    Raises:
        ValueError: The file cannot be read as UTF-8; says what is wrong, without the file's name.
    """
    if not (root / path).is_file():
        raise ValueError(NO_FILE)
    try:
        return (root / path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        where = f"byte 0x{byte:02x} at position {error.start}"
        text = f"is not UTF-8 text ({where}): save it as UTF-8 in an editor"
        raise ValueError(text) from error
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error


def captions_of(text: str, several: bool = False) -> tuple[str, ...]:
    """Split a text into captions.

    Args:
        text: As it was read.
        several: Whether each line is a caption of its own, or all of it is one.

    Returns:
        Captions with single spaces between words; none for a blank text.
    """
    lines = text.splitlines() if several else [text]
    return tuple(caption for caption in (" ".join(line.split()) for line in lines) if caption)


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
