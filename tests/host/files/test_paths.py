# SPDX-License-Identifier: Apache-2.0
"""Hostile names and folders stay out, names are shared by all systems, files appear whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

pytestmark = pytest.mark.comfy

BAD_NAMES = [
    "",
    "   ",
    ".",
    "..",
    "../up",
    "a/b",
    "a\\b",
    "/etc/passwd",
    "C:\\windows",
    "C:name",
    "\\\\server\\share",
    "nul\0byte",
    "line\nbreak",
    "CON",
    "con",
    "nul.safetensors",
    "Com1",
    "LPT9.x",
    "com\u00b9",
    "trailing.",
    "trailing ",
    " leading",
    ".hidden",
    "what?",
    "a*b",
    'quo"te',
    "pi|pe",
    "<b>",
    "n" * 161,
    "\u00e9" * 100,
    "full\uff0fwidth",
    "\u202egnp.exe",
    "zero\u200bwidth",
    "two\u2025",
    "\ud800",
    None,
    7,
]
BAD_RUNS = [
    "",
    "..",
    "../../x",
    "abc",
    "g" * 16,
    "A" * 16,
    "a" * 65,
    "0" * 16 + "\n",
    "a/b" * 4,
    None,
]


@pytest.fixture
def paths(comfy):
    from graft.host.files import paths

    return paths


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda n: ascii(n)[:20])
def test_a_name_that_would_do_harm_is_refused_and_named(paths, name):
    with pytest.raises(ValueError, match="The file name .* cannot be used: "):
        paths.safe_name(name, "file name")


@pytest.mark.parametrize(
    "name", ["graft", "My LoRA v1.5", "console", "com", "r\u00e9sum\u00e9", "\u732b", "a-b_c (2)"]
)
def test_an_ordinary_name_is_kept(paths, name):
    assert paths.safe_name(name) == name


def test_equal_looking_names_are_one_name(paths):
    assert paths.safe_name("re\u0301sume\u0301") == "r\u00e9sum\u00e9"


@pytest.mark.parametrize("run", BAD_RUNS, ids=lambda n: ascii(n)[:20])
def test_a_run_id_is_hexadecimal(paths, run):
    assert not paths.is_run_id(run)
    with pytest.raises(ValueError, match="is not a run id"):
        paths.run_folder(run)


def test_a_run_has_a_folder_in_output(paths, comfy):
    folder = paths.run_folder("0123456789abcdef")
    assert folder == (comfy / "output/graft/0123456789abcdef").resolve()
    assert folder.is_dir()
    assert paths.relative_to_output(folder / "samples") == "graft/0123456789abcdef/samples"


def test_inside_knows_dots_links_and_prefixes(paths, tmp_path):
    base, beside = tmp_path / "base", tmp_path / "base-beside"
    (base / "sub").mkdir(parents=True)
    beside.mkdir()
    assert paths.inside(base, "sub/../sub/x") == base.resolve() / "sub/x"
    assert paths.inside(base, base / "sub") == base.resolve() / "sub"
    for bad in ("..", "sub/../..", "../base-beside", str(beside), "a\0b"):
        with pytest.raises(ValueError, match="leads out of the folder 'base'"):
            paths.inside(base, bad)


@pytest.fixture
def links(comfy, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (comfy / "input" / "pictures" / "dogs").mkdir(parents=True, exist_ok=True)
    (comfy / "input" / "file.png").write_bytes(b"x")
    made = []
    for name, target in (("link_out", outside), ("link_in", comfy / "input" / "pictures")):
        link = comfy / "input" / name
        try:
            link.symlink_to(target, target_is_directory=True)
        except OSError:
            pytest.skip("this system lets nobody make links")
        made.append(link)
    yield outside
    for link in made:
        link.unlink()


def test_input_folders_are_found_by_both_slashes_and_by_links_that_stay(paths, comfy, links):
    wanted = (comfy / "input/pictures/dogs").resolve()
    for name in (
        "pictures/dogs",
        "pictures\\dogs",
        " pictures/dogs/ ",
        "./pictures//dogs",
        "link_in/dogs",
    ):
        assert paths.input_folder(name) == wanted


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "../models",
        "pictures/../..",
        "..\\models",
        "/etc",
        "\\\\host\\share",
        "C:\\x",
        "c:x",
        "~",
        "~/x",
        "a\0b",
    ],
    ids=ascii,
)
def test_input_folders_that_lead_out_are_refused(paths, comfy, links, name):
    with pytest.raises(ValueError, match="is not allowed: give a path relative to 'input'"):
        paths.input_folder(name)


def test_other_bad_input_folders_say_what_is_wrong(paths, comfy, links):
    with pytest.raises(ValueError, match="leads out of the folder 'input'"):
        paths.input_folder("link_out")
    with pytest.raises(ValueError, match="Did you mean pictures"):
        paths.input_folder("picture")
    with pytest.raises(ValueError, match="'file.png' is a file"):
        paths.input_folder("file.png")
    for empty in ("", "  ", ".", "./"):
        with pytest.raises(ValueError, match="name of a folder"):
            paths.input_folder(empty)


def test_registered_dataset_folders_count_too(paths, comfy, tmp_path, monkeypatch):
    import folder_paths

    (tmp_path / "cats_only_here").mkdir()
    entry = {"datasets": ([str(tmp_path)], set())}
    monkeypatch.setattr(
        folder_paths, "folder_names_and_paths", dict(folder_paths.folder_names_and_paths) | entry
    )
    assert paths.input_folder("cats_only_here") == (tmp_path / "cats_only_here").resolve()


def test_loras_are_listed_by_the_host(paths, comfy):
    import folder_paths

    folder = paths.loras_folder()
    before = list(folder_paths.get_folder_paths("loras"))
    assert paths.loras_folder() == folder
    assert folder_paths.get_folder_paths("loras") == before
    folder_paths.get_filename_list("loras")
    (folder / "test_paths_listed.safetensors").write_bytes(b"x")
    paths.refresh_loras()
    assert "test_paths_listed.safetensors" in folder_paths.get_filename_list("loras")
    (folder / "test_paths_listed.safetensors").unlink()
    paths.refresh_loras()


def test_loras_folder_is_registered_where_the_host_does_not(paths, comfy, monkeypatch):
    import folder_paths

    known = dict(folder_paths.folder_names_and_paths) | {"loras": ([], {".safetensors"})}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", known)
    folder = paths.loras_folder()
    assert folder_paths.get_folder_paths("loras") == [str(folder)]


def test_a_write_is_whole_or_not_at_all(paths, tmp_path):
    target = tmp_path / "a.json"
    paths.atomic_write(target, lambda p: p.write_bytes(b"old") and None)

    def broken(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        paths.atomic_write(target, broken)
    assert target.read_bytes() == b"old"
    paths.atomic_write(target, lambda p: p.write_bytes(b"new") and None)
    assert target.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_equal_bytes_are_written_once_and_others_get_a_number(paths, tmp_path):
    def write(data: bytes) -> str:
        return paths.write_once(
            tmp_path, "cat", ".bin", lambda p: p.write_bytes(data) and None
        ).name

    assert [write(b"1"), write(b"1"), write(b"2"), write(b"3"), write(b"2")] == [
        "cat.bin",
        "cat.bin",
        "cat_00002.bin",
        "cat_00003.bin",
        "cat_00002.bin",
    ]
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(ValueError, match="cannot be used"):
        paths.write_once(tmp_path, "../cat", ".bin", lambda p: p.write_bytes(b"1") and None)


def test_a_folder_that_can_be_written_is_left_clean(paths, tmp_path):
    assert paths.check_writable(tmp_path / "new" / "deep") == tmp_path / "new" / "deep"
    assert list((tmp_path / "new" / "deep").iterdir()) == []


@pytest.mark.parametrize(
    ("code", "kind", "said"),
    [
        (errno.EACCES, PermissionError, "cannot be written .*output-directory"),
        (errno.EROFS, PermissionError, "cannot be written"),
        (errno.ENOSPC, ValueError, "No space is left"),
    ],
)
def test_a_folder_that_cannot_be_written_is_named(paths, tmp_path, monkeypatch, code, kind, said):
    def refuse(self, data):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(kind, match=said) as caught:
        paths.check_writable(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_file_in_place_of_the_folder_is_named(paths, tmp_path):
    (tmp_path / "taken").write_bytes(b"")
    for folder in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(ValueError, match="a file is in its place"):
            paths.check_writable(folder)


def test_a_linked_loras_folder_is_still_below_output(paths, comfy, tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path / "output"))
    (tmp_path / "output").mkdir()
    (tmp_path / "elsewhere").mkdir()
    try:
        (tmp_path / "output/loras").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    except OSError:
        pytest.skip("this system lets nobody make links")
    path = tmp_path / "output/loras/x.safetensors"
    assert paths.relative_to_output(path) == "loras/x.safetensors"
    with pytest.raises(ValueError, match="leads out of"):
        paths.relative_to_output(tmp_path / "output/../elsewhere/x")


@pytest.mark.parametrize("name", ["a" * 300, "a/" * 50 + "b" * 256, "\ud800", "\u732b" * 100])
def test_names_that_no_file_can_have_are_refused(paths, comfy, tmp_path, name):
    """The system's own error came out of the check for them."""
    with pytest.raises(ValueError, match="longer than any file's|half a character"):
        paths.inside(tmp_path, name)
    with pytest.raises(ValueError, match="There is no folder"):
        paths.input_folder(name)


def test_a_long_text_is_cut_in_a_message(paths, comfy):
    for ask in (paths.input_folder, paths.safe_name, paths.run_folder):
        with pytest.raises(ValueError) as caught:
            ask("x" * 100_000)
        assert len(str(caught.value)) < 1000
