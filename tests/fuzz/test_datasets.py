# SPDX-License-Identifier: Apache-2.0
"""Any text as metadata.jsonl, metadata.csv and captions, and any captions with any way to treat them."""

import csv
import io
import json

import pytest
from hypothesis import strategies as st
from PIL import Image

from graft.trainers.data import Captioning, Dataset, Item, describe
from graft.trainers.data.folder import MASKS, read_folder
from graft.trainers.data.images import Checked, check_image
from tests.fuzz.fuzzing import fuzz, tiers

PICTURES = ("1.png", "b/2.png", "1-masklabel.png")
COLUMNS = st.sampled_from(
    ["file_name", "text", "caption", "texts", "mask", "repeats", "weight", "label", "other", "a\nb"]
)
FILES = st.one_of(
    st.sampled_from(
        [
            *PICTURES,
            "../1.png",
            "/etc/passwd",
            "C:\\1.png",
            "\\\\host\\x\\1.png",
            "1.PNG",
            "CON",
            "b",
        ]
    ),
    st.text(max_size=12),
)
NUMBERS = st.one_of(
    st.integers(), st.floats(), st.sampled_from([10**400, -1, 0, 1e308, 2**63, True])
)
TEXTS = st.one_of(
    st.text(max_size=30),
    st.text("{}|[]()a, \n\x1b\u202e\x85", max_size=30),
    st.sampled_from(
        ["[trigger] {a|b}", "\x1b[31m", "a" * 20_001, "{" * 50, "}" * 5, "=1+1", "\ud800"]
    ),
)
VALUES = st.one_of(
    TEXTS,
    NUMBERS,
    st.none(),
    st.lists(TEXTS, max_size=3),
    st.lists(st.none()),
    st.just({"a": [{}]}),
)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "data"
    (root / "b").mkdir(parents=True)
    for name in PICTURES:
        Image.new("RGB", (32, 24)).save(root / name)
    return root


RIGHT = {
    "text": st.one_of(st.text(max_size=20), st.lists(st.text(max_size=9), max_size=3)),
    "mask": st.just("1-masklabel.png"),
    "repeats": st.integers(1, 9),
    "weight": st.floats(0, 9),
    "label": st.integers(0, 9),
    "other": VALUES,
}


@st.composite
def good_rows(draw):
    """Rows as they should be, in each of which one thing may be otherwise."""
    columns = draw(st.sets(st.sampled_from(sorted(RIGHT))))
    rows = []
    for picture in draw(st.permutations(PICTURES[:2]))[: draw(st.integers(1, 2))]:
        row = {"file_name": picture, **{column: draw(RIGHT[column]) for column in columns}}
        if draw(st.integers(0, 3)) == 0:
            row[draw(COLUMNS)] = draw(VALUES)
        rows.append(row)
    return rows


def looked(path):
    """As `check_image`, for pictures that are good."""
    return Checked(32, 24)


@st.composite
def jsonl(draw):
    rows = [json.dumps(row) for row in draw(good_rows())] if draw(st.booleans()) else []
    for _ in range(0 if rows else draw(st.integers(1, 3))):
        row = draw(st.dictionaries(COLUMNS, VALUES, max_size=4))
        if draw(st.integers(0, 9)):
            row["file_name"] = draw(FILES)
        rows.append(json.dumps(row, ensure_ascii=draw(st.booleans())))
    text = draw(st.sampled_from(["\n", "\r\n", "\r", "\n\n"])).join(rows)
    return text.encode("utf-8", "surrogatepass")


@st.composite
def table(draw):
    file = io.StringIO()
    writer = csv.writer(file)
    rows = draw(good_rows())
    if draw(st.booleans()) and len({tuple(row) for row in rows}) == 1:
        writer.writerows([rows[0], *(row.values() for row in rows)])
        return file.getvalue().encode("utf-8", "surrogatepass")
    columns = draw(st.lists(COLUMNS, max_size=4))
    writer.writerow(["file_name", *columns])
    for _ in range(draw(st.integers(0, 3))):
        writer.writerow([draw(FILES), *(draw(VALUES) for _ in columns)])
    return file.getvalue().encode("utf-8", "surrogatepass")


@st.composite
def broken(draw, good):
    data = bytearray(draw(good))
    for _ in range(draw(st.integers(0, 3))):
        if data:
            at = draw(st.integers(0, len(data) - 1))
            data[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
    return bytes(data)


@tiers(150, 2500)
def test_any_table(folder, cases):
    kinds = {
        "metadata.jsonl": st.one_of(jsonl(), broken(jsonl()), st.binary(max_size=60)),
        "metadata.csv": st.one_of(table(), broken(table()), st.binary(max_size=60)),
    }
    chosen = st.one_of(*(st.tuples(st.just(name), data) for name, data in kinds.items()))

    def check(given):
        (name, data), several, masks = given
        for other in kinds:
            (folder / other).unlink(missing_ok=True)
        (folder / name).write_bytes(data)
        items, warnings = read_folder(
            folder, "a", layout="metadata", several=several, masks=masks, check=looked
        )
        assert all(item.path.startswith(str(folder)) for item in items)
        describe(Dataset(items, warnings=warnings))

    taken, refused = fuzz(
        cases, st.tuples(chosen, st.booleans(), st.sampled_from(MASKS[:2])), check
    )
    assert taken and refused


@tiers(100, 1500)
def test_any_caption_file(folder, cases):
    data = st.one_of(
        st.binary(max_size=80), TEXTS.map(lambda text: text.encode("utf-8", "surrogatepass"))
    )

    def check(given):
        data, several, ending, how, trigger = given
        for name in ("1.txt", "1.caption"):
            (folder / name).unlink(missing_ok=True)
        (folder / f"1.{ending}").write_bytes(data)
        items, warnings = read_folder(folder, "b", several=several, check=looked)
        dataset = Dataset(items, trigger, captioning=Captioning(**how), warnings=warnings)
        for i in range(len(items)):
            texts = dataset.texts(i)
            assert texts and all(isinstance(text, str) for text in texts)
            assert dataset.choose_text(i, 0.999999) in texts

    how = st.fixed_dictionaries(
        {},
        optional={
            "prefix": TEXTS,
            "suffix": TEXTS,
            "separator": st.sampled_from([",", ";", " ", "", "\0", "|"]),
            "shuffle": st.booleans(),
            "wildcards": st.booleans(),
            "add_trigger": st.booleans(),
            "keep_tags": st.integers(-1, 1001),
            "tag_dropout": st.floats(),
            "dropout": st.floats(),
            "variants": st.integers(-1, 20),
            "seed": st.one_of(st.integers(), st.integers(0, 2**64 - 1)),
        },
    )
    given = st.tuples(data, st.booleans(), st.sampled_from(["txt", "caption"]), how, TEXTS)
    taken, refused = fuzz(cases, given, check)
    assert taken and refused


@tiers(60, 1000)
def test_any_caption_in_the_graph(cases):
    def check(given):
        captions, trigger, numbers = given
        item = Item(captions, path="x.png", size=(32, 24), **numbers)
        dataset = Dataset((item,), trigger, captioning=Captioning(wildcards=True, shuffle=True))
        assert dataset.texts(0)

    numbers = st.fixed_dictionaries(
        {}, optional={"repeats": st.integers(), "weight": st.floats(), "label": st.integers()}
    )
    captions = st.one_of(TEXTS, st.lists(TEXTS, max_size=4).map(tuple), st.tuples(st.none()))
    fuzz(cases, st.tuples(captions, TEXTS, numbers), check)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")
@tiers(60, 1500)
def test_any_picture(tmp_path, cases):
    good = []
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        file = io.BytesIO()
        Image.effect_noise((32, 24), 90).save(file, kind)
        good.append(file.getvalue())
    path = tmp_path / "x.png"

    def check(data):
        path.write_bytes(data)
        found = check_image(path)
        assert found.width >= 16 and found.height >= 16

    fuzz(cases, st.one_of(broken(st.sampled_from(good)), st.binary(max_size=60)), check)
