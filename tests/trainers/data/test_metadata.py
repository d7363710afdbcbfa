# SPDX-License-Identifier: Apache-2.0
"""metadata.jsonl and metadata.csv as the library `datasets` lays them out, written by hand here."""

import time
import tracemalloc

import pytest
from PIL import Image

from graft.trainers.data import metadata, read_folder


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "data"
    (root / "train").mkdir(parents=True)
    for name in ("1.png", "2.png", "10.png", "train/a.png", "mask.png"):
        Image.new("RGB", (32, 24), "white").save(root / name)
    return root


def read(folder, text, name="metadata.jsonl", **settings):
    (folder / name).write_text(text, encoding="utf-8")
    return read_folder(folder, layout="metadata", **settings)


def refused(folder, text, name="metadata.jsonl", **settings):
    with pytest.raises(ValueError) as caught:
        read(folder, text, name, **settings)
    return str(caught.value)


def test_jsonl_of_the_documentation(folder):
    """The layout of huggingface.co/docs/datasets/image_dataset, with the `text` of its captioning example."""
    items, warnings = read(
        folder,
        '{"file_name": "10.png", "text": "This is a golden retriever playing with a ball"}\n'
        '{"file_name": "1.png", "text": "A german  shepherd"}\n'
        '{"file_name": "train/a.png", "text": "One chihuahua"}\n',
    )
    assert [(item.name, item.caption) for item in items] == [
        ("10.png", "This is a golden retriever playing with a ball"),
        ("1.png", "A german shepherd"),
        ("a.png", "One chihuahua"),
    ]
    assert warnings == ("not read, as metadata.jsonl does not name them: 2.png, mask.png",)


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    "character", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\u3000"]
)
def test_only_newlines_end_rows(folder, character, newline):
    """What `str.splitlines` takes for the end of a line may be in a JSON string (RFC 8259, section 7)."""
    rows = [f'{{"file_name": "{n}.png", "text": "a{character}dog {n}"}}' for n in (1, 2)]
    (folder / "metadata.jsonl").write_bytes(newline.join(rows).encode() + newline.encode())
    for several in (False, True):
        items, _ = read_folder(folder, layout="metadata", several=several)
        assert [item.captions for item in items] == [("a dog 1",), ("a dog 2",)]


def test_csv_with_quotes_masks_and_numbers(folder):
    items, warnings = read(
        folder,
        "\ufefffile_name,caption,mask,repeats,weight,label,author\r\n"
        '1.png,"a cat, ""sitting""",mask.png,3,0.5,1,me\r\n'
        "2.png,a dog,,,,,\r\n",
        "metadata.csv",
        masks="files",
    )
    first, second = items
    assert first.caption == 'a cat, "sitting"' and first.mask.endswith("mask.png")
    assert (first.repeats, first.weight, first.label) == (3, 0.5, 1)
    assert (second.repeats, second.weight, second.label, second.mask) == (1, 1.0, None, None)
    assert warnings == (
        "metadata.csv in 'data': columns not used: author",
        "not read, as metadata.csv does not name them: 10.png, train/a.png",
        "images without a mask, of which all counts: 2.png",
    )


def test_several_captions_of_one_picture(folder):
    items, _ = read(
        folder,
        '{"file_name": "1.png", "captions": ["a cat", " a black  cat"]}\n'
        '{"file_name": "2.png", "captions": "one\\ntwo"}',
    )
    assert [item.captions for item in items] == [("a cat", "a black cat"), ("one two",)]
    assert read_folder(folder, layout="metadata", several=True)[0][1].captions == ("one", "two")


def test_captions_beside_and_for_all_fill_in(folder):
    (folder / "1.txt").write_text("beside")
    items, _ = read(
        folder,
        '{"file_name": "1.png"}\n{"file_name": "2.png", "text": null}\n{"file_name": "10.png", "text": "row"}',
        caption="for all",
    )
    assert [item.caption for item in items] == ["beside", "for all", "row"]
    with pytest.raises(ValueError, match="1 of 3 images in 'data' have no caption: 2.png"):
        read_folder(folder, layout="metadata")


def test_a_folder_with_metadata_says_how_to_read_it(folder):
    (folder / "metadata.jsonl").write_text('{"file_name": "1.png", "text": "a"}')
    with pytest.raises(ValueError, match="to read metadata.jsonl, choose the layout 'metadata'"):
        read_folder(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        ('{"file_name": "1.png", "text": "a"}\n\n{"file_name": "2.png"}', "row 2 is empty: remove it"),
        ('{"file_name": "1.png"}\n{}', "row 2 is {}: it has to be a JSON object"),
        ('{"file_name": "1.png"}\n["2.png"]', 'row 2 is ["2.png"]'),
        ('{"file_name": "1.png", "text": }', "row 1 cannot be read"),
        ('{"file_name": "1.png", "text": "a", "text": "b"}', "'text' is given twice"),
        ('{"image": "1.png"}', "has no column 'file_name': found image"),
        ('{"file_name": "1.png", "text": "a", "caption": "b"}', "several columns of captions, text and caption"),
        ('{"file_name": "gone.png", "text": "a"}', "row 1: file_name 'gone.png' is no image in the folder: look at"),
        ('{"file_name": "train/A.png", "text": "a"}', "did you mean train/a.png?"),
        ('{"file_name": "metadata.jsonl", "text": "a"}', "'metadata.jsonl' is no image in the folder"),
        ('{"file_name": "../x.png", "text": "a"}', "leads out of the folder"),
        ('{"file_name": "/etc/x.png", "text": "a"}', "leads out of the folder"),
        ('{"file_name": "C:\\\\x.png", "text": "a"}', "leads out of the folder"),
        ('{"file_name": "1.png"}\n{"text": "a"}', "row 2: file_name is empty"),
        ('{"file_name": "1.png", "text": 3}', "the caption is 3"),
        ('{"file_name": "1.png", "text": "a"}\n{"file_name": "1.png", "text": "b"}', "1.png is in 2 rows"),
        ('{"file_name": "1.png", "repeats": 0}', "repeats are 0"),
        ('{"file_name": "1.png", "repeats": 1.5}', "repeats is 1.5: it has to be a whole number"),
        ('{"file_name": "1.png", "repeats": true}', "repeats is True"),
        ('{"file_name": "1.png", "weight": "much"}', "weight is much"),
        ('{"file_name": "1.png", "weight": NaN}', "weight is nan"),
        ('{"file_name": "1.png", "label": "cat"}', "label is cat"),
        ('{"file_name": "1.png", "label": -1}', "label is -1"),
        ('{"file_name": "1.png", "label": 1e300}', "label is 1e+300: 0 to 2147483647 is"),
        ('{"file_name": "1.png", "weight": 1' + "0" * 400 + "}", "weight is 1000"),
        ('{"file_name": "1.png", "weight": 1' + "0" * 5000 + "}", "row 1 cannot be read"),
        ('{"file_name": "1.png", "repeats": 1' + "0" * 400 + "}", "repeats is 1000"),
        ('{"file_name": "1.png", "text": "' + "a" * 20_001 + '"}', "caption of 20001 characters"),
        ('{"file_name": "1.png", "text": ' + str(["a"] * 1001).replace("'", '"') + "}", "a"),
        ('{"file_name": "//server/share/1.png"}', "leads out of the folder"),
        ('{"file_name": "\\\\\\\\server\\\\share\\\\1.png"}', "leads out of the folder"),
        ('{"file_name": "train/../1.png"}', "leads out of the folder"),
        ('{"file_name": "C:1.png"}', "leads out of the folder"),
        ('{"file_name": "1.png\\u0000.txt"}', r"'1.png\x00.txt' is no image"),
        ('{"file_name": "1\\u001b[31m.png"}', r"'1\x1b[31m.png' is no image"),
        ('{"file_name": "CON"}', "'CON' is no image"),
        ('{"file_name": "nul.png"}', "'nul.png' is no image"),
        ('{"file_name": "1.png", "a\\nb": 1, "a\\nb": 2}', r"'a\nb' is given twice"),
        ('{"file_name": ' + "[" * 100_000 + "}", "row 1 cannot be read"),
    ],
)  # fmt: skip
def test_bad_rows_are_named(folder, text, message):
    assert message in refused(folder, text, caption="a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file_name,text,text\n1.png,a,b\n", "the column 'text' is there twice"),
        ("file_name,text\n1.png,a\n\n2.png,b\n", "row 2 is empty"),
        ("file_name,text\n1.png,a\n,\n2.png,b\n", "row 2 is empty"),
        ("file_name,text\n1.png,a, b\n", "row 1 has 3 cells for 2 columns"),
        ('file_name,text\n1.png,"a\n', "cannot be read"),
        ("file_name,text\n", "has no rows"),
    ],
)
def test_bad_tables_are_named(folder, text, message):
    assert message in refused(folder, text, "metadata.csv", caption="a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"file_name": "1.png"}' + " " * 2**26 + "x", "has 67108887 bytes"),
        ('{"a":1}\n' * 3000, "more than 2000 rows"),
        ("\n" * 2**25 + "x", "row 1 is empty"),
        ('{"file_name": "1.png", "text": "' + "a" * 2**20 + '"}', "has 1048610 characters"),
        ('{"file_name": "1.png", "boxes": [' + "[]," * 400_000 + "0]}", "has 12000"),
        ('{"x": 1}\n' * 1500 + '{"file_name": "1.png"}', "and 91 more"),
        (
            "\n".join(
                '{"' + '":0,"'.join(f"{i}-{j}" for j in range(1000)) + '":0}' for i in range(9)
            ),
            "more than 1000 columns",
        ),
    ],
    ids=["bytes", "rows", "newlines", "caption", "members", "problems", "columns"],
)
def test_files_beyond_all_sense_are_refused_soon(folder, monkeypatch, text, message):
    monkeypatch.setattr(metadata, "MAX_ROWS", metadata.MAX_ROWS // 100)
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8")
    tracemalloc.start()
    began = time.perf_counter()
    with pytest.raises(ValueError) as caught:
        read_folder(folder, layout="metadata")
    took, peak = time.perf_counter() - began, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert message in str(caught.value) and len(str(caught.value)) < 2000
    assert took < 5 * 4 and peak < 300e6  # counting memory makes it slower


def test_all_bad_rows_in_one_error(folder):
    said = refused(folder, '{"file_name": "x.png"}\n{"file_name": "1.png"}\n{"file_name": "y.png"}')
    assert "row 1" in said and "row 3" in said and "2 files in 'data'" in said


def test_another_encoding_is_named(folder):
    (folder / "metadata.csv").write_bytes("file_name,text\n1.png,\u00e9toile\n".encode("latin-1"))
    with pytest.raises(ValueError, match="metadata.csv in 'data': is not UTF-8 text"):
        read_folder(folder, layout="metadata")


def test_none_or_two_files(folder):
    with pytest.raises(ValueError, match="neither is there"):
        read_folder(folder, layout="metadata")
    for name in ("metadata.csv", "metadata.jsonl"):
        (folder / name).write_text("")
    with pytest.raises(ValueError, match="metadata.jsonl and metadata.csv"):
        read_folder(folder, layout="metadata")


def test_links_out_of_the_folder_are_refused(folder, tmp_path):
    (tmp_path / "rows").write_text('{"file_name": "1.png", "text": "a"}')
    try:
        (folder / "metadata.csv").symlink_to(tmp_path / "rows")
    except OSError:
        pytest.skip("symbolic links cannot be made here")
    with pytest.raises(ValueError, match="metadata.csv in 'data' is a link out of the folder"):
        read_folder(folder, layout="metadata")
    (folder / "metadata.csv").unlink()
    Image.new("RGB", (32, 24)).save(tmp_path / "secret.png")
    (folder / "secret.png").symlink_to(tmp_path / "secret.png")
    assert "lead out of the folder" in refused(folder, '{"file_name": "1.png", "text": "a"}')


def test_names_that_differ_in_case_only(folder):
    Image.new("RGB", (32, 24), "red").save(folder / "A.png")
    Image.new("RGB", (32, 24), "blue").save(folder / "a.png")
    if len(list(folder.glob("[aA].png"))) == 1:
        pytest.skip("the file system does not tell the case of names")
    rows = '{"file_name": "a.png", "text": "blue"}\n{"file_name": "A.png", "text": "red"}'
    assert [item.name for item in read(folder, rows)[0]] == ["a.png", "A.png"]
