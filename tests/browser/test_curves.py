# SPDX-License-Identifier: Apache-2.0
"""The arithmetic behind the panel, in the browser: against numpy, and against messages that are lost and repeated."""

import math
import random

import numpy as np
import pytest

RUN = "5152535455565758"


def test_the_average_is_the_weighted_mean_of_what_was(plain_page):
    """m_t / (1 - w^t) is sum_i w^(t-i) v_i / sum_i w^(t-i): no shift at the start, and a constant stays itself."""
    values = np.random.default_rng(0).normal(1.0, 0.3, 200)
    for weight in (0.0, 0.5, 0.9, 0.99):
        powers = weight ** np.arange(200, dtype=float)
        wanted = [
            np.dot(powers[: t + 1][::-1], values[: t + 1]) / powers[: t + 1].sum()
            for t in range(200)
        ]
        found = plain_page.module(
            "plot/smooth", "(m, [v, w]) => m.smoothed(v, w)", [values.tolist(), weight]
        )
        np.testing.assert_allclose(found, wanted, rtol=1e-9)


def test_the_average_goes_on_where_it_was_and_over_gaps(plain_page):
    code = """(m, [values, weight]) => {
        const smooth = new m.Smooth(weight), grown = [];
        for (const value of values) { grown.push(value); smooth.follow(grown); }
        return [smooth.values, m.smoothed(values, weight)];
    }"""
    by_steps, at_once = plain_page.module("plot/smooth", code, [[None, 2.0, 4.0, None, 6.0], 0.5])
    # (2) -> 2; (0.5*2 + 4) / 1.5 = 10/3; the gap keeps it; (0.25*2 + 0.5*4 + 6) / 1.75 = 34/7
    assert by_steps == at_once
    assert by_steps[0] is None
    np.testing.assert_allclose(by_steps[1:], [2, 10 / 3, 10 / 3, 34 / 7])


@pytest.mark.parametrize(("count", "columns"), [(10_000, 300), (50, 300), (1000, 7), (3, 1)])
def test_each_column_keeps_its_lowest_and_its_highest(plain_page, count, columns):
    rng = np.random.default_rng(count)
    x, y = np.arange(1.0, count + 1), rng.normal(size=count)
    y[count // 2] = 50.0  # a spike
    low, high = 0.0, float(count)
    indices = plain_page.module(
        "plot/decimate",
        "(m, [x, y, a, b, n]) => m.decimate(x, y, a, b, n)",
        [x.tolist(), y.tolist(), low, high, columns],
    )
    assert indices == sorted(set(indices)) and len(indices) <= 2 * columns + 2
    assert count // 2 in indices
    column = np.floor((x - low) / ((high - low) / columns))
    for one in np.unique(column):
        there = np.flatnonzero(column == one)
        kept = [i for i in indices if column[i] == one]
        assert y[kept].min() == y[there].min() and y[kept].max() == y[there].max()


def test_zooming_in_draws_one_point_more_on_each_side_and_leaves_out_what_is_no_number(plain_page):
    y = [1.0, None, 3.0, 4.0, None, 6.0, 7.0]
    code = (
        "(m, y) => [m.decimate([1,2,3,4,5,6,7], y, 3, 4, 100), m.extent([1,2,3,4,5,6,7], y, 2, 6)]"
    )
    indices, extent = plain_page.module("plot/decimate", code, y)
    assert indices == [2, 3] and extent == [3, 6]
    assert (
        plain_page.module("plot/decimate", "(m) => m.extent([1, 2], [null, -1], 0, 9, true)")
        is None
    )


@pytest.mark.parametrize(
    ("low", "high", "count", "wanted"),
    [
        (0, 1, 5, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.1, 0.62, 3, [0.2, 0.4, 0.6]),
        (0, 520, 6, [0, 100, 200, 300, 400, 500]),
        (-0.3, 0.3, 3, [-0.2, 0, 0.2]),
        (1e-6, 4e-6, 3, [1e-6, 2e-6, 3e-6, 4e-6]),
        (1, 1, 5, []),
        (100, 100.00000000000001, 5, []),
        (0, float("inf"), 0, []),
    ],
)
def test_marks_are_round_numbers(plain_page, low, high, count, wanted):
    if math.isinf(high):
        high = None
    code = "(m, [low, high, count]) => m.ticks(low, high ?? Infinity, count)"
    found = plain_page.module("plot/ticks", code, [low, high, count])
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_marks_of_a_logarithmic_axis(plain_page):
    def marks(low, high):
        return plain_page.module("plot/ticks", "(m, [a, b]) => m.logTicks(a, b)", [low, high])

    np.testing.assert_allclose(marks(0.01, 1), [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1])
    np.testing.assert_allclose(marks(1e-5, 1), [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1])
    assert 1 <= len(marks(0.11, 0.13)) <= 6 and marks(0, 1) == [] and len(marks(1e-30, 1)) < 15


def test_numbers_are_short(plain_page):
    values = [0.09123, 1e-4, 0, 12400, 3.14159, -0.5, 2.5e7, None]
    found = plain_page.module("plot/ticks", "(m, v) => v.map((one) => m.short(one))", values)
    assert found == ["0.0912", "1.0e-4", "0", "12,400", "3.14", "-0.5", "2.5e7", "\u2013"]


def test_a_point_goes_to_a_pixel_and_back(plain_page):
    code = """(m) => {
        const box = { left: 40, top: 10, width: 200, height: 100 };
        const [even, log] = [new m.Axes(box, [0, 100], [1, 100]), new m.Axes(box, [0, 100], [1, 100], true)];
        const there = even.fromX(even.toX(25));
        return [even.toX(25), there, even.fromX(-5), even.fromX(900), log.toY(10), log.toY(1) + log.toY(100)];
    }"""
    x, back, before, after, middle, ends = plain_page.module("plot/axes", code)
    assert (x, before, after) == (90, 0, 100) and back == pytest.approx(25)
    assert middle == pytest.approx(60) and ends == pytest.approx(
        120
    )  # 10 is in the middle of 1 and 100


def _history():
    """Messages of a run that is cut off at 12, and goes on at 8; then what the server knows, from which message on."""
    points, events, messages = [], [], []

    def add(kind, rows=(), **fields):
        seq = len(messages) + 1
        points.extend([seq, *row] for row in rows)
        message = {
            "run": RUN,
            "seq": seq,
            "node": "5",
            "workflow_id": "w",
            "total": 20,
            "kind": kind,
        }
        if rows:
            message["points"] = rows
        message |= {"step": points[-1][1] if points else 0} | fields
        if kind not in ("progress", "start"):
            events.append({key: value for key, value in message.items() if key != "points"})
        messages.append(message)

    def row(step):
        return [step, 1 / step, 1e-4, 0.5, 0.1, 1.5]

    add("start", step=0, facts={"name": "x"})
    for step in range(1, 13):
        add("progress", [row(step)])
        if step % 4 == 0:
            add("sample", step=step, images=[{"filename": f"{step}.png"}])
    add("ended", state="interrupted", text="stopped")
    first = len(messages) + 1
    kept = [one for one in points if one[1] <= 8]
    points[:] = kept
    events[:] = [event for event in events if 0 < event["step"] <= 8]
    add("start", step=8, facts={"name": "x"})
    for step in range(9, 21, 2):
        add("progress", [row(step), row(step + 1)])
    add("warned", step=20, text="the end is near")
    add("ended", state="done", text="report")
    return messages, points, events, first


# A server whose answers come late and show what has happened by then; messages are given out of order and with holes.
FEED = """async (m, { messages, points, events, first, order, RUN }) => {
    let now = 0, asked = 0;
    const server = {
        heads: async () => [],
        run: async (run, since) => {
            asked += 1;
            await new Promise((done) => setTimeout(done, 3));
            const at = messages[now - 1].seq;
            const old = at < first;
            const all = old ? messages.slice(0, now) : null;
            const rows = old ? all.flatMap((one) => (one.points ?? []).map((row) => [one.seq, ...row])) : points;
            const told = old ? all.filter((one) => !["progress", "start"].includes(one.kind)) : events;
            const reset = since < (old ? 1 : first) || since > at;
            const after = reset ? 0 : since;
            const state = told.filter((one) => one.kind === "ended" && one.seq <= at).at(-1)?.state ?? "running";
            return { status: 200, body: { run, seq: at, node: "5", workflow_id: "w", state, text: "", total: 20,
                step: rows.filter((row) => row[0] <= at).at(-1)?.[1] ?? 0, facts: {}, reset,
                points: rows.filter((row) => row[0] > after && row[0] <= at),
                events: told.filter((one) => one.seq > after && one.seq <= at) } };
        },
    };
    const client = new m.RunClient(server, () => {});
    const taken = [];
    for (const index of order) {
        now = Math.max(now, index + 1);
        taken.push(client.take(messages[index]));
        if (index % 3 === 0) await new Promise((done) => setTimeout(done, 1));
    }
    await Promise.all(taken);
    const record = client.get(RUN);
    return [record.columns.step, record.columns.loss, record.events.map((one) => `${one.kind} ${one.step}`),
        record.state, record.seq, asked];
}"""


@pytest.mark.parametrize("seed", range(8))
def test_a_page_that_misses_messages_ends_with_the_whole_history(plain_page, seed):
    messages, points, events, first = _history()
    rng = random.Random(seed)
    order = list(range(len(messages)))
    if seed:  # come late, lose some, hear some twice
        order = [i for i in order if i >= seed and rng.random() > 0.3] + [len(messages) - 1]
        order = sorted(order + rng.sample(order, 3))
    given = {"messages": messages, "points": points, "events": events, "first": first}
    found = plain_page.module("runs/client", FEED, given | {"order": order, "RUN": RUN})
    steps, losses, told, state, seq, asked = found
    assert steps == list(range(1, 21))
    np.testing.assert_allclose(losses, 1 / np.arange(1, 21))
    assert told == ["sample 4", "sample 8", "warned 20", "ended 20"]
    assert (state, seq) == ("done", len(messages))
    assert (asked == 0) is (seed == 0)


def test_a_run_that_the_server_forgot_is_not_shown_as_going_on(plain_page):
    code = """async (m, run) => {
        const client = new m.RunClient({ run: async () => ({ status: 404, body: null }) }, () => {});
        await client.take({ run, seq: 1, kind: "start", step: 0, total: 5, node: "5" });
        const before = client.get(run).state;
        await client.take({ run, seq: 9, kind: "progress", points: [] });
        return [before, client.get(run).state, await client.fetch("unknown")];
    }"""
    assert plain_page.module("runs/client", code, RUN) == ["running", "lost", None]


def test_which_run_a_node_shows(plain_page):
    """One that goes on, else the newest the server knows, else what the workflow remembers."""
    heads = [
        {"run": "a", "node": "1", "state": "done"},
        {"run": "b", "node": "1", "state": "running"},
        {"run": "c", "node": "1", "state": "error"},
        {"run": "d", "node": "2", "state": "done"},
        {"run": "e", "node": "2", "state": "interrupted"},
        {"run": "f", "node": "9", "state": "running"},
    ]
    nodes = [{"key": str(i), "remembered": f"old{i}" if i != 4 else None} for i in range(1, 5)]
    code = "(m, [nodes, heads]) => [...m.chooseRuns(nodes, heads, (head) => head.node)]"
    chosen = dict(plain_page.module("runs/client", code, [nodes, heads]))
    assert chosen == {"1": "b", "2": "e", "3": "old3"}


def test_ten_thousand_steps_stay_below_a_frame(plain_page, record_property):
    """A new point, smoothing, decimation, axes and text, painted at 100 % and 300 %; the median of 100."""
    code = """async (m) => {
        const columns = { step: [], loss: [], lr: [], grad_norm: [], s_per_step: [], memory: [] };
        const head = { run: "r", made: 1, seq: 1, state: "running", step: 0, total: 12000, text: "", facts: {} };
        const record = { ...head, events: [], columns };
        const add = () => {
            const step = columns.step.length + 1;
            const row = [step, 0.1 + Math.random(), 1e-4, Math.random(), 0.01, 5.2];
            Object.keys(columns).forEach((name, i) => columns[name].push(row[i]));
            record.step = step;
        };
        for (let i = 0; i < 10000; i++) add();
        for (let i = 0; i < 40; i++) record.events.push({ kind: "validated", step: 250 * (i + 1), loss: 0.4, seq: i });
        let scale = 1;
        const panel = new m.TrainingPanel({ urlOf: () => "", ask: async () => "", scale: () => scale });
        panel.root.style.cssText += "width:800px;height:500px;display:flex;flex-direction:column";
        document.body.append(panel.root);
        const costs = [];
        panel.show(record);
        for (let i = 0; i < 100; i++) {
            scale = i % 2 ? 3 : 1;
            panel.curve = ["loss", "grad_norm", "speed", "memory"][i % 4];
            for (let n = 0; n < 10; n++) add();
            panel.hover = i % 3 ? 5000 : null;
            await new Promise((done) => requestAnimationFrame(done));
            const begun = performance.now();
            panel.paint();
            panel.chart.surface.paint();
            costs.push(performance.now() - begun);
        }
        panel.dispose();
        return [costs.sort((a, b) => a - b), panel.chart.axes !== null];
    }"""
    costs, is_drawn = plain_page.module("training/panel", code)
    assert is_drawn
    record_property("ms a frame of 10,000 steps", costs[50])
    assert costs[50] < 16
