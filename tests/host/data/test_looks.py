# SPDX-License-Identifier: Apache-2.0
"""Looks at datasets before a run: what they count is what the node's dataset has, and what refuses it is named."""

import gc
import os
import shutil
import time

import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.comfy


@pytest.fixture
def folder(comfy):
    """A folder of six pictures under input/, with captions of all kinds."""
    path = comfy / "input" / "looks"
    path.mkdir()
    sizes = [(96, 64), (64, 64), (64, 64), (64, 96), (16, 16), (400, 100)]
    for number, size in enumerate(sizes, 1):
        image = Image.new("RGB", size, (40 * number, 90, 20))
        image.save(path / f"{number}.png")
    shutil.copy(path / "2.png", path / "3.png")
    for number, text in [(1, "a zorb cat"), (2, "a zorb dog"), (3, "a zorb dog"), (4, "a cow")]:
        (path / f"{number}.txt").write_text(text, encoding="utf-8")
    yield path
    shutil.rmtree(path)


def plan(folder="looks", **values):
    from graft.host.data.plan import plan_of

    return plan_of(load(folder, **values))


def load(folder="looks", **values):
    given = {"folder": folder, "caption": "", "trigger": "zorb", "resolution": 64} | values
    return {"node": "GraftLoadImages", "values": given}


def looked(plan, fresh=False, looks=None):
    from graft.host.data.looks import Looks

    looks = looks or Looks()
    name = looks.open(plan, fresh)
    return finished(looks, name)


def finished(looks, name):
    while not (told := looks.advance(name))["done"]:
        pass
    return looks.get(name), told["summary"]


def node_dataset(folder="looks", caption="", allow=True, **more):
    from graft.nodes.dataset import LoadImages

    given = {"recursive": False, "resolution": 64, "crops": 1} | more
    made = LoadImages.execute(folder, caption, "zorb", **given, allow_no_caption=allow)
    return made.args[0]


def kinds(row):
    return {problem["kind"] for problem in row["problems"]}


def test_it_counts_what_the_dataset_of_the_node_has(folder):
    from collections import Counter

    look, summary = looked(plan(allow_no_caption=True))
    dataset = node_dataset()
    sizes = Counter(dataset.size(i) for i in range(len(dataset)))
    assert summary["pictures"] == len(dataset) == 6
    assert {(b["width"], b["height"]): b["pictures"] for b in summary["buckets"]} == dict(sizes)
    assert summary["bucket_count"] == len(sizes)
    assert summary["epoch"] == sum(dataset.repeats)
    assert (summary["captions"], summary["without_caption"]) == (3, 2)
    assert summary["errors"] == []
    rows = look.page(0, 60, False)["rows"]
    assert [row["name"] for row in rows] == [item.name for item in dataset.items]
    assert [tuple(row["bucket"]) for row in rows] == [dataset.size(i) for i in range(6)]
    assert [row["caption"] for row in rows] == [item.caption for item in dataset.items]


def test_each_picture_says_what_is_odd_about_it(folder):
    look, summary = looked(plan(allow_no_caption=True))
    found = {row["name"]: kinds(row) for row in look.page(0, 60, False)["rows"]}
    assert found["1.png"] == {"alone in bucket"}
    assert found["2.png"] == found["3.png"] == {"duplicate", "same caption"}
    assert found["4.png"] == {"no trigger", "alone in bucket"}
    assert {"small", "no caption"} <= found["5.png"]
    assert {"odd shape", "no caption"} <= found["6.png"]
    counted = {row["kind"]: row["pictures"] for row in summary["kinds"]}
    assert counted["duplicate"] == 2 and counted["no trigger"] == 1
    assert summary["odd"] == 6 and summary["is_thorough"]


def test_without_a_caption_the_node_refuses_and_so_it_says(folder):
    with pytest.raises(ValueError, match="2 of 6 images") as refused:
        node_dataset(allow=False)
    look, summary = looked(plan())
    assert summary["errors"] == [str(refused.value)]
    assert summary["pictures"] == 6
    odd = look.page(0, 2, True)["rows"]
    assert [row["name"] for row in odd] == ["5.png", "6.png"]  # what is refused comes first
    assert all(p["is_error"] for row in odd for p in row["problems"] if p["kind"] == "no caption")


def test_pictures_that_cannot_be_read_are_named_with_the_nodes_words(folder):
    (folder / "7.png").write_bytes(b"nothing")
    (folder / "8.jpg").write_bytes(b"")
    whole = (folder / "6.png").read_bytes()
    (folder / "6.png").write_bytes(whole[: len(whole) - 40])
    with pytest.raises(ValueError, match="3 files") as refused:
        node_dataset()
    look, summary = looked(plan(allow_no_caption=True))
    assert summary["errors"] == [str(refused.value)]
    assert (summary["pictures"], summary["refused"]) == (5, 3)
    rows = look.page(0, 60, False)["rows"]
    assert [row["name"] for row in rows[:4]] == ["6.png", "7.png", "8.jpg", "1.png"]
    assert rows[0]["problems"][0]["text"].startswith("is damaged or cut short")
    assert [row["row"] for row in rows[:4]] == [None, None, None, 0]


def test_a_folder_that_is_none(folder):
    for name, said in [("looks/none", "There is no folder"), ("looks", "read only with")]:
        if name == "looks":
            for file in list(folder.iterdir()):
                file.unlink()
            (folder / "inside").mkdir()
        _, summary = looked(plan(name))
        assert said in summary["errors"][0]
        assert summary["pictures"] == 0


@pytest.mark.parametrize(
    "name",
    ["..", "../..", "/etc", "looks/../..", "C:\\", "~", "", "graft-examples/..", "a\0b", "link"],
)
def test_nothing_outside_of_the_folders_for_nodes_is_looked_at(folder, name, tmp_path):
    from graft.nodes.dataset import LoadImages

    Image.new("RGB", (64, 64)).save(tmp_path / "secret.png")
    link = folder.parent / "link"
    link.symlink_to(tmp_path, target_is_directory=True)
    try:
        with pytest.raises(ValueError) as refused:
            LoadImages.execute(name, "a", "", True, 64, 1)
        look, summary = looked(plan(name, caption="a", recursive=True))
    finally:
        link.unlink()
    assert summary["errors"] == [str(refused.value)[:2000]]
    assert look.page(0, 60, False) == {"total": 0, "first": 0, "rows": []}


def test_a_link_put_in_the_place_of_a_picture_shows_nothing(folder, tmp_path):
    from graft.host.data.looks import Gone, Looks

    Image.new("RGB", (64, 64)).save(tmp_path / "secret.png")
    looks = Looks()
    name = looks.open(plan(allow_no_caption=True))
    finished(looks, name)
    assert looks.thumbnail(name, 1)[:2] == b"\xff\xd8"
    (folder / "1.png").unlink()
    (folder / "1.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(Gone):
        looks.thumbnail(name, 0)


def test_hostile_names_and_captions_stay_text_in_a_line(folder):
    hostile = "<img src=x onerror=alert(1)>\u202egpj.exe\x1b[31m"
    (folder / "1.txt").write_text(hostile + "\n[[click|javascript:alert(1)]]", encoding="utf-8")
    if os.name != "nt":
        shutil.copy(folder / "4.png", folder / "<b>\n\u202e9.png")
    look, _ = looked(plan(caption="a zorb cat"))
    rows = {row["row"]: row for row in look.page(0, 60, False)["rows"]}
    row = next(row for row in rows.values() if row["name"] == "1.png")
    assert row["caption"].startswith("<img src=x onerror=alert(1)>\\u202egpj.exe\\x1b[31m [[click")
    if os.name != "nt":
        assert "<b>\\n\\u202e9.png" in {row["name"] for row in rows.values()}


def test_pages_hold_what_is_asked_for_and_no_more(folder):
    look, summary = looked(plan(allow_no_caption=True))
    pages = [look.page(first, 4, False) for first in (0, 4, 8)]
    assert [len(page["rows"]) for page in pages] == [4, 2, 0]
    assert {page["total"] for page in pages} == {6}
    assert [row["row"] for page in pages for row in page["rows"]] == list(range(6))
    assert len(look.page(0, 10**9, False)["rows"]) == 6
    assert look.page(0, 60, True)["total"] == summary["odd"]


def test_a_picture_in_full(folder):
    (folder / "1.txt").write_text("a zorb cat " + "very " * 600 + "big", encoding="utf-8")
    look, _ = looked(plan(allow_no_caption=True))
    picture = look.picture(0)
    assert len(look.page(0, 1, False)["rows"][0]["caption"]) == 240
    assert picture["texts"][0].endswith("very big") and len(picture["texts"][0]) == 3014
    assert picture["bytes"] == (folder / "1.png").stat().st_size
    with pytest.raises(IndexError):
        look.picture(6)


def test_looking_again_sees_what_changed(folder):
    from graft.host.data.looks import Looks

    looks = Looks()
    first, before = looked(plan(allow_no_caption=True), looks=looks)
    again, _ = looked(plan(allow_no_caption=True), looks=looks)
    assert again is first
    Image.new("RGB", (64, 64), "white").save(folder / "9.png")
    fresh, after = looked(plan(allow_no_caption=True), looks=looks)
    assert (before["pictures"], after["pictures"]) == (6, 7)
    assert fresh is not first
    (folder / "1.txt").write_text("a zorb horse", encoding="utf-8")
    other, _ = looked(plan(allow_no_caption=True, resolution=32), looks=looks)
    assert other.page(0, 1, False)["rows"][0]["caption"] == "a zorb horse"


def test_every_look_at_a_folder_that_changed_is_a_new_one(folder):
    from graft.host.data.looks import Looks
    from graft.host.data.plan import plan_of

    looks = Looks()
    one = plan(allow_no_caption=True)
    other = plan_of({"node": "GraftBuckets", "datasets": [load(allow_no_caption=True)]})
    for each in (one, other):
        looked(each, looks=looks)
    Image.new("RGB", (64, 64), "white").save(folder / "9.png")
    names = [looks.open(each) for each in (one, other)]  # the second before the first one has read
    assert [finished(looks, name)[1]["pictures"] for name in names] == [7, 7]


def test_another_resolution_reads_no_file_again(folder, monkeypatch):
    from graft.host.data import folder_look
    from graft.host.data.looks import Looks

    looks = Looks()
    looked(plan(allow_no_caption=True), looks=looks)

    def fails(*given):
        raise AssertionError(given)

    monkeypatch.setattr(folder_look, "read_entry", fails)
    _, summary = looked(plan(allow_no_caption=True, resolution=32, trigger="cow"), looks=looks)
    assert summary["pictures"] == 6 and summary["resolution"] == 32
    with pytest.raises(AssertionError):
        looked(plan(allow_no_caption=True, resolution=32), True, looks)


def test_a_folder_that_is_gone_is_said_to_be_gone(folder):
    from graft.host.data.looks import Looks

    looks = Looks()
    looked(plan(allow_no_caption=True), looks=looks)
    folder.rename(folder.with_name("looks away"))
    try:
        _, summary = looked(plan(allow_no_caption=True), looks=looks)
    finally:
        folder.with_name("looks away").rename(folder)
    assert "There is no folder 'looks'" in summary["errors"][0]


def test_what_it_decoded_the_node_need_not_decode(folder, monkeypatch):
    from graft.host.data import picture_index

    old = time.time() - 60
    for file in folder.glob("*.png"):
        os.utime(file, (old, old))
    looked(plan(allow_no_caption=True))

    def fails(path):
        raise AssertionError(path)

    monkeypatch.setattr(picture_index, "check_image", fails)
    assert len(node_dataset()) == 6


def test_many_pictures_are_measured_by_their_headers(folder, monkeypatch):
    from graft.host.data import folder_look, look

    for module in (folder_look, look):
        monkeypatch.setattr(module, "MOST_DECODED", 3)
    whole = (folder / "6.png").read_bytes()
    (folder / "6.png").write_bytes(whole[: len(whole) - 40])
    found, summary = looked(plan(allow_no_caption=True))
    assert summary["pictures"] == 6 and not summary["is_thorough"]  # decoding would refuse one
    assert all("duplicate" not in kinds(row) for row in found.page(0, 60, False)["rows"])


def test_further_nodes_change_what_is_looked_at(folder):
    from graft.host.data.plan import plan_of

    one = load(allow_no_caption=True)
    squares = {"node": "GraftBuckets", "values": {"buckets": False}, "datasets": [one]}
    _, summary = looked(plan_of(squares))
    assert {(b["width"], b["height"]) for b in summary["buckets"]} == {(64, 64), (16, 16)}
    told = {"node": "GraftCaptions", "values": {"prefix": "zorb, "}, "datasets": [squares]}
    look, summary = looked(plan_of(told))
    assert summary["without_caption"] == 0
    assert look.page(3, 1, False)["rows"][0]["caption"] == "zorb, a cow"
    joined = {
        "node": "GraftJoinDatasets",
        "values": {"repeats": "1, 3"},
        "datasets": [told, load("graft-examples/shape")],
    }
    _, summary = looked(plan_of(joined))
    assert [part["source"] for part in summary["parts"]] == ["looks", "graft-examples/shape"]
    assert summary["epoch"] == 6 + 3 * summary["parts"][1]["pictures"]


@pytest.mark.parametrize(
    "said",
    [
        None,
        [],
        {"node": "GraftTrain"},
        {"node": []},
        {"node": "GraftLoadImages"},
        {"node": "GraftLoadImages", "values": {"folder": 3}},
        {"node": "GraftLoadImages", "values": {"folder": "looks", "resolution": 10**9}},
        {"node": "GraftLoadImages", "values": {"folder": "looks", "resolution": True}},
        {"node": "GraftLoadImages", "values": {"folder": "looks", "crops": "1"}},
        {"node": "GraftLoadImages", "values": {"folder": "looks"}, "datasets": [{}]},
        {"node": "GraftBuckets", "values": {}, "datasets": []},
        {"node": "GraftBuckets", "values": [], "datasets": [load()]},
        {"node": "GraftJoinDatasets", "datasets": [load()] * 5},
        {"node": "GraftJoinDatasets", "datasets": [{"node": "GraftClassImages"}]},
        {"node": "GraftCaptions", "values": {"dropout": 10**400}, "datasets": [load()]},
    ],
)
def test_a_plan_of_something_else_is_refused(said):
    from graft.host.data.plan import plan_of

    with pytest.raises(ValueError):
        plan_of(said)


def test_a_plan_has_a_limit():
    from graft.host.data.plan import plan_of

    deep = load()
    for _ in range(70):
        deep = {"node": "GraftBuckets", "datasets": [deep]}
    with pytest.raises(ValueError, match="more than 64 nodes"):
        plan_of(deep)


def test_a_node_shows_its_dataset_as_long_as_it_is_kept():
    from graft.host.data.looks import Gone, Looks
    from graft.nodes.dataset import ImagesToDataset

    made = ImagesToDataset.execute([torch.rand(3, 64, 96, 3)], ["a\nb\nc"], [""], [64], [1])
    (row,) = made.ui["graft_dataset"]
    looks = Looks()
    look, summary = finished(looks, row["id"])
    assert summary["pictures"] == 3
    assert [row["name"] for row in look.page(0, 9, False)["rows"]] == [
        "image 1",
        "image 2",
        "image 3",
    ]
    assert looks.thumbnail(row["id"], 2)[:2] == b"\xff\xd8"
    del made
    gc.collect()
    with pytest.raises(Gone):
        look.page(0, 9, False)
    with pytest.raises(Gone):
        looks.thumbnail(row["id"], 1)


def test_a_split_and_class_images_show_all_they_have(folder):
    from dataclasses import replace

    from graft.host.data.shown import shown
    from graft.nodes.dataset_parts import SplitDataset

    dataset = node_dataset()
    made = SplitDataset.execute(dataset, 0.3, 0)
    assert [row["name"] for row in made.ui["graft_dataset"]] == ["training", "held out"]
    rows = shown(replace(dataset, classes=node_dataset()))["graft_dataset"]
    assert [row["name"] for row in rows] == ["", "class images"]


def test_only_so_many_looks_and_thumbnails_are_kept(folder, monkeypatch):
    from graft.host.data import looks as module

    monkeypatch.setattr(module, "MOST_LOOKS", 2)
    looks = module.Looks()
    names = [looks.open(plan(allow_no_caption=True, crops=n)) for n in (1, 2, 3)]
    with pytest.raises(module.Gone):
        looks.get(names[0])
    finished(looks, names[2])
    size = len(looks.thumbnail(names[2], 0))
    monkeypatch.setattr(module, "THUMBNAIL_BYTES", 2 * size + 40)
    for index in range(6):
        looks.thumbnail(names[2], index)
    assert len(looks._thumbnails) <= 3
    assert looks._bytes == sum(map(len, looks._thumbnails.values())) <= 2 * size + 40


@pytest.mark.slow
def test_twenty_thousand_pictures(comfy):
    from graft.host.data.looks import Looks

    path = comfy / "input" / "crowd"
    path.mkdir()
    try:
        Image.effect_noise((512, 512), 60).save(path / "0.jpg")
        for number in range(1, 20_000):
            os.link(path / "0.jpg", path / f"{number}.jpg")
            (path / f"{number}.txt").write_text(f"a zorb cat {number}", encoding="utf-8")
        looks = Looks()
        start = time.monotonic()
        look, summary = looked(plan("crowd", caption="a zorb cat"), looks=looks)
        assert summary["pictures"] == 20_000 and time.monotonic() - start < 120
        start = time.monotonic()
        page = look.page(19_900, 60, False)
        assert len(page["rows"]) == 60 and time.monotonic() - start < 0.5
        start = time.monotonic()
        looked(plan("crowd", caption="a zorb cat", resolution=512), looks=looks)
        assert time.monotonic() - start < 60  # no file is opened again
    finally:
        shutil.rmtree(path)
