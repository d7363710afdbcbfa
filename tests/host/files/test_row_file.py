# SPDX-License-Identifier: Apache-2.0
"""Rows of a file are whole or not there, whatever the disk does."""

import errno
import io

import pytest

from graft.host.files.row_file import RowFile


def test_rows_follow_what_is_there(tmp_path):
    path = tmp_path / "new" / "log.jsonl"
    for row in ("one", "zwölf"):
        rows = RowFile(path)
        rows.add(row)
        rows.close()
        rows.close()
    assert path.read_bytes() == "one\nzwölf\n".encode()


def test_what_a_killed_process_left_is_ended_first(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": ')
    rows = RowFile(path)
    rows.add("next")
    assert path.read_bytes() == b'{"a": 1}\n{"b": \nnext\n'
    rows.close()


@pytest.mark.parametrize("room", [0, 3])
def test_a_row_that_does_not_fit_is_taken_back(tmp_path, monkeypatch, room):
    """A disk takes what it has room for without an error, and refuses the rest."""
    path, left = tmp_path / "log.jsonl", [4 + room]

    class Small(io.FileIO):
        def write(self, data):
            count = min(len(data), left[0])
            if data and not count:
                raise OSError(errno.ENOSPC, "No space left on device")
            left[0] -= count
            return super().write(data[:count])

    monkeypatch.setattr("graft.host.files.row_file.io.FileIO", Small)
    rows = RowFile(path)
    rows.add("one")
    with pytest.raises(OSError, match="No space left"):
        rows.add("three")
    assert path.read_bytes() == b"one\n"
    left[0] = 100
    rows.add("four")
    assert path.read_bytes() == b"one\nfour\n"
    rows.close()


def test_a_deleted_file_is_begun_anew(tmp_path):
    path = tmp_path / "log.jsonl"
    rows = RowFile(path)
    rows.add("one")
    try:
        path.unlink()
    except PermissionError:
        pytest.skip("this system keeps open files")
    rows.add("two")
    assert path.read_bytes() == b"two\n"
    rows.close()
