# SPDX-License-Identifier: Apache-2.0
"""Whether a PNG says how it is to be turned, without decoding it: Pillow decodes the whole picture to find that out."""

from pathlib import Path

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_KEYWORDS = (b"XML:com.adobe.xmp\0", b"Raw profile type ")
_MOST_CHUNKS = 1_000_000


def may_be_turned(path: Path) -> bool:
    """Whether a file has EXIF or XMP, in which an orientation may stand.

    Args:
        path: A PNG.

    Returns:
        False where it has none; True also where its chunks cannot be read.

    Raises:
        OSError: The file cannot be read.
    """
    longest = max(map(len, _KEYWORDS))
    with path.open("rb") as file:
        if file.read(len(_SIGNATURE)) != _SIGNATURE:
            return True
        for _ in range(_MOST_CHUNKS):
            head = file.read(8)
            length, kind = int.from_bytes(head[:4], "big"), head[4:]
            if len(head) < 8 or kind == b"IEND":  # cut short: what is there says nothing of it
                return False
            if kind == b"eXIf":
                return True
            start = file.tell()
            if kind in _TEXTS and file.read(min(length, longest)).startswith(_KEYWORDS):
                return True
            file.seek(start + length + 4)
    return True
