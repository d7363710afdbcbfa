# SPDX-License-Identifier: Apache-2.0
"""The live panel of the training nodes, in the page of a real server that trains graft-mini."""

import json
import re
import time

import pytest

from tests.browser import graphs
from tests.browser.graphs import PREVIEW, TRAIN, WORKFLOW
from tests.host.workflow import to_prompt

HOSTILE = '<img src=x onerror="window.broken=1"><b>dax</b> &amp; {{x}}'
STEPS = 4000
# The element of a node's panel, through its widget: the page may have others.
PANEL = """(id) => {
    let graph = app.rootGraph ?? app.graph, node = null;
    for (const part of String(id).split(":")) { node = graph.getNodeById(Number(part)); graph = node?.subgraph; }
    return node?.widgets?.find((widget) => widget.name === "training")?.element?.panel;
}"""


def panel(page, code, node=TRAIN, value=None):
    """JavaScript about a node's panel; ``panel`` is undefined where there is none."""
    return page.evaluate(
        f"([id, value]) => {{ const panel = ({PANEL})(id); return ({code})(panel, value); }}",
        [node, value],
    )


def wait_panel(page, code, node=TRAIN, timeout_s=120):
    return page.wait(
        f"(id) => {{ const panel = ({PANEL})(id); return panel && ({code})(panel); }}",
        node,
        timeout_s,
    )


def record(page, node=TRAIN):
    """What the panel shows: run, state, steps and losses."""
    code = """(panel) => panel?.record && ({
        run: panel.record.run, state: panel.record.state, total: panel.record.total,
        step: panel.record.columns.step, loss: panel.record.columns.loss, memory: panel.record.columns.memory,
        kinds: panel.record.events.map((event) => event.kind), text: panel.root.textContent })"""
    return panel(page, code, node)


def say(page, message):
    """Hand the page a message, as the server would."""
    message = {"v": 1, "prompt_id": None, "workflow_id": WORKFLOW, "total": 10} | message
    page.evaluate(
        """async (message) => {
            const { api } = await import("/scripts/api.js");
            api.dispatchCustomEvent("graft.run", message);
            await new Promise((done) => setTimeout(done, 60));
        }""",
        message,
    )


def steps(*numbers):
    return [[n, 1 / n, 1e-4, 0.5, 0.1, 1.5] for n in numbers]


def prepare(page, seed, count=STEPS, every=4, **widgets):
    """A small training that nobody ran before."""
    page.load(graphs.training())
    given = {"steps": count, "batch_size": 1, "preserve": 0.0, "schedule": "constant"} | widgets
    for name, value in ({"seed": seed} | given).items():
        page.set(TRAIN, name, value)
    page.set(PREVIEW, "every", every)
    page.set(PREVIEW, "steps", 2)
    page.set(PREVIEW, "prompts", f"{HOSTILE}\na red dax")


def traffic(page):
    """Starts noting what the server sends this page: (seconds, type, bytes)."""
    heard = []

    def listen(socket):
        def note(frame):
            text = frame if isinstance(frame, str) else ""
            kind = json.loads(text).get("type", "") if text else "binary"
            heard.append((time.monotonic(), kind, len(frame)))

        socket.on("framereceived", note)

    page.page.on("websocket", listen)
    return heard


def test_a_run_is_seen_through_a_reload_and_ends_when_asked(comfy_page, new_page, record_property):
    page = comfy_page
    heard = traffic(page)
    prepare(page, seed=101)
    page.queue()
    wait_panel(page, "(panel) => panel.record?.columns.step.length >= 3")
    before = record(page)
    assert before["state"] == "running" and before["step"][:3] == [1, 2, 3]
    assert before["memory"][-1] > 0.05 and "0 / 4,000" not in before["text"]
    wait_panel(page, "(panel) => panel.chart.axes !== null")  # the curve is drawn, and grows
    wait_panel(page, f"(panel) => panel.record.columns.step.length > {len(before['step'])}")

    page.reload()  # the workflow comes back by itself, with the run's id in it
    wait_panel(page, f"(panel) => panel.record?.columns.step.length > {len(before['step'])}")
    other = new_page()  # another client, with the same workflow
    other.load(graphs.training())
    wait_panel(other, "(panel) => panel.record?.columns.step.length > 0")

    click(page, "Save now")
    wait_panel(page, "(panel) => panel.record.events.some((event) => event.kind === 'saved')")
    begun = time.monotonic()
    page.page.wait_for_timeout(4000)
    check_traffic([one for one in heard if one[0] > begun], record_property)
    click(page, "Finish now")
    for one in (page, other):
        wait_panel(one, "(panel) => panel.record.state === 'finished'")
    page.wait_idle()
    check_whole(page), check_whole(other)
    check_samples(page)
    saved = [e for e in history(page)["events"] if e["kind"] == "saved"]
    assert (page.server.output / saved[0]["path"]).is_file()
    assert page.evaluate("() => window.broken") is None


def click(page, text):
    page.page.locator(".graft-panel button", has_text=text).first.dispatch_event("click")


def history(page):
    return page.server.get(f"/graft/runs/{record(page)['run']}")


def check_whole(page):
    """The page has every step of the server's history, once."""
    shown, known = record(page), history(page)
    assert shown["step"] == list(range(1, len(known["points"]) + 1))
    assert shown["loss"] == [row[2] for row in known["points"]]
    assert shown["kinds"] == [event["kind"] for event in known["events"]]


def check_traffic(heard, record_property):
    """Below 10 messages of ours and 20 kB a second, with all that the host sends because of us."""
    seconds = max(1.0, heard[-1][0] - heard[0][0]) if heard else 1.0
    runs = sum(kind == "graft.run" for _, kind, _ in heard)
    size = sum(size for *_, size in heard)
    record_property("messages/s to a client", runs / seconds)
    record_property("kB/s to a client", size / seconds / 1e3)
    assert 0 < runs / seconds < 10 and size / seconds < 20_000


def check_samples(page):
    """Thumbnails are pictures of this server; one opens in full size, beside the first."""
    loaded = "(panel) => [...panel.root.querySelectorAll('.graft-thumb img')].every((one) => one.naturalWidth > 0)"
    wait_panel(page, loaded)
    count = panel(page, "(panel) => panel.root.querySelectorAll('.graft-thumb').length")
    assert count == sum(kind == "sample" for kind in record(page)["kinds"]) >= 2
    title = panel(page, "(panel) => panel.root.querySelector('.graft-thumb').title")
    assert title == f"step 0\n{HOSTILE}"
    panel(page, "(panel) => [...panel.root.querySelectorAll('.graft-thumb')].at(-1).click()")
    page.wait(
        "() => [...document.querySelectorAll('.graft-stage img')].every((one) => one.naturalWidth > 0)"
    )
    seen = "() => document.querySelector('.graft-viewer').innerText"
    assert HOSTILE in page.evaluate(seen) and "1 of 2" in page.evaluate(seen)
    page.page.keyboard.press("ArrowDown")
    assert "a red dax" in page.evaluate(seen)
    box = page.page.locator(".graft-stage").bounding_box()
    page.page.mouse.click(box["x"] + box["width"] / 4, box["y"] + 40)
    clip = page.evaluate("() => document.querySelectorAll('.graft-stage img')[1].style.clipPath")
    assert clip.startswith("inset(0") and "75%" in clip
    page.page.keyboard.press("Delete")  # of the graph, not of the viewer
    page.page.keyboard.press("Escape")
    assert page.page.locator(".graft-viewer").count() == 0
    assert page.evaluate(f"() => !!(app.rootGraph ?? app.graph).getNodeById({TRAIN})")


def test_an_error_and_an_interrupt_are_told_and_the_next_run_works(comfy_page):
    page = comfy_page
    prepare(page, seed=102, learning_rate=1.0, every=100_000)
    page.queue()
    wait_panel(page, "(panel) => panel.record?.state === 'error'")
    shown = record(page)
    assert "stopped by an error" in shown["text"] and "learning" in shown["text"]
    page.wait_idle()
    page.page.keyboard.press("Escape")  # the host's own dialog

    prepare(page, seed=103, every=100_000)
    page.queue()
    wait_panel(page, "(panel) => panel.record?.state === 'running' && panel.record.step >= 2")
    page.server.interrupt()
    wait_panel(page, "(panel) => panel.record.state === 'interrupted'")
    page.wait_idle()
    check_whole(page)
    stopped = record(page)["step"][-1]

    page.queue()  # goes on where it was, in the same curve
    wait_panel(
        page, f"(panel) => panel.record.state === 'running' && panel.record.step > {stopped}"
    )
    click(page, "Finish now")
    wait_panel(page, "(panel) => panel.record.state === 'finished'")
    page.wait_idle()
    check_whole(page)


def test_a_workflow_shows_its_last_run_again_after_the_server_was_started_anew(comfy_page):
    """The server knows nothing of it any more but the file."""
    page, run = comfy_page, "a5" * 16
    folder = page.server.output / "graft" / run
    folder.mkdir(parents=True, exist_ok=True)
    events = [{"seq": 4, "kind": "ended", "step": 3, "state": "done", "text": "the report"}]
    head = {"v": 1, "run": run, "seq": 4, "first": 1, "node": "5", "workflow_id": WORKFLOW}
    head |= {
        "prompt_id": None,
        "state": "done",
        "text": "the report",
        "step": 3,
        "total": 3,
        "facts": {},
    }
    points = [
        [n + 1, *row[:-1]] for n, row in enumerate(steps(1, 2, 3), 1)
    ]  # of a version without memory
    text = json.dumps(head | {"points": points, "events": events})
    (folder / "run.json").write_text(text, encoding="utf-8")
    graph = graphs.training(workflow_id="0d2f7c4e-1111-4222-8333-444455556666")
    train = next(node for node in graph["nodes"] if node["id"] == TRAIN)
    train["properties"] |= {"graft_run": run, "graft_view": {"curve": "lr", "isLog": True}}
    page.load(graph)
    wait_panel(page, "(panel) => panel.record?.state === 'done'", timeout_s=20)
    shown = record(page)
    assert shown["step"] == [1, 2, 3] and "the report" in shown["text"] and "done" in shown["text"]
    assert panel(page, "(panel) => [panel.curve, panel.isLog]") == ["lr", True]
    page.load(graph | {"id": "0d2f7c4e-1111-4222-8333-444455557777"})  # a copy remembers it, too
    wait_panel(page, "(panel) => panel.record?.state === 'done'", timeout_s=20)


def test_each_node_and_each_workflow_has_its_own_run(comfy_page):
    page = comfy_page
    page.load(graphs.two_trainings())
    head = {"seq": 1, "kind": "start", "step": 0, "facts": {}}
    first, second, elsewhere = ("b" * 31 + digit for digit in "123")
    say(page, head | {"run": first, "node": "5"})
    say(page, head | {"run": second, "node": "15"})
    say(page, head | {"run": elsewhere, "node": "5", "workflow_id": "of-another-tab"})
    say(page, {"run": second, "node": "15", "seq": 2, "kind": "progress", "points": steps(1, 2)})
    assert (record(page)["run"], record(page, 15)["run"]) == (first, second)
    assert (record(page)["step"], record(page, 15)["step"]) == ([], [1, 2])
    saved = {node["id"]: node["properties"].get("graft_run") for node in page.serialized()["nodes"]}
    assert (saved[5], saved[15]) == (first, second)
    page.load(
        graphs.training(workflow_id="of-another-tab")
    )  # it ran while its workflow was not open
    say(page, {"run": elsewhere, "node": "5", "seq": 2, "kind": "progress", "points": steps(1),
               "workflow_id": "of-another-tab"})  # fmt: skip
    assert record(page)["run"] == elsewhere and record(page)["step"] == [1]


def test_a_node_in_a_subgraph_has_its_run(comfy_page):
    page = comfy_page
    page.load(graphs.training())
    before = {"run": "c0" * 16, "node": "5"}
    say(page, before | {"seq": 1, "kind": "start", "step": 0})
    say(page, before | {"seq": 2, "kind": "ended", "step": 0, "state": "done", "text": ""})
    outer = page.evaluate(
        """(id) => {
            const graph = app.rootGraph ?? app.graph;
            const { node } = graph.convertToSubgraph(new Set([graph.getNodeById(id)]));
            return node.id;
        }""",
        TRAIN,
    )
    inner = f"{outer}:{TRAIN}"
    run = "c" * 32
    assert record(page, inner)["run"] == before["run"]  # it moved with the node
    workflow = page.evaluate("() => (app.rootGraph ?? app.graph).id")
    say(
        page,
        {"run": run, "node": inner, "seq": 1, "kind": "start", "step": 0, "workflow_id": workflow},
    )
    say(page, {"run": run, "node": inner, "seq": 2, "kind": "progress", "points": steps(1, 2),
               "workflow_id": workflow})  # fmt: skip
    assert record(page, inner)["run"] == run and record(page, inner)["step"] == [1, 2]


def test_the_panel_keeps_to_its_node_however_many_samples_there_are(comfy_page):
    page, head = comfy_page, {"run": "ab" * 16, "node": "5"}
    page.load(graphs.training())
    page.zoom(1, TRAIN)
    say(page, head | {"seq": 1, "kind": "start", "step": 0})
    # An empty picture of 200 x 64, from the page itself.
    page.evaluate("() => { window.wide = document.createElement('style'); "
                  "wide.textContent = '.graft-thumb img { width: 200px }'; document.head.append(wide); }")  # fmt: skip
    for n in range(2, 14):
        images = [{"filename": "none.png", "type": "output"}]
        say(page, head | {"seq": n, "kind": "sample", "step": n, "images": images})
    page.page.wait_for_timeout(300)
    width, inner = panel(
        page, "(panel) => [panel.root.offsetWidth, panel.strip.thumbs.scrollWidth]"
    )
    node = page.evaluate(f"() => (app.rootGraph ?? app.graph).getNodeById({TRAIN}).size[0]")
    assert inner > 1000 and 0.8 * node <= width <= node
    page.evaluate("() => window.wide.remove()")
    page.problems[:] = [one for one in page.problems if "/view" not in one]


def test_what_others_wrote_is_shown_as_text(comfy_page):
    page, run = comfy_page, "d" * 32
    page.load(graphs.training())
    head = {"run": run, "node": "5"}
    picture = {"filename": f"../{HOSTILE}.png", "subfolder": HOSTILE, "type": "output"}
    say(
        page,
        head
        | {
            "seq": 1,
            "kind": "start",
            "step": 0,
            "facts": {"name": HOSTILE, HOSTILE: {"a": HOSTILE}},
        },
    )
    say(page, head | {"seq": 2, "kind": "progress", "points": steps(1)})
    say(page, head | {"seq": 3, "kind": "warned", "step": 1, "text": HOSTILE})
    say(page, head | {"seq": 4, "kind": "saved", "step": 1, "path": HOSTILE})
    say(
        page,
        head | {"seq": 5, "kind": "sample", "step": 1, "images": [picture], "prompts": [HOSTILE]},
    )
    panel(page, "(panel) => panel.unfold()")
    say(page, head | {"seq": 6, "kind": "ended", "step": 1, "state": "error", "text": HOSTILE})
    text = record(page)["text"]
    assert text.count(HOSTILE) >= 2 and page.evaluate("() => window.broken") is None
    made = panel(
        page,
        "(panel) => panel.root.querySelectorAll('b > *, .graft-note > *, .graft-head img').length",
    )
    assert made == 0
    page.page.wait_for_timeout(300)
    wanted = [
        one for one in page.problems if "/view" not in one
    ]  # the picture is not there, of course
    page.problems[:] = wanted


def chart_box(page):
    """The chart in the middle of the page: left, top, width and height of it."""
    code = """(panel) => {
        const { x, y, width, height } = panel.chart.root.getBoundingClientRect();
        return [x, y, width, height];
    }"""
    page.zoom(1, TRAIN)
    top = panel(page, code)[1]
    page.evaluate(
        "(by) => { app.canvas.ds.offset[1] -= by; app.canvas.setDirty(true, true); }", top - 400
    )
    page.page.wait_for_timeout(500)
    return panel(page, code)


def test_the_curve_is_hovered_zoomed_and_logarithmic(comfy_page):
    page, run = comfy_page, "e" * 32
    page.load(graphs.training())
    head = {"run": run, "node": "5", "total": 100}
    say(page, head | {"seq": 1, "kind": "start", "step": 0})
    say(page, head | {"seq": 2, "kind": "progress", "points": steps(*range(1, 101))})
    say(page, head | {"seq": 3, "kind": "validated", "step": 50, "loss": 0.25, "weights": "raw"})
    x, y, width, height = chart_box(page)
    assert width > 250 and height >= 80
    axes = "(panel) => [panel.chart.axes.x, panel.chart.axes.y, panel.chart.axes.box]"
    (low, high), _, inner = panel(page, axes)
    assert (low, high) == (0, 100)

    def pixel(step):
        return x + inner["left"] + step / 100 * inner["width"]

    page.page.mouse.move(pixel(60), y + height / 2)
    wait_panel(page, "(panel) => panel.line.textContent.startsWith('step')", timeout_s=10)
    text = panel(page, "(panel) => panel.line.textContent")
    hovered = int(re.match(r"step (\d+)", text)[1])
    assert abs(hovered - 60) <= 1 and f"loss {1 / hovered:.4g}" in text and "0.25 at 50" in text
    page.page.mouse.move(pixel(20), y + height / 2)
    page.page.mouse.down()
    page.page.mouse.move(pixel(40), y + height / 2, steps=4)
    page.page.mouse.up()
    (low, high) = panel(page, "(panel) => panel.chart.zoomed")
    assert low == pytest.approx(20, abs=1.5) and high == pytest.approx(40, abs=1.5)
    page.page.mouse.dblclick(pixel(50), y + height / 2)
    assert panel(page, "(panel) => panel.chart.zoomed") is None
    click(page, "log")
    wait_panel(page, "(panel) => panel.chart.axes.isLog")
    _, (bottom, _), _ = panel(page, axes)
    assert 0 < bottom < 0.01
    for label in ("Rate", "Gradient", "Speed", "Memory", "Loss"):
        click(page, label)
        page.page.wait_for_timeout(60)
    assert panel(page, "(panel) => [panel.curve, panel.chart.axes !== null]") == ["loss", True]


def test_the_panel_is_no_part_of_prompt_and_workflow(comfy_page):
    """The server is asked the same as without a page, and widgets keep their places."""
    graph = graphs.training()
    comfy_page.load(graph)
    prompt, known = comfy_page.prompt(), comfy_page.server.object_info()
    for key, node in to_prompt(graph, known).items():
        given = prompt[key]["inputs"]
        assert given | node["inputs"] == given  # the page fills in what the file has no value for
        schema = known[node["class_type"]]["input"]
        assert set(given) <= {name for part in schema.values() for name in part}
    saved = next(node for node in comfy_page.serialized()["nodes"] if node["id"] == TRAIN)
    given = next(node for node in graph["nodes"] if node["id"] == TRAIN)["widgets_values"]
    assert saved["widgets_values"][: len(given)] == given
    assert not any(
        isinstance(value, str) and "graft-panel" in value for value in saved["widgets_values"]
    )


def test_routes_that_say_no_break_nothing(comfy_page):
    page = comfy_page
    graph = graphs.training(workflow_id=WORKFLOW[:-4] + "aaaa")
    train = next(node for node in graph["nodes"] if node["id"] == TRAIN)
    train["properties"]["graft_run"] = "f" * 32  # nobody knows it
    page.load(graph)
    page.page.wait_for_timeout(300)
    assert record(page) is None and "not trained yet" in panel(
        page, "(panel) => panel.root.textContent"
    )
    run = "0f" * 16
    say(
        page,
        {"run": run, "node": "5", "seq": 1, "kind": "start", "step": 0, "workflow_id": graph["id"]},
    )
    panel(page, "(panel) => panel.ask('finish')")
    wait_panel(page, "(panel) => panel.root.textContent.includes('no such run')", timeout_s=10)
    page.page.wait_for_timeout(200)
    page.problems[:] = [one for one in page.problems if "/graft/runs/" not in one]
