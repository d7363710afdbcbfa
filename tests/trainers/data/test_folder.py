# SPDX-License-Identifier: Apache-2.0
"""Folders of pictures: order, captions, and everything that can be wrong with them by name."""

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from graft.trainers.data.folder import read_folder
from graft.trainers.data.listing import folder_fingerprint, natural_key


def picture(path, size=(32, 24), colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def caption(path, text):
    path.write_text(text, encoding="utf-8")


def link(path, target):
    try:
        path.symlink_to(target)
    except OSError:  # Windows without the privilege
        pytest.skip("symbolic links cannot be made here")


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "cats"
    root.mkdir()
    return root


def test_natural_order_and_captions(folder):
    for name in ("img10.png", "img2.png", "IMG1.png", "b.JPG"):
        picture(folder / name)
        caption(folder / Path(name).with_suffix(".txt").name, f"text of {name}")
    items, warnings = read_folder(folder)
    assert [item.name for item in items] == ["b.JPG", "IMG1.png", "img2.png", "img10.png"]
    assert [item.caption for item in items] == [f"text of {item.name}" for item in items]
    assert warnings == ()
    assert all(item.size == (32, 24) == item.measure() for item in items)


def test_natural_key_mixes_digits_and_letters():
    names = ["a", "1", "a1", "1a", "a1b", "a01", "A2", "10", "a/2", "a/10", "\u00b2", "2.10", "2.9"]
    assert sorted(names, key=lambda name: natural_key(Path(name))) == [
        "1", "1a", "2.9", "2.10", "10", "a", "a/2", "a/10", "a01", "a1", "a1b", "A2", "\u00b2",
    ]  # fmt: skip


def test_txt_wins_and_the_prompt_fills(folder):
    for name in ("a.png", "b.png", "c.png"):
        picture(folder / name)
    caption(folder / "a.txt", "  a red cat,\n  sitting \n")
    caption(folder / "b.txt", " \n")
    items, _ = read_folder(folder, " a cat ")
    assert [item.caption for item in items] == ["a red cat, sitting", "a cat", "a cat"]


def test_images_without_a_caption_are_named(folder):
    for number in range(8):
        picture(folder / f"{number}.png")
    caption(folder / "0.txt", "")
    caption(folder / "7.txt", "a cat")
    with pytest.raises(ValueError, match=r"7 of 8 images in 'cats' have no caption: ") as caught:
        read_folder(folder, "  ")
    assert "0.png, 1.png, 2.png, 3.png, 4.png and 2 more. Put a .txt" in str(caught.value)


def test_same_stem_shares_the_caption_and_case_does_not_matter(folder):
    picture(folder / "Cat.png")
    picture(folder / "Cat.jpg")
    caption(folder / "cat.TXT", "a cat")
    items, warnings = read_folder(folder)
    assert [(item.name, item.caption) for item in items] == [
        ("Cat.jpg", "a cat"),
        ("Cat.png", "a cat"),
    ]
    assert warnings == ()


def test_names_with_several_dots(folder):
    picture(folder / "shot.v1.png")
    picture(folder / "shot.v2.png")
    caption(folder / "shot.v1.txt", "one")
    items, _ = read_folder(folder, "other")
    assert [item.caption for item in items] == ["one", "other"]


def test_bom_and_unicode(folder):
    picture(folder / "a.png")
    (folder / "a.txt").write_bytes(b"\xef\xbb\xbf" + "une \u00e9toile \u2605".encode())
    items, _ = read_folder(folder)
    assert items[0].caption == "une \u00e9toile \u2605"


def test_captions_in_another_encoding_are_named(folder):
    for name in ("a", "b", "c"):
        picture(folder / f"{name}.png")
    (folder / "a.txt").write_bytes("une \u00e9toile".encode("latin-1"))
    (folder / "b.txt").write_bytes("a cat".encode("utf-16"))
    caption(folder / "c.txt", "a cat")
    with pytest.raises(ValueError, match="2 files in 'cats' cannot be used") as caught:
        read_folder(folder)
    assert "a.txt: is not UTF-8 text (byte 0xe9 at position 4): save it as UTF-8" in str(
        caught.value
    )
    assert "b.txt: is not UTF-8 text" in str(caught.value)


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("utf-16-le", "is not UTF-8 text but UTF-16-LE, as its zero bytes show: save it as UTF-8"),
        ("utf-16-be", "is not UTF-8 text but UTF-16-BE, as its zero bytes show: save it as UTF-8"),
        ("utf-16", "is not UTF-8 text but UTF-16-LE or UTF-32-LE, as its byte-order mark says"),
        ("utf-32-le", "is not UTF-8 text but UTF-32, as its zero bytes show"),
        ("utf-32-be", "is not UTF-8 text but UTF-32, as its zero bytes show"),
    ],
)
def test_wide_encodings_are_named(folder, encoding, said):
    """Of ASCII characters every one of these is valid UTF-8, with zero bytes between."""
    picture(folder / "a.png")
    (folder / "a.txt").write_bytes("a cat, sitting".encode(encoding))
    with pytest.raises(ValueError) as caught:
        read_folder(folder)
    assert f"a.txt: {said}" in str(caught.value)


def test_zero_bytes_are_no_text(folder):
    picture(folder / "a.png")
    (folder / "a.txt").write_bytes(b"a\0\0 cat")
    with pytest.raises(ValueError, match="a.txt: is not UTF-8 text but has zero bytes"):
        read_folder(folder)


def test_all_bad_files_in_one_error(folder):
    picture(folder / "good.png")
    caption(folder / "good.txt", "a cat")
    (folder / "bad.txt").write_bytes(b"\xff\xfe\xfd")
    picture(folder / "bad.png")
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("no picture")
    picture(folder / "tiny.png", (7, 40))
    whole = picture(folder / "cut.jpg", (300, 300)).read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="5 files in 'cats' cannot be used") as caught:
        read_folder(folder, "a cat")
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "bad.txt", "cut.jpg", "empty.png", "text.jpg", "tiny.png",
    ]  # fmt: skip
    for reason in ("not UTF-8", "cut short", "empty", "not a picture", "7 x 40 px"):
        assert reason in str(caught.value)


def test_ten_bad_files_are_named_and_the_others_counted(folder):
    for number in range(13):
        (folder / f"{number}.png").write_bytes(b"")
    with pytest.raises(ValueError, match="13 files") as caught:
        read_folder(folder, "a cat")
    lines = str(caught.value).splitlines()
    assert len(lines) == 12 and lines[-1].strip() == "and 3 more"


def test_orphans_formats_and_animations_are_warned_about(folder):
    picture(folder / "a.png")
    caption(folder / "a.txt", "a cat")
    caption(folder / "lost.txt", "a dog")
    (folder / "phone.HEIC").write_bytes(b"\0" * 64)
    (folder / "notes.md").write_text("not a picture, not a warning")
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    items, warnings = read_folder(folder, "a cat")
    assert [item.name for item in items] == ["a.png", "moving.gif"]
    assert warnings == (
        "moving.gif is animated: only the first picture is used",
        "captions without an image: lost.txt",
        "not read, as their format is not supported: phone.HEIC",
    )


def test_hidden_and_system_files_are_skipped(folder):
    picture(folder / "a.png")
    for name in (".hidden.png", "._a.png", "Thumbs.db", "desktop.ini", ".DS_Store", "._a.txt"):
        (folder / name).write_bytes(b"\x00\x05\x16\x07")
    picture(folder / "__MACOSX" / "b.png")
    picture(folder / ".git" / "c.png")
    items, warnings = read_folder(folder, "a cat", recursive=True)
    assert [item.name for item in items] == ["a.png"] and warnings == ()


def test_recursion_is_a_choice(folder):
    picture(folder / "b.png")
    picture(folder / "a10" / "x.png")
    picture(folder / "a9" / "x.png")
    caption(folder / "a9" / "x.txt", "nine")
    flat, _ = read_folder(folder, "a cat")
    assert [item.name for item in flat] == ["b.png"]
    deep, _ = read_folder(folder, "a cat", recursive=True)
    names = [Path(item.path).relative_to(folder.resolve()).as_posix() for item in deep]
    assert names == ["a9/x.png", "a10/x.png", "b.png"]
    assert [item.caption for item in deep] == ["nine", "a cat", "a cat"]


def test_empty_folder_says_what_is_there(folder):
    with pytest.raises(ValueError, match=r"no images in 'cats': looked for \.png.*nothing at all"):
        read_folder(folder, "a cat")
    (folder / "a.psd").write_bytes(b"x")
    (folder / "b.psd").write_bytes(b"x")
    caption(folder / "a.txt", "a cat")
    picture(folder / "sub" / "a.png")
    with pytest.raises(ValueError, match=r"found 2 \.psd, 1 \.txt, 1 folder.*'recursive'"):
        read_folder(folder, "a cat")


def test_missing_folder_and_file_in_its_place(folder):
    with pytest.raises(ValueError, match="there is no folder 'nowhere'"):
        read_folder("nowhere", "a cat")
    with pytest.raises(ValueError, match="is a file"):
        read_folder(picture(folder / "a.png"), "a cat")


@pytest.mark.parametrize("name", ["out.png", "out.txt"])
def test_links_that_leave_the_folder_are_refused(folder, tmp_path, name):
    picture(folder / "in.png")
    outside = picture(tmp_path / "secret.png")
    link(folder / name, outside)
    with pytest.raises(ValueError, match=f"links in 'cats' lead out of the folder.*{name}"):
        read_folder(folder, "a cat")


def test_linked_folders(folder, tmp_path):
    picture(folder / "sub" / "a.png")
    link(folder / "again", folder / "sub")
    link(folder / "sub" / "circle", folder)
    items, _ = read_folder(folder, "a cat", recursive=True)
    assert [item.name for item in items] == ["a.png"]
    picture(tmp_path / "other" / "b.png")
    link(folder / "out", tmp_path / "other")
    with pytest.raises(ValueError, match=r"lead out of the folder.*\bout\b"):
        read_folder(folder, "a cat", recursive=True)


def test_links_inside_are_read_and_broken_ones_named(folder):
    picture(folder / "a.png")
    link(folder / "b.png", folder / "a.png")
    items, _ = read_folder(folder, "a cat")
    assert [item.name for item in items] == ["a.png", "b.png"]
    link(folder / "c.png", folder / "gone.png")
    with pytest.raises(ValueError, match=r"c\.png: is a link to nothing"):
        read_folder(folder, "a cat")
    (folder / "c.png").unlink()
    link(folder / "d.png", folder / "d.png")
    with pytest.raises(ValueError, match=r"d\.png"):
        read_folder(folder, "a cat")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX only")
def test_a_pipe_does_not_hang(folder):
    os.mkfifo(folder / "pipe.png")
    with pytest.raises(ValueError, match=r"pipe\.png: .*no plain file"):
        read_folder(folder, "a cat")
    (folder / "pipe.png").unlink()
    picture(folder / "a.png")
    os.mkfifo(folder / "a.txt")
    with pytest.raises(ValueError, match=r"a\.txt: .*no plain file"):
        read_folder(folder, "a cat")


def test_the_folder_itself_may_be_a_link(folder, tmp_path):
    picture(folder / "a.png")
    link(tmp_path / "alias", folder)
    items, _ = read_folder(tmp_path / "alias", "a cat")
    assert [item.name for item in items] == ["a.png"]


def test_fingerprint_follows_names_sizes_times_and_captions(folder, tmp_path):
    picture(folder / "a.png")
    caption(folder / "a.txt", "a cat")
    prints = [folder_fingerprint(folder)]

    def changed():
        prints.append(folder_fingerprint(folder))
        assert folder_fingerprint(folder) == prints[-1]
        return prints[-1] != prints[-2]

    (folder / "notes.md").write_text("no matter")
    assert not changed()
    caption(folder / "a.txt", "a dog!")
    assert changed()
    os.utime(folder / "a.png", ns=(1, 10**18))
    assert changed()
    (folder / "a.png").rename(folder / "b.png")
    assert changed()
    picture(folder / "sub" / "c.png")
    assert not changed()
    assert folder_fingerprint(folder, recursive=True) != prints[-1]
    shutil.copytree(folder, tmp_path / "copy")
    assert folder_fingerprint(tmp_path / "copy") == prints[-1], "the folder's own path is no part"
    assert folder_fingerprint(tmp_path / "nowhere") == folder_fingerprint(tmp_path / "nowhere2")


def test_fingerprint_does_not_decode(folder):
    (folder / "a.png").write_bytes(b"not a picture")
    assert len(folder_fingerprint(folder)) == 64


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_names_with_control_characters_stay_text(folder):
    """A name that ends the line and begins another one, in colors."""
    evil = "cat\n[ERROR] \x1b[31m"
    picture(folder / f"{evil}.png")
    (folder / f"{evil}.txt").write_bytes(b"\xff")
    (folder / f"{evil}.heic").write_bytes(b"")
    with pytest.raises(ValueError) as caught:
        read_folder(folder)
    lines = str(caught.value).split("\n")
    assert all(line.isprintable() for line in lines) and r"cat\n[ERROR] \x1b[31m.txt" in lines[1]
    (folder / f"{evil}.txt").write_text("a cat")
    items, warnings = read_folder(folder, caption="a")
    assert all(text.isprintable() for text in (*warnings, *(item.name for item in items)))
    assert any(r"cat\n[ERROR]" in item.name for item in items)
    (folder / f"{evil}.png").write_bytes(b"\x89PNG")
    with pytest.raises(ValueError) as caught:
        read_folder(folder, caption="a")
    assert all(line.isprintable() for line in str(caught.value).split("\n"))


def test_a_large_caption_file_is_named(folder):
    picture(folder / "a.png")
    (folder / "a.txt").write_bytes(b"a " * 2**19 + b"a")
    with pytest.raises(ValueError, match=r"a\.txt: has 1048577 bytes, and at most 1048576"):
        read_folder(folder)
    (folder / "a.txt").write_bytes(b"a\n" * 1001)
    with pytest.raises(ValueError, match=r"a\.txt: has 1001 captions"):
        read_folder(folder, several=True)
