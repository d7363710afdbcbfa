# SPDX-License-Identifier: Apache-2.0
"""Pillow's strictness about truncated files, for several threads at once.

Other packs make Pillow lenient for the whole process; while anything here decodes it is strict, and what they had
set comes back when the last one is done.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import ImageFile

_lock = threading.Lock()
_found: list[
    bool
] = []  # what was set before the first of those who decode now, once for each of them


@contextmanager
def strict() -> Iterator[None]:
    """A truncated file is an error in the block."""
    with _lock:
        _found.append(_found[0] if _found else ImageFile.LOAD_TRUNCATED_IMAGES)
        ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        with _lock:
            before = _found.pop()
            if not _found:
                ImageFile.LOAD_TRUNCATED_IMAGES = before
