# SPDX-License-Identifier: Apache-2.0
"""The sink: rates, nothing lost, text, log.jsonl; broken parts are named once and never end a run."""

import json
import logging
import shutil

import pytest

pytestmark = pytest.mark.comfy

RUN = "5152535455565758"


class Server:
    """As much of the host's server as the sink needs; keeps what was sent with its time."""

    client_id = "tab"

    def __init__(self, clock):
        self.clock, self.messages, self.texts = clock, [], []

    def send_sync(self, event, data, sid=None):
        self.messages.append((self.clock(), json.loads(json.dumps(data, allow_nan=False))))

    def send_progress_text(self, text, node_id, sid=None):
        self.texts.append((text, node_id, sid))


class World:
    def __init__(self, monkeypatch):
        from graft.host.runs import history as runs
        from graft.host.runs import progress

        self.now = 0.0
        self.server = Server(lambda: self.now)
        self.store = runs.Runs()
        self.bar: list = []
        for module in (progress, runs):
            monkeypatch.setattr(module, "prompt_server", lambda: self.server)
        monkeypatch.setattr(progress, "_progress_bar", lambda total, node: self)

    def update_absolute(self, value, total=None, preview=None):
        assert preview is None
        self.bar.append((value, total))

    def sink(self, total=100, node="7:5", **more):
        from graft.host.runs.progress import RunSink

        return RunSink(RUN, node, total, runs=self.store, clock=lambda: self.now, **more)

    def step(self, sink, step, total=100, seconds=0.05, loss=0.5):
        from graft.trainers.events import Progress

        self.now += seconds
        sink(Progress(step, total, loss, 1e-4, 1.0, seconds))


@pytest.fixture
def world(comfy, monkeypatch):
    yield World(monkeypatch)
    shutil.rmtree(comfy / "output" / "graft" / RUN, ignore_errors=True)


def log_rows():
    from graft.host.files import paths

    text = (paths.run_folder(RUN) / "log.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_a_whole_run_arrives_everywhere(world, caplog):
    from graft.host.files import paths
    from graft.trainers.events import Ended, Sample, Saved, Started, Validated, Warned

    sink = world.sink(prompt_id="p", workflow_id="w")
    with caplog.at_level(logging.INFO):
        sink(Started(100, facts={"rank": 8}))
        for step in range(1, 101):
            world.step(sink, step)
            if step == 50:
                image = {"filename": "a.png", "subfolder": "graft", "type": "output"}
                sink(Sample(50, (image,)))
                sink(Warned("the loss is high"))
                sink(Validated(50, 0.25, ((1.0, 0.25),), {"out": 0.5}))
        sink(Saved(100, "loras/x.safetensors"))
        sink(Ended("done", "704 of 704 tensors applied"))

    messages = [m for _, m in world.server.messages]
    points = [p for m in messages for p in m.get("points", [])]
    assert [p[0] for p in points] == list(range(1, 101))
    assert [m["seq"] for m in messages] == list(range(1, len(messages) + 1))
    assert [m["kind"] for m in messages if m["kind"] != "progress"] == [
        "start", "sample", "warned", "validated", "saved", "ended",
    ]  # fmt: skip
    assert messages[0]["facts"] == {"rank": 8}
    assert messages[-1]["state"] == "done"
    assert {m["node"] for m in messages} == {"7:5"}
    assert next(m for m in messages if m["kind"] == "sample")["images"][0]["filename"] == "a.png"

    rows = log_rows()
    assert len(rows) == 100 + 6
    assert [r["kind"] for r in rows[:2]] == ["start", "progress"]
    assert rows[1]["loss"] == 0.5
    saved = json.loads((paths.run_folder(RUN) / "run.json").read_text(encoding="utf-8"))
    assert saved["state"] == "done"
    assert len(saved["points"]) == 100
    moved = [value for value, total in world.bar if total == 100]  # 0.05 s a step
    assert len(moved) == len(world.bar) and moved[:2] == [0, 1] and moved[-1] == 100
    assert all(b - a in (8, 9) for a, b in zip(moved[1:-1], moved[2:-1], strict=False))
    assert 0.05 < points[0][5] == messages[1]["memory"] < 1024  # GiB of this process
    assert {(node, sid) for _, node, sid in world.server.texts} == {("7:5", "tab")}
    assert world.server.texts[-1][0].startswith("done  step 100/100")
    assert "704 of 704" in world.server.texts[-1][0]
    assert "the loss is high" in caplog.text
    assert "step 50: validation loss 0.2500" in caplog.text
    (validated,) = (m for m in messages if m["kind"] == "validated")
    assert validated["per_sigma"] == [[1.0, 0.25]] and validated["change"] == {"out": 0.5}
    lines = [
        r for r in caplog.records if r.getMessage().startswith("step ") and "ETA" in r.getMessage()
    ]
    assert len(lines) == 2  # 5 s: the first and the last step


@pytest.mark.parametrize("seconds", [0.001, 0.03, 0.19, 0.5])
def test_at_most_five_messages_a_second_and_all_points(world, seconds):
    from graft.trainers.events import Started

    sink = world.sink(300)
    sink(Started(300))
    for step in range(1, 301):
        world.step(sink, step, total=300, seconds=seconds)
    progress = [(t, m) for t, m in world.server.messages if m["kind"] == "progress"]
    assert [p[0] for _, m in progress for p in m["points"]] == list(range(1, 301))
    times = [t for t, _ in progress[:-1]]  # the last step is sent at once
    assert all(b - a >= 0.2 - 1e-9 for a, b in zip(times, times[1:], strict=False))


def test_a_client_of_a_fast_run_gets_few_bytes(world):
    """250 steps a second, each with numbers that have no short name: at most 10 messages and 20 kB a second."""
    from graft.trainers.events import Started

    sink = world.sink(1000)
    sink(Started(1000))
    for step in range(1, 1001):
        world.step(sink, step, total=1000, seconds=0.004, loss=1 / (step + 2))
    sizes = [len(json.dumps(message)) for _, message in world.server.messages]
    assert len(sizes) <= 4 * 5 + 3 and sum(sizes) / 4 < 20_000
    assert abs(world.store.since(RUN)["points"][0][2] - 1 / 3) < 1e-6


def test_an_early_end_flushes_what_waits(world):
    from graft.trainers.events import Ended, Started

    sink = world.sink()
    sink(Started(100))
    for step in range(1, 4):
        world.step(sink, step, seconds=0.01)
    sink(Ended("interrupted"))
    assert [p[1] for p in world.store.since(RUN)["points"]] == [1, 2, 3]
    assert world.store.since(RUN)["state"] == "interrupted"


def test_what_comes_before_the_first_step_is_counted(world):
    from graft.trainers.events import Started

    sink = world.sink()
    begin = sink.stage("encoding pictures", 500)
    for _ in range(500):
        begin()
        world.now += 0.25
    texts = [text for text, *_ in world.server.texts]
    assert texts[:2] == ["encoding pictures 1 of 500", "encoding pictures 2 of 500  ETA 2:05"]
    assert texts[-1] == "encoding pictures 500 of 500  ETA 0:00"
    assert world.bar == [(i, 500) for i in range(500)]
    begin = sink.stage("encoding captions", 300)  # quick: no ETA, five messages a second
    for _ in range(100):
        begin(3)
        world.now += 0.01
    texts = [text for text, *_ in world.server.texts][500:]
    assert 4 <= len(texts) <= 6
    assert texts[0] == "encoding captions 1 of 300" and "ETA" not in "".join(texts)
    sink(Started(100))
    assert world.bar[-1] == (0, 100)


def test_cancel_comes_through_a_count_and_a_broken_bar_does_not(world):
    import comfy.model_management as management

    sink = world.sink()
    errors = [TypeError("changed interface"), management.InterruptProcessingException()]

    def broken(*args, **kwargs):
        raise errors[0]

    world.update_absolute = broken
    sink.stage("encoding pictures", 2)()
    errors.pop(0)
    with pytest.raises(management.InterruptProcessingException):
        world.sink().stage("encoding pictures", 2)()


def test_nan_is_null_and_the_log_is_json(world):
    sink = world.sink()
    world.step(sink, 1, loss=float("nan"))
    assert log_rows()[0]["loss"] is None
    assert world.server.messages[-1][1]["loss"] is None


def test_the_log_line_reads_well():
    from graft.host.runs.progress import progress_line
    from graft.trainers.events import Progress

    event = Progress(120, 500, 0.09123, 1e-4, 1.0, 0.31)
    assert (
        progress_line(event, 118.0) == "step 120/500  loss 0.0912  lr 1.0e-4  0.31 s/step  ETA 1:58"
    )
    assert progress_line(event, 3725.0).endswith("ETA 1:02:05")
    assert "lr 2.5e-12" in progress_line(Progress(1, 2, 0.1, 2.5e-12, 1.0, 0.1), 0.0)


def test_a_full_disk_warns_once_and_the_rest_goes_on(world, caplog, monkeypatch):
    from graft.host.runs import progress
    from graft.trainers.events import Ended, Started

    def full(run, create=True):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(progress.paths, "run_folder", full)
    sink = world.sink(20)
    with caplog.at_level(logging.WARNING):
        sink(Started(20))
        for step in range(1, 21):
            world.step(sink, step, total=20)
        sink(Ended("done"))
    warned = [r.getMessage() for r in caplog.records]
    assert [m for m in warned if m.startswith("log.jsonl")] == [
        "log.jsonl is left out from here on: [Errno 28] No space left on device"
    ]
    assert len([m for m in warned if m.startswith("run.json")]) == 1
    known = world.store.since(RUN)
    assert len(known["points"]) == 20
    assert [(row["kind"], row.get("text", "")[:9]) for row in known["events"]] == [
        ("warned", "log.jsonl"),
        ("ended", ""),
    ]
    assert world.bar[-1] == (20, 20)


def test_a_log_that_broke_does_not_cost_the_history(world, monkeypatch):
    from graft.host.runs import progress
    from graft.trainers.events import Ended, Started

    def full(rows, row):
        raise OSError(28, "No space left on device")

    sink = world.sink(2)
    sink(Started(2))
    monkeypatch.setattr(progress.RowFile, "add", full)
    world.step(sink, 1, total=2)
    sink(Ended("done"))
    folder = progress.paths.run_folder(RUN)
    assert len((folder / "log.jsonl").read_text().splitlines()) == 1
    assert (folder / "run.json").is_file()


def test_a_broken_browser_or_bar_does_not_end_the_run(world, caplog):
    from graft.trainers.events import Ended, Started

    def broken(*args, **kwargs):
        raise TypeError("changed interface")

    world.server.send_sync = world.server.send_progress_text = world.update_absolute = broken
    sink = world.sink(5)
    sink(Started(5))
    for step in range(1, 6):
        world.step(sink, step, total=5)
    sink(Ended("done"))
    assert len(log_rows()) == 7
    assert caplog.text.count("browser is left out") == 1
    assert caplog.text.count("progress bar is left out") == 1


def test_the_hosts_interrupt_comes_through_after_the_event_is_kept(world):
    import comfy.model_management as management

    from graft.trainers.events import Ended

    sink = world.sink()

    def cancelled(*args, **kwargs):
        raise management.InterruptProcessingException

    world.update_absolute = cancelled
    with pytest.raises(management.InterruptProcessingException):
        world.step(sink, 1)
    assert log_rows()[0]["step"] == 1
    assert len(world.store.since(RUN)["points"]) == 1
    sink(Ended("interrupted"))  # asks nobody
    assert log_rows()[-1]["state"] == "interrupted"


def test_no_node_no_text_and_no_server_no_harm(world, monkeypatch):
    from graft.host.runs import history as runs
    from graft.host.runs import progress

    sink = world.sink(node=None)
    world.step(sink, 1)
    assert world.server.texts == []
    for module in (progress, runs):
        monkeypatch.setattr(module, "prompt_server", lambda: None)
    sink = world.sink()
    world.step(sink, 2)
    assert log_rows()[-1]["step"] == 2


def test_the_hosts_own_bar_is_driven(comfy, monkeypatch):
    import comfy.utils

    from graft.host.runs import progress

    calls = []
    monkeypatch.setattr(
        comfy.utils,
        "PROGRESS_BAR_HOOK",
        lambda value, total, preview, node_id=None: calls.append((value, total, preview, node_id)),
    )
    bar = progress._progress_bar(3, "9")
    bar.update_absolute(3, 3)
    assert calls == [(3, 3, None, "9")]
    assert progress.executing_prompt() is None
