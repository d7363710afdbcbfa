# SPDX-License-Identifier: Apache-2.0
"""The dataset panel in a browser: it shows what a folder holds before anything is run, and what nodes made after."""

import shutil

import pytest
from PIL import Image

HOSTILE = "<img src=x onerror=window.broken=1> a zorb cat"
SIZES = [(96, 64), (64, 64), (64, 64), (64, 96), (16, 16), (400, 100)]
PANEL = "(app.rootGraph ?? app.graph).getNodeById({id}).graftPictures"


@pytest.fixture
def folder(web_server):
    """Six pictures with captions of all kinds, one of them a page's element, and a file that is none."""
    path = web_server.input / "panel"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    for number, size in enumerate(SIZES, 1):
        image = Image.effect_noise(size, 60).convert("RGB")
        image.paste((40 * number, 90, 20), (8, 8, size[0] - 4, size[1] - 4))
        image.save(path / f"{number}.png")
    shutil.copy(path / "2.png", path / "3.png")
    (path / "7.jpg").write_bytes(b"nothing")
    captions = {1: HOSTILE, 2: "a zorb dog on a lawn", 3: "a zorb dog on a lawn", 4: "a cow"}
    for number, text in captions.items():
        (path / f"{number}.txt").write_text(text, encoding="utf-8")
    yield path
    shutil.rmtree(path)


def node(id_, type_, values, inputs=(), outputs=(), at=(0, 0), **more):
    return {
        "id": id_, "type": type_, "pos": list(at), "size": [360, 700], "flags": {}, "order": id_, "mode": 0,
        "inputs": list(inputs), "outputs": list(outputs), "properties": {}, "widgets_values": list(values),
    } | more  # fmt: skip


def loader(folder="panel", caption="", is_open=True, **more):
    values = [folder, caption, "zorb", False, 64, 1, "plain", "none", False, True]
    outputs = [
        {"name": "DATASET", "type": "GRAFT_DATASET", "links": more.pop("links", [])},
        {"name": "report", "type": "STRING", "links": []},
    ]
    properties = {"graft_pictures": is_open}
    return node(1, "GraftLoadImages", values, outputs=outputs, properties=properties, **more)


def graph(*nodes, links=()):
    counts = {"last_node_id": 9, "last_link_id": 9, "groups": [], "version": 0.4}
    return {"nodes": list(nodes), "links": list(links)} | counts


def buckets(is_open=True):
    socket = {"name": "dataset", "type": "GRAFT_DATASET", "link": 1}
    values = [False, 0, 0, 0, False, False, "center", 0.75]
    given = {"at": (500, 0), "inputs": [socket], "properties": {"graft_pictures": is_open}}
    return node(2, "GraftBuckets", values, **given)


CHAIN = [[1, 1, 0, 2, 0, "GRAFT_DATASET"]]


def head(page, id_=1):
    return page.evaluate(f"() => {PANEL.format(id=id_)}.toggle.textContent")


def wait_for(page, text, id_=1):
    code = f"(text) => {PANEL.format(id=id_)}?.toggle.textContent.includes(text)"
    page.wait(code, text, timeout_s=30)


def cells(page, id_=1):
    """What each picture that is seen says, in the order of the grid."""
    return page.evaluate(
        f"""() => [...{PANEL.format(id=id_)}.grid.cells].sort((a, b) => a[0] - b[0]).map(([place, cell]) => ({{
            name: cell.querySelector(".graft-set-name")?.textContent, state: cell.dataset.state,
            caption: cell.querySelector(".graft-set-caption")?.textContent,
            badge: cell.querySelector(".graft-set-badge")?.textContent,
            width: cell.querySelector("img")?.naturalWidth ?? 0,
            images: cell.querySelectorAll("img").length }}))"""
    )


def wait_for_thumbnails(page, count, id_=1):
    page.wait(
        f"""(count) => [...{PANEL.format(id=id_)}.root.querySelectorAll(".graft-set-cell img")]
            .filter((image) => image.complete && image.naturalWidth).length >= count""",
        count,
        timeout_s=30,
    )


def test_a_folder_is_shown_before_anything_is_run(comfy_page, folder):
    page = comfy_page
    page.load(graph(loader()))
    wait_for(page, "6 pictures, 5 buckets, 1 cannot be used, 2 without caption")
    wait_for_thumbnails(page, 6)
    shown = cells(page)
    assert [cell["name"] for cell in shown] == ["7.jpg", *(f"{n}.png" for n in range(1, 7))]
    assert [cell["state"] for cell in shown] == ["error"] + ["odd"] * 6
    assert shown[1]["caption"] == HOSTILE and shown[1]["images"] == 1  # text, and no element
    assert [cell["width"] for cell in shown] == [0, 96, 64, 64, 64, 16, 128]
    assert shown[3]["badge"] == "duplicate +1"
    assert page.evaluate("() => window.broken") is None
    said = page.evaluate(f"() => {PANEL.format(id=1)}.said.textContent")
    assert "1 file in 'panel' cannot be used" in said and "7.jpg" in said
    rows = page.evaluate(
        f"() => [...{PANEL.format(id=1)}.buckets.children].map((row) => row.textContent)"
    )
    assert rows[0] == "64 x 642" and len(rows) == 5


def test_problems_only(comfy_page, folder):
    page = comfy_page
    for number in range(10, 14):
        Image.effect_noise((64, 64), 40 + number).convert("RGB").save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a zorb cat {number}", encoding="utf-8")
    page.load(graph(loader()))
    wait_for(page, "10 pictures")
    assert page.evaluate(f"() => {PANEL.format(id=1)}.source.total") == 11
    page.evaluate(f"() => {PANEL.format(id=1)}.odd.click()")
    rows = f"[...{PANEL.format(id=1)}.source.pages.values()].flat()"
    page.wait(f"() => {rows}.length === 7")
    names = page.evaluate(f"() => {rows}.map((row) => row.name)")
    assert names == ["7.jpg", *(f"{number}.png" for number in range(1, 7))]
    page.wait(f"() => {PANEL.format(id=1)}.grid.cells.get(0)?.dataset.name === '7.jpg'")
    assert "problems only (7)" in page.evaluate(f"() => {PANEL.format(id=1)}.filterRow.textContent")


def test_one_picture_in_full_and_what_changed_on_the_disk(comfy_page, folder):
    page = comfy_page
    long = "a zorb cat " + "on a very long lawn " * 40
    (folder / "4.txt").write_text(long, encoding="utf-8")
    page.load(graph(loader()))
    wait_for(page, "6 pictures")
    page.wait(f"() => {PANEL.format(id=1)}.source.row(4)?.name === '4.png'")
    page.evaluate(f"() => {PANEL.format(id=1)}.grid.cells.get(4).click()")
    detail = f"{PANEL.format(id=1)}.detail"
    page.wait(f"() => {detail}.querySelector('.graft-set-text')")
    text = page.evaluate(f"() => {detail}.textContent")
    assert long.strip() in text and "64 x 96 px, trained at" in text
    page.page.keyboard.press("Escape")
    page.wait(f"() => {detail}.childElementCount === 0")
    Image.new("RGB", (64, 64), "white").save(folder / "8.png")
    (folder / "7.jpg").unlink()
    page.evaluate(f"() => {PANEL.format(id=1)}.refresh.click()")
    wait_for(page, "7 pictures, 5 buckets, 3 without caption")


def test_it_follows_the_widgets_and_further_nodes(comfy_page, folder):
    page = comfy_page
    page.load(graph(loader(links=[1]), buckets(), links=CHAIN))
    wait_for(page, "6 pictures, 5 buckets")
    wait_for(page, "6 pictures, 2 buckets", 2)
    page.set(1, "resolution", 32)
    wait_for(page, "6 pictures, 2 buckets", 2)
    page.wait(f"() => {PANEL.format(id=2)}.buckets.textContent.includes('32 x 32')")
    page.set(1, "folder", "graft-examples/shape")
    wait_for(page, "12 pictures", 1)
    wait_for(page, "12 pictures", 2)
    assert "pictures" not in page.prompt()["1"]["inputs"]
    saved = page.serialized()["nodes"][0]["widgets_values"]
    assert len(saved) == 10


def test_a_hidden_panel_asks_for_nothing(comfy_page, folder):
    page = comfy_page
    before = len(page.asked)
    page.load(graph(loader(is_open=False)))
    page.page.wait_for_timeout(1500)
    assert not [path for path in page.asked[before:] if "/graft/datasets" in path]
    assert head(page).endswith("Pictures")
    size = page.evaluate("() => app.graph.getNodeById(1).size[1]")
    page.evaluate(f"() => {PANEL.format(id=1)}.toggle.click()")
    wait_for(page, "6 pictures")
    assert page.serialized()["nodes"][0]["properties"]["graft_pictures"] is True
    page.evaluate(f"() => {PANEL.format(id=1)}.toggle.click()")
    page.page.wait_for_timeout(300)
    assert abs(page.evaluate("() => app.graph.getNodeById(1).size[1]") - size) < 40


def test_what_a_node_makes_is_shown_when_it_ran_and_after_a_reload(new_page, folder):
    page = new_page()
    (folder / "7.jpg").unlink()
    (folder / "3.png").unlink()  # equal pictures stay on one side
    socket = {"name": "dataset", "type": "GRAFT_DATASET", "link": 1}
    held_out = node(
        2, "GraftSplitDataset", [0.3, 0, "fixed"], inputs=[socket], at=(500, 0),
        properties={"graft_pictures": True},
        outputs=[{"name": n, "type": t, "links": [2] if n == "report" else []}
                 for n, t in (("training", "GRAFT_DATASET"), ("held out", "GRAFT_DATASET"), ("report", "STRING"))],
    )  # fmt: skip
    told = node(
        3, "PreviewAny", [], at=(1000, 0),
        inputs=[{"name": "source", "type": "*", "link": 2}],
    )  # fmt: skip
    page.load(graph(loader(links=[1]), held_out, told, links=[*CHAIN, [2, 2, 2, 3, 0, "STRING"]]))
    page.wait(f"() => {PANEL.format(id=2)}.status.textContent.includes('when the graph was run')")
    page.queue()
    page.page.wait_for_timeout(500)
    page.wait_idle()
    wait_for(page, "3 pictures", 2)
    page.evaluate(
        f"""() => {{ const choice = {PANEL.format(id=2)}.choice;
            choice.value = "1"; choice.dispatchEvent(new Event("change")); }}"""
    )
    wait_for(page, "2 pictures", 2)
    page.reload()
    page.wait(f"() => !!{PANEL.format(id=2)}", timeout_s=30)
    wait_for(page, "3 pictures", 2)


def test_a_new_node_shows_its_folder_and_a_wire_hides_it(comfy_page, folder):
    page = comfy_page
    page.evaluate(
        """() => {
            const node = LiteGraph.createNode("GraftLoadImages");
            app.graph.add(node);
            node.widgets.find((widget) => widget.name === "folder").value = "panel";
            node.widgets.find((widget) => widget.name === "resolution").value = 64;
        }"""
    )
    id_ = page.evaluate("() => app.graph.nodes[0].id")
    wait_for(page, "6 pictures", id_)
    assert "3 of 7 images" in page.evaluate(f"() => {PANEL.format(id=id_)}.said.textContent")
    # A caption that comes over a wire is known only when the graph runs.
    socket = {"name": "caption", "type": "STRING", "widget": {"name": "caption"}, "link": 3}
    text = node(
        5, "PrimitiveString", ["a zorb cat"],
        outputs=[{"name": "STRING", "type": "STRING", "links": [3]}],
    )  # fmt: skip
    page.load(graph(loader(inputs=[socket], at=(500, 0)), text, links=[[3, 5, 0, 1, 0, "STRING"]]))
    page.wait(
        f"() => {PANEL.format(id=1)}.status.textContent.includes('caption comes over a wire')"
    )


def test_a_dataset_that_is_gone_and_a_server_that_is_away(plain_page):
    code = """async (m, answers) => {
        const asked = [];
        const source = new m.DatasetSource(async (path, body) => { asked.push([path, body]); return answers.shift(); });
        const results = [await source.look({ id: "x" }, () => {}), await source.load(0), await source.picture(3)];
        const told = [];
        results.push(await source.look({ dataset: 1 }, (one) => told.push(one.read)), source.total);
        results.push(await source.load(0), await source.load(0), source.row(1), source.row(61) ?? null);
        const dropped = source.look({ dataset: 2 }, () => {});
        source.clear();
        results.push(await dropped);
        return [results, asked, told];
    }"""
    done = {"id": "y", "done": True, "summary": {"pictures": 2, "refused": 1, "odd": 1}}
    answers = [None, {"id": "y", "done": False, "read": 5}, done, {"rows": ["a", "b", "c"]}, done]
    results, asked, told = plain_page.module("dataset/source", code, answers)
    assert results == ["gone", False, None, "done", 3, True, False, "b", None, "dropped"]
    assert told == [5]
    assert [path for path, _ in asked] == ["/graft/datasets"] * 3 + [
        "/graft/datasets/y/pictures?first=0&count=60",
        "/graft/datasets",
    ]
    assert asked[2][1] == {"id": "y"}


def test_thousands_of_pictures_are_a_few_elements(comfy_page, web_server):
    page = comfy_page
    path = web_server.input / "many"
    path.mkdir()
    try:
        Image.effect_noise((64, 64), 60).save(path / "0.png")
        for number in range(1, 3000):
            shutil.copy(path / "0.png", path / f"{number}.png")
        page.load(graph(loader("many", caption="a zorb cat")))
        wait_for(page, "3,000 pictures")
        wait_for_thumbnails(page, 3)
        page.evaluate(f"() => {{ {PANEL.format(id=1)}.grid.box.scrollTop = 1e9; }}")
        page.wait(f"() => {PANEL.format(id=1)}.source.row(2999)")
        page.wait(
            f"() => [...{PANEL.format(id=1)}.grid.cells.values()].some((c) => c.dataset.name === '2999.png')"
        )
        assert page.evaluate(f"() => {PANEL.format(id=1)}.grid.cells.size") < 60
        said = page.evaluate(f"() => {PANEL.format(id=1)}.said.textContent")
        assert "not decoded here" in said
    finally:
        shutil.rmtree(path)


def test_cells_of_a_million_pictures_stay_within_what_a_browser_can_scroll(plain_page):
    # 4 columns of 92 px and gaps: (4 * 92 + 3 * 6) = 386 px; a row is 92 + 3 * 13 + 6 = 137 px and a gap.
    code = """(m) => { const grid = m.gridOf(386, 1_000_000);
        return [grid, m.seenOf(grid, 1_000_000, 0, 300), m.seenOf(grid, 1_000_000, grid.total - 300, 300)]; }"""
    grid, first, last = plain_page.module("dataset/layout", code)
    assert (grid["columns"], grid["rows"], grid["height"]) == (4, 250_000, 137)
    assert grid["total"] == 15_000_000
    assert (first["first"], first["last"]) == (
        0,
        16,
    )  # 300 px are 2.1 rows of 143 px: 3, and 1 more
    assert last["last"] == 1_000_000
    # The last row ends at the end of what is scrolled.
    rows = (last["last"] - last["first"]) / 4
    assert abs(last["offset"] + rows * 143 - 15_000_000) < 1
