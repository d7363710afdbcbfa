# SPDX-License-Identifier: Apache-2.0
"""Run history: sequence numbers, catching up, restarts, wishes, the disk, and the routes over HTTP."""

import asyncio
import json
import shutil
import threading

import pytest

pytestmark = pytest.mark.comfy

RUN = "00aa11bb22cc33dd"


@pytest.fixture(autouse=True)
def clean(comfy):
    yield
    shutil.rmtree(comfy / "output" / "graft", ignore_errors=True)


@pytest.fixture
def sent(comfy, monkeypatch):
    """Messages that the browser would get, in order."""
    from graft.host.runs import history as runs

    class Server:
        def send_sync(self, event, data, sid=None):
            messages.append((event, json.loads(json.dumps(data, allow_nan=False)), sid))

    messages: list = []
    monkeypatch.setattr(runs, "prompt_server", Server)
    return messages


@pytest.fixture
def store(sent):
    from graft.host.runs.history import Runs

    return Runs()


def row(step: int, loss: float = 0.5) -> tuple:
    return (step, loss, 1e-4, 1.0, 0.1)


def apply(view: dict | None, message: dict) -> dict:
    """What a browser does with a live message."""
    if message["kind"] == "start":
        view = {"points": [], "events": [], "state": "running"}
    view["seq"] = message["seq"]
    view["points"] += message.get("points", [])
    if message["kind"] not in ("progress", "start"):
        view["events"].append(message["kind"])
    if message["kind"] == "ended":
        view["state"] = message["state"]
    return view


def test_live_messages_and_a_snapshot_tell_the_same_story(store, sent):
    store.start(RUN, node="7:5", prompt_id="p", workflow_id="w", total=4, facts={"lr": 1e-4})
    store.add(RUN, "progress", [row(1), row(2)])
    store.add(RUN, "sample", [row(3)], step=3, images=({"filename": "a.png"},))
    store.add(RUN, "ended", [row(4)], state="done", text="")
    view = None
    for _, message, _ in sent:
        view = apply(view, message)
    whole = store.since(RUN)
    assert [p[1:] for p in whole["points"]] == view["points"]
    assert [e["kind"] for e in whole["events"]] == view["events"] == ["sample", "ended"]
    assert whole["seq"] == view["seq"] == 4
    assert whole["state"] == view["state"] == "done"
    assert [m["seq"] for _, m, _ in sent] == [1, 2, 3, 4]
    assert {(e, sid) for e, _, sid in sent} == {("graft.run", None)}
    wanted = {"v": 1, "run": RUN, "node": "7:5", "prompt_id": "p", "workflow_id": "w", "total": 4}
    assert all(m.items() >= wanted.items() for _, m, _ in sent)
    assert sent[1][1]["step"] == 2
    assert sent[1][1]["loss"] == 0.5
    assert sent[1][1]["s_per_step"] == 0.1


def test_an_event_with_a_loss_of_its_own_keeps_it(store, sent):
    """A validation goes out together with the steps that wait; theirs are the points, the loss is its own."""
    store.start(RUN, total=9)
    store.add(RUN, "validated", [row(1), row(2)], step=2, loss=0.25, per_sigma=((1.0, 0.25),))
    message = sent[-1][1]
    assert (message["kind"], message["step"], message["loss"]) == ("validated", 2, 0.25)
    assert [point[0] for point in message["points"]] == [1, 2] and message["lr"] == 1e-4
    (event,) = store.since(RUN)["events"]
    assert event["loss"] == 0.25 and event["per_sigma"] == [[1.0, 0.25]]


def test_a_client_asks_for_what_it_missed(store, sent):
    store.start(RUN, total=9)
    for step in range(1, 6):
        store.add(RUN, "progress", [row(step)])
    late = store.since(RUN, 3)
    assert [p[1] for p in late["points"]] == [3, 4, 5]
    assert not late["reset"]
    assert store.since(RUN, 6)["points"] == []
    ahead = store.since(RUN, 99)  # the client knows a longer story: another server's
    assert ahead["reset"]
    assert len(ahead["points"]) == 5


def test_a_run_that_starts_again_goes_on_counting_and_keeps_what_is_before(store, sent):
    store.start(RUN, total=6)
    store.add(RUN, "progress", [row(1), row(2), row(3), row(4)])
    again = store.start(RUN, total=6, step=3)
    assert again["seq"] == 3
    caught_up = store.since(RUN, 2)
    assert caught_up["reset"]
    assert [p[1] for p in caught_up["points"]] == [1, 2, 3]
    store.start(RUN, total=6)
    assert store.since(RUN)["points"] == []


def test_what_was_shown_before_the_first_step_stays_when_a_run_goes_on(store, sent):
    """The picture of the untrained model is what the others are compared with; notes come again."""
    store.start(RUN, total=9)
    store.add(RUN, "warned", text="a note")
    store.add(RUN, "sample", images=[{"filename": "step_000000_0.png"}])
    store.add(RUN, "progress", [(1, 0.5, 1e-4, 1.0, 0.1), (2, 0.5, 1e-4, 1.0, 0.1)])
    store.add(RUN, "sample", images=[{"filename": "step_000002_0.png"}])
    store.start(RUN, step=1, total=9)
    assert [(e["kind"], e["step"]) for e in store.since(RUN)["events"]] == [("sample", 0)]
    store.start(RUN, step=0, total=9)
    assert store.since(RUN)["events"] == []


def test_numbers_that_json_has_not_become_null(store, sent):
    from graft.host.runs.history import finite

    store.start(RUN, total=1)
    store.add(RUN, "progress", [row(1, float("nan"))])
    assert sent[-1][1]["loss"] is None
    assert finite({"a": (1, float("inf"), True, None, "x"), 3: {2.0}}) == {
        "a": [1, None, True, None, "x"],
        "3": [2.0],
    }


def test_the_oldest_run_is_forgotten_but_not_on_disk(store, sent):
    ids = [f"{i:016x}" for i in range(1, 19)]
    store.start(ids[0], total=1)
    store.add(ids[0], "ended", [row(1)], state="done", text="")
    path = store.write(ids[0])
    for run in ids[1:]:
        store.start(run, total=1)
    assert [head["run"] for head in store.heads()] == ids[2:]
    assert path.name == "run.json"
    assert store.since(ids[0])["state"] == "done"
    assert [p[1] for p in store.since(ids[0])["points"]] == [1]
    assert store.since(ids[1]) is None
    with pytest.raises(KeyError):
        store.add(ids[0], "progress", [row(2)])


def test_a_run_on_disk_goes_on_after_a_restart_of_the_server(store, sent):
    from graft.host.runs.history import Runs

    store.start(RUN, total=6)
    store.add(RUN, "progress", [row(1), row(2)])
    store.add(RUN, "ended", state="interrupted", text="")
    store.write(RUN)
    reborn = Runs()
    assert reborn.since(RUN)["state"] == "interrupted"
    assert reborn.ask(RUN, "finish") == "interrupted"
    assert reborn.start(RUN, total=6, step=2)["seq"] == 4
    assert [p[1] for p in reborn.since(RUN)["points"]] == [1, 2]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"run": 3}', "nonsense", '{"run": "00aa11bb22cc33de"}']
)
def test_a_damaged_file_is_no_run(store, sent, text):
    from graft.host.files import paths

    run = "00aa11bb22cc33de"
    (paths.run_folder(run) / "run.json").write_text(text, encoding="utf-8")
    assert store.since(run) is None
    assert store.start(run, total=1)["seq"] == 1


def test_wishes(store, sent):
    assert store.ask(RUN[::-1], "finish") is None
    store.start(RUN, total=2)
    assert not store.wants_finish(RUN)
    assert not store.wants_save(RUN)
    assert store.ask(RUN, "save") == store.ask(RUN, "finish") == "running"
    assert [store.wants_save(RUN), store.wants_save(RUN)] == [True, False]
    assert [store.wants_finish(RUN), store.wants_finish(RUN)] == [True, True]
    store.start(RUN, total=2)
    assert not store.wants_finish(RUN)
    store.add(RUN, "ended", state="done", text="")
    assert store.ask(RUN, "finish") == "done"
    assert not store.wants_finish(RUN)


def test_many_threads_lose_nothing(store, sent):
    store.start(RUN, total=400)
    errors = []

    def work(first: int) -> None:
        try:
            for step in range(first, first + 100):
                store.add(RUN, "progress", [row(step)])
                store.since(RUN, step)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i * 100,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sorted(p[1] for p in store.since(RUN)["points"]) == list(range(400))
    assert [m["seq"] for _, m, _ in sent] == list(range(1, 402))


def test_a_server_that_is_closing_does_not_matter(comfy, monkeypatch):
    from graft.host.runs import history as runs

    class Closing:
        def send_sync(self, *args):
            raise RuntimeError("Event loop is closed")

    monkeypatch.setattr(runs, "prompt_server", Closing)
    store = runs.Runs()
    assert store.start(RUN, total=1)["seq"] >= 1


class Routed:
    """As much of the host's server as the routes need."""

    def __init__(self):
        from aiohttp import web

        self.routes = web.RouteTableDef()

    def send_sync(self, *args):
        pass


async def _talk(server, calls):
    from aiohttp import web
    from aiohttp.test_utils import TestClient, TestServer

    app = web.Application()
    app.add_routes(server.routes)
    answers = []
    async with TestClient(TestServer(app)) as client:
        for method, path, *given in calls:
            options = given[0] if given else {"json": {}} if method == "POST" else {}
            async with client.request(method, path, **options) as answer:
                is_json = answer.content_type == "application/json"
                answers.append((answer.status, await answer.json() if is_json else None))
    return answers


@pytest.fixture
def routed(comfy, monkeypatch):
    from graft.host import routes
    from graft.host.runs import history as runs

    server = Routed()
    monkeypatch.setattr(routes, "prompt_server", lambda: server)
    monkeypatch.setattr(runs, "prompt_server", lambda: server)
    monkeypatch.setattr(routes.runs, "RUNS", runs.Runs())
    assert routes.register()
    return server


def test_routes_are_added_once(routed):
    from graft.host import routes

    added = [(route.method, route.path) for route in routed.routes]
    assert routes.register()
    assert len(list(routed.routes)) == len(set(added)) == len(added) >= 4
    assert all(path.startswith("/graft/") for _, path in added)


def test_no_server_no_routes(comfy, monkeypatch):
    from graft.host import routes

    monkeypatch.setattr(routes, "prompt_server", lambda: None)
    assert routes.register() is False


def test_routes_answer(routed):
    from graft.host import routes

    routes.runs.RUNS.start(RUN, total=3)
    routes.runs.RUNS.add(RUN, "progress", [row(1), row(2)])
    calls = [
        ("GET", "/graft/runs"),
        ("GET", f"/graft/runs/{RUN}"),
        ("GET", f"/graft/runs/{RUN}?since=2"),
        ("POST", f"/graft/runs/{RUN}/save"),
        ("POST", f"/graft/runs/{RUN}/finish"),
        ("GET", f"/graft/runs/{RUN}/finish"),
        ("GET", f"/graft/runs/{RUN}?since=-1"),
        ("GET", f"/graft/runs/{RUN}?since=x"),
        ("GET", f"/graft/runs/{'f' * 16}"),
        ("POST", f"/graft/runs/{'f' * 16}/finish"),
        ("GET", "/graft/runs/..%2F..%2Fetc"),
        ("POST", "/graft/runs/..%2F..%2Fx/save"),
        ("GET", f"/graft/runs/{RUN.upper()}"),
    ]
    answers = asyncio.run(_talk(routed, calls))
    assert [status for status, _ in answers] == [
        200, 200, 200, 200, 200, 405, 400, 400, 404, 404, 404, 404, 404,
    ]  # fmt: skip
    assert answers[0][1][0]["run"] == RUN
    assert [p[1] for p in answers[1][1]["points"]] == [1, 2]
    assert answers[2][1]["points"] == []
    assert routes.runs.RUNS.wants_save(RUN)
    assert routes.runs.RUNS.wants_finish(RUN)
    routes.runs.RUNS.add(RUN, "ended", state="done", text="")
    assert asyncio.run(_talk(routed, [("POST", f"/graft/runs/{RUN}/finish")]))[0][0] == 409


HOST = {"Host": "comfy.local:8188"}
JSON = {"Content-Type": "application/json"}
OTHERS = [
    {"Origin": "http://evil.example"},
    {"Origin": "http://comfy.local"},  # another port is another origin
    {"Origin": "https://comfy.local"},
    {"Origin": "http://comfy.local:8188.evil.example"},
    {"Origin": "http://comfy.local:8188@evil.example"},
    {"Origin": "file://comfy.local:8188"},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "http://comfy.local:port"},
    {"Origin": "http://[comfy.local:8188"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "?"},
    {"Sec-Fetch-Site": "cross-site", "Origin": "http://comfy.local:8188"},
]
OWN = [
    {},
    {"Origin": "http://comfy.local:8188"},
    {"Origin": "http://COMFY.local:8188"},
    {"Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "same-origin", "Origin": "https://proxy.example"},
    {"Sec-Fetch-Site": "none"},
]


@pytest.mark.parametrize("headers", OTHERS, ids=str)
def test_pages_of_other_sites_are_turned_away(routed, headers):
    from graft.host import routes

    routes.runs.RUNS.start(RUN, total=3)
    post = {"data": b"{}", "headers": HOST | JSON | headers}
    calls = [
        ("GET", path, {"headers": HOST | headers}) for path in ("/graft/runs", f"/graft/runs/{RUN}")
    ]
    calls += [("POST", f"/graft/runs/{RUN}/{wish}", post) for wish in ("finish", "save")]
    answers = asyncio.run(_talk(routed, calls))
    assert [status for status, _ in answers] == [403] * 4
    assert all(RUN not in json.dumps(answer) for _, answer in answers)
    assert not routes.runs.RUNS.wants_save(RUN) and not routes.runs.RUNS.wants_finish(RUN)


@pytest.mark.parametrize("headers", OWN, ids=str)
def test_own_pages_and_scripts_are_heard(routed, headers):
    from graft.host import routes

    routes.runs.RUNS.start(RUN, total=3)
    post = {"data": b"{}", "headers": HOST | JSON | headers}
    calls = [
        ("GET", "/graft/runs", {"headers": HOST | headers}),
        ("POST", f"/graft/runs/{RUN}/save", post),
    ]
    assert [status for status, _ in asyncio.run(_talk(routed, calls))] == [200, 200]
    assert routes.runs.RUNS.wants_save(RUN)


def test_standard_ports_need_not_be_named():
    from graft.host.routes.guard import is_same_origin

    assert is_same_origin({"Host": "a.example", "Origin": "https://a.example:443"})
    assert is_same_origin({"Host": "a.example:80", "Origin": "http://a.example"})
    assert not is_same_origin({"Host": "a.example:443", "Origin": "http://a.example"})
    assert is_same_origin({"Host": "[::1]:8188", "Origin": "http://[::1]:8188"})


@pytest.mark.parametrize(
    ("data", "kind", "status"),
    [
        (b"{}", "application/json", 200),
        (b' {"why": "done"} ', "application/json; charset=utf-8", 200),
        (b"{}", "text/plain", 415),  # what a form of any page can send
        (b"a=b", "application/x-www-form-urlencoded", 415),
        (b"{}", "multipart/form-data", 415),
        (b"{}", "text/plain; application/json", 415),
        (b"", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"null", "application/json", 400),
        (b"{", "application/json", 400),
        (b"[" * 4000, "application/json", 400),
        (b'{"a":' * 700, "application/json", 400),
        (b"\xff{}", "application/json", 400),
        (b"{}" + b" " * 4094, "application/json", 200),
        (b"{}" + b" " * 4095, "application/json", 413),
        (b"{}" + b" " * 10**6, "application/json", 413),
    ],
)
def test_only_a_small_json_object_is_taken(routed, data, kind, status):
    from graft.host import routes

    routes.runs.RUNS.start(RUN, total=3)
    call = ("POST", f"/graft/runs/{RUN}/finish", {"data": data, "headers": {"Content-Type": kind}})
    assert asyncio.run(_talk(routed, [call]))[0][0] == status
    assert routes.runs.RUNS.wants_finish(RUN) is (status == 200)


@pytest.mark.parametrize("packing", ["gzip", "deflate", "br", "x"])
def test_a_packed_body_is_refused_unread(routed, packing):
    """It may unpack to more than it is, or not at all, which the server would answer with 500."""
    from graft.host import routes

    routes.runs.RUNS.start(RUN, total=3)
    headers = JSON | {"Content-Encoding": packing}
    call = ("POST", f"/graft/runs/{RUN}/save", {"data": b"{}", "headers": headers})
    assert asyncio.run(_talk(routed, [call]))[0][0] in (400, 415)
    assert not routes.runs.RUNS.wants_save(RUN)


def test_other_methods_and_ids_are_refused(routed):
    from graft.host import routes

    routes.runs.RUNS.start(RUN, total=3)
    calls = [
        (method, f"/graft/runs/{RUN}/finish") for method in ("PUT", "DELETE", "PATCH", "OPTIONS")
    ]
    calls += [("POST", "/graft/runs"), ("DELETE", f"/graft/runs/{RUN}")]
    assert [status for status, _ in asyncio.run(_talk(routed, calls))] == [405] * 6
    ids = [
        "a" * 65,
        "a" * 7,
        "a" * 4000,
        "%00" * 16,
        "..%2f" * 8,
        "%0a" + RUN,
        "\u0661" * 16,
        "%ff" * 16,
    ]
    calls = [("GET", f"/graft/runs/{one}") for one in ids]
    calls += [("POST", f"/graft/runs/{one}/save") for one in ids]
    assert {status for status, _ in asyncio.run(_talk(routed, calls))} <= {404, 400}


def test_no_place_of_a_file_is_told(routed, comfy):
    """What an error says of the disk reaches the browser below the host's folders, or as a name."""
    from pathlib import Path

    from graft.host import routes

    routes.runs.RUNS.start(RUN, total=3, facts={"name": f"{comfy}/output/loras/x"})
    text = (
        f"[Errno 28] No space left on device: '{comfy}/output/graft/a/b.tmp'; '/net/nas/private cats/1.png' is gone; "
        f'"C:\\Users\\Jo\\models\\x.pt" too; {Path.home()}/secret'
    )
    routes.runs.RUNS.add(RUN, "warned", text=text)
    routes.runs.RUNS.add(RUN, "ended", state="error", text=text)
    said = "[Errno 28] No space left on device: 'output/graft/a/b.tmp'; '1.png' is gone; \"x.pt\" too; ~/secret"
    answers = asyncio.run(_talk(routed, [("GET", f"/graft/runs/{RUN}"), ("GET", "/graft/runs")]))
    assert [event["text"] for event in answers[0][1]["events"]] == [said, said]
    assert answers[0][1]["text"] == answers[1][1][0]["text"] == said
    assert answers[0][1]["facts"] == {"name": "output/loras/x"}
    for hidden in (str(comfy), "/somewhere", "Users", str(Path.home())):
        assert hidden not in json.dumps(answers)
