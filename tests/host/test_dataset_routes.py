# SPDX-License-Identifier: Apache-2.0
"""The routes of datasets over HTTP: who may ask, what is refused, and that the server answers meanwhile."""

import asyncio
import json
import shutil
import time

import pytest
from PIL import Image

from tests.host.runs.test_history import HOST, JSON, OTHERS, Routed

pytestmark = pytest.mark.comfy


@pytest.fixture
def folder(comfy):
    path = comfy / "input" / "routed"
    path.mkdir()
    for number in range(3):
        Image.new("RGB", (64 + 8 * number, 64), "orange").save(path / f"{number}.jpg")
    yield path
    shutil.rmtree(path)


@pytest.fixture
def routed(comfy, monkeypatch):
    from graft.host import routes
    from graft.host.data import looks
    from graft.host.routes import datasets

    server = Routed()
    monkeypatch.setattr(routes, "prompt_server", lambda: server)
    monkeypatch.setattr(datasets, "LOOKS", looks.Looks())
    assert routes.register()
    return server


def talk(server, *calls):
    """Ask one after the other; an id of an answer can be used by the next ones as ``{id}``."""

    async def ask():
        from aiohttp import web
        from aiohttp.test_utils import TestClient, TestServer

        app = web.Application()
        app.add_routes(server.routes)
        answers, name = [], ""
        async with TestClient(TestServer(app)) as client:
            for method, path, *given in calls:
                options = given[0] if given else {}
                path = path.replace("{id}", name)
                async with client.request(method, path, **options) as answer:
                    is_json = answer.content_type == "application/json"
                    said = await answer.json() if is_json else await answer.read()
                    answers.append((answer.status, said, answer.headers))
                    name = said.get("id", name) if isinstance(said, dict) else name
        return answers

    return asyncio.run(ask())


def look(folder="routed", **values):
    given = {"folder": folder, "caption": "a cat", "resolution": 64} | values
    return {"json": {"dataset": {"node": "GraftLoadImages", "values": given}}}


def test_a_look_then_pages_thumbnails_and_one_picture(routed, folder):
    answers = talk(
        routed,
        ("POST", "/graft/datasets", look()),
        ("GET", "/graft/datasets/{id}/pictures?first=1&count=1"),
        ("GET", "/graft/datasets/{id}/pictures/2"),
        ("GET", "/graft/datasets/{id}/thumbnails/2"),
        ("GET", "/graft/datasets/{id}/pictures?only=odd"),
        ("POST", "/graft/datasets", look()),
    )
    assert [status for status, *_ in answers] == [200] * 6
    told = answers[0][1]
    assert told["done"] and told["summary"]["pictures"] == 3
    assert [row["name"] for row in answers[1][1]["rows"]] == ["1.jpg"]
    assert answers[2][1]["texts"] == ["a cat"]
    assert answers[3][1][:2] == b"\xff\xd8"
    assert answers[3][2]["Content-Type"] == "image/jpeg"
    assert answers[3][2]["X-Content-Type-Options"] == "nosniff"
    assert answers[4][1]["total"] == told["summary"]["odd"]
    assert answers[5][1]["id"] == told["id"]  # one look for all pages that ask for it


def test_what_is_wrong_is_answered(routed, folder):
    many = {"json": {"dataset": {"node": "GraftLoadImages", "values": {"folder": "x" * 2**17}}}}
    answers = talk(
        routed,
        ("POST", "/graft/datasets", {"json": {}}),
        ("POST", "/graft/datasets", {"data": "{}"}),
        ("POST", "/graft/datasets", many),
        ("POST", "/graft/datasets", {"json": {"id": "f" * 32}}),
        ("POST", "/graft/datasets", {"json": {"id": 5}}),
        ("POST", "/graft/datasets", look()),
        ("GET", "/graft/datasets/{id}/pictures?first=-1"),
        ("GET", "/graft/datasets/{id}/pictures?count=201"),
        ("GET", "/graft/datasets/{id}/pictures?count=9999999999999"),
        ("GET", "/graft/datasets/{id}/pictures/3"),
        ("GET", "/graft/datasets/{id}/pictures/x"),
        ("GET", "/graft/datasets/{id}/thumbnails/3"),
        ("GET", "/graft/datasets/{id}/thumbnails/..%2F..%2Fx"),
        ("GET", f"/graft/datasets/{'f' * 32}/pictures"),
        ("GET", f"/graft/datasets/{'F' * 32}/pictures"),
        ("GET", "/graft/datasets/..%2F..%2Fetc/thumbnails/0"),
    )
    assert [status for status, *_ in answers] == [
        400, 415, 413, 404, 404, 200, 400, 400, 400, 404, 400, 404, 400, 404, 404, 404,
    ]  # fmt: skip
    assert all(said["error"] for status, said, _ in answers if status != 200)


@pytest.mark.parametrize("name", ["..", "/etc", "routed/../..", "C:/Windows", "nothing"])
def test_a_folder_that_a_node_may_not_read_tells_nothing(routed, folder, name, comfy):
    ((status, told, _),) = talk(routed, ("POST", "/graft/datasets", look(name)))
    assert status == 200 and told["summary"]["pictures"] == 0
    assert (
        "not allowed" in told["summary"]["errors"][0] or "no folder" in told["summary"]["errors"][0]
    )
    assert str(comfy) not in json.dumps(told)


@pytest.mark.parametrize("headers", OTHERS)
def test_pages_of_other_sites_are_turned_away(routed, folder, headers):
    foreign = {"headers": HOST | headers}
    answers = talk(
        routed,
        ("POST", "/graft/datasets", {"headers": HOST | JSON | headers, "data": "{}"}),
        ("POST", "/graft/datasets", look()),
        ("GET", "/graft/datasets/{id}/pictures", foreign),
        ("GET", "/graft/datasets/{id}/pictures/0", foreign),
        ("GET", "/graft/datasets/{id}/thumbnails/0", foreign),
    )
    assert [status for status, *_ in answers] == [403, 200, 403, 403, 403]


def test_the_server_answers_while_pictures_are_read(routed, folder, monkeypatch):
    from graft.host.data import looks

    def slow(self, name, index):
        time.sleep(2)
        return b"\xff\xd8"

    monkeypatch.setattr(looks.Looks, "thumbnail", slow)

    async def ask():
        from aiohttp import web
        from aiohttp.test_utils import TestClient, TestServer

        app = web.Application()
        app.add_routes(routed.routes)
        async with TestClient(TestServer(app)) as client:
            waiting = asyncio.ensure_future(client.get(f"/graft/datasets/{'f' * 32}/thumbnails/0"))
            await asyncio.sleep(0.1)
            start = time.monotonic()
            async with client.get("/graft/runs") as answer:
                assert answer.status == 200
            took = time.monotonic() - start
            assert (await waiting).status == 200
        return took

    assert asyncio.run(ask()) < 1.5


def test_a_dataset_that_is_not_read_yet_has_no_pages(routed, folder, monkeypatch):
    from graft.host.data import looks

    monkeypatch.setattr(looks, "STEP_S", 0.0)
    answers = talk(
        routed,
        ("POST", "/graft/datasets", look()),
        ("GET", "/graft/datasets/{id}/pictures"),
        ("GET", "/graft/datasets/{id}/pictures/0"),
    )
    assert [status for status, *_ in answers] == [200, 409, 409]
    assert not answers[0][1]["done"] and "summary" not in answers[0][1]
