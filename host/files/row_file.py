# SPDX-License-Identifier: Apache-2.0
"""Rows appended to a file as they come: each is there whole, or not at all."""

import contextlib
import io
import os
from pathlib import Path


class RowFile:
    """A file of rows, opened with the first one.

    A row that a full disk cuts off is taken back, a rest that a killed process left is ended before the next row, and
    a file that is deleted meanwhile is begun anew.

    Args:
        path: The file; rows that are there stay.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: io.FileIO | None = None

    def add(self, row: str) -> None:
        """Append a row.

        Raises:
            OSError: The disk is full, or the folder cannot be written.
        """
        file = self._file
        if file is None or not self._path.exists():
            self.close()
            file = self._file = self._open()
        data = row.encode("utf-8") + b"\n"
        size = os.fstat(file.fileno()).st_size
        try:
            while data:  # near the end of a disk, a part is taken without an error
                data = data[file.write(data) or 0 :]
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(size)
            raise

    def close(self) -> None:
        """Close the file; nothing waits to be written."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()

    def _open(self) -> io.FileIO:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = io.FileIO(self._path, "a+")
        try:
            if (
                file.seek(0, os.SEEK_END)
                and file.seek(-1, os.SEEK_END) >= 0
                and file.read(1) != b"\n"
            ):
                file.write(b"\n")
        except OSError:
            file.close()
            raise
        return file
