# SPDX-License-Identifier: Apache-2.0
"""The history of a run whose process was killed: from its log, whole, and taken whole by every page."""

import json
import shutil

import pytest

pytestmark = pytest.mark.comfy

RUN = "77aa11bb22cc33dd"


@pytest.fixture
def folder(comfy):
    made = comfy / "output" / "graft" / RUN
    made.mkdir(parents=True, exist_ok=True)
    yield made
    shutil.rmtree(made, ignore_errors=True)


def session(folder, begin, end, *events):
    """Append what a session from ``begin`` to ``end`` leaves in the log."""
    with (folder / "log.jsonl").open("a", encoding="utf-8") as file:
        rows = [{"kind": "start", "total": 20, "step": begin, "facts": {"name": "x"}}]
        for step in range(begin + 1, end + 1):
            point = {"loss": 1 / step, "lr": 1e-4, "grad_norm": 0.5, "s_per_step": 0.1}
            rows.append({"kind": "progress", "step": step, "total": 20, **point})
        for row in [*rows, *events]:
            file.write(json.dumps({"time": 1.0, **row}) + "\n")


def known(seq=0):
    from graft.host.runs.history import Runs

    return Runs().since(RUN, seq)


def test_a_killed_run_is_known_by_its_log(folder):
    sample = {"kind": "sample", "step": 4, "images": [{"filename": "a.png"}]}
    session(folder, 0, 5, sample, {"kind": "warned", "text": "high"}, {"kind": "epoch", "step": 5})
    with (folder / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"time": 2.0, "kind": "progr')  # killed while it wrote
    found = known()
    assert [row[1] for row in found["points"]] == [1, 2, 3, 4, 5]
    assert [row[2] for row in found["points"]] == [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5]
    assert [(event["kind"], event["step"]) for event in found["events"]] == [
        ("sample", 4),
        ("warned", 5),
    ]
    assert (found["state"], found["total"], found["facts"]) == ("interrupted", 20, {"name": "x"})


def test_a_page_that_saw_any_of_its_messages_takes_it_whole(folder):
    session(folder, 0, 5)
    for seq in range(7):  # a message at most for each row
        found = known(seq)
        assert found["reset"] and len(found["points"]) == 5
    assert known(found["seq"])["points"] == [] and not known(found["seq"])["reset"]


def test_the_next_session_goes_on_in_the_same_curve(folder):
    from graft.host.runs.history import Runs

    session(folder, 0, 8)
    session(folder, 6, 9)  # from the last state; killed again
    before = known()
    assert [row[1] for row in before["points"]] == list(range(1, 10))
    runs = Runs()
    session(folder, 9, 9)  # the log hears of it first
    message = runs.start(RUN, node="5", step=9, total=20)
    assert message["seq"] > before["seq"]
    assert [row[1] for row in runs.since(RUN)["points"]] == list(range(1, 10))


def test_what_ended_well_is_known_by_its_record(folder):
    session(folder, 0, 3, {"kind": "ended", "state": "done", "text": ""})
    record = {
        "v": 1,
        "run": RUN,
        "seq": 5,
        "first": 1,
        "state": "done",
        "text": "",
        "points": [],
        "events": [],
    }
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    assert known()["state"] == "done" and known()["seq"] == 5
    session(folder, 3, 3)  # it is started again
    assert known()["seq"] == 5


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "[]\n1\nnull\n",
        '{"kind": 3}\n',
        '{"kind": "progress", "step": "x"}\n',
        "\x00\xff",
        "[" * 9999,
    ],
)
def test_a_log_of_others_is_no_history(folder, text):
    (folder / "log.jsonl").write_text(text, encoding="utf-8")
    assert known() is None
