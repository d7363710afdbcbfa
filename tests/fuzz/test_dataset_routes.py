# SPDX-License-Identifier: Apache-2.0
"""Any plan of a dataset, and any question about one: an answer below 500, and nothing of the server's folders in it."""

import asyncio
import json
import shutil

import pytest
from hypothesis import assume
from hypothesis import strategies as st
from PIL import Image

from tests.fuzz.fuzzing import fuzz, tiers
from tests.host.runs.test_history import Routed

pytestmark = pytest.mark.comfy
NAMES = st.one_of(
    st.just("fuzzed"),
    st.sampled_from(
        ["..", "/etc", "fuzzed/..", "fuzzed\\..\\..", "~", "graft-examples/shape", "a\0", "C:"]
    ),
    st.text(max_size=12),
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just(2**80)
)
VALUES = st.fixed_dictionaries(
    {},
    optional={
        "folder": st.one_of(NAMES, NAMES, NAMES, SCALARS),
        "caption": st.one_of(st.text(max_size=30), st.just("{a|b"), SCALARS),
        "trigger": st.one_of(st.text(max_size=8), SCALARS),
        "recursive": st.one_of(st.booleans(), SCALARS),
        "resolution": st.one_of(st.integers(8, 8192), SCALARS),
        "crops": st.one_of(st.integers(1, 64), SCALARS),
        "layout": st.one_of(st.sampled_from(["plain", "repeats", "classes", "metadata"]), SCALARS),
        "masks": st.one_of(st.sampled_from(["none", "files", "alpha"]), SCALARS),
        "caption_lines": st.booleans(),
        "allow_no_caption": st.booleans(),
        "step": st.one_of(st.integers(0, 1024), SCALARS),
        "min_side": st.one_of(st.integers(0, 200), SCALARS),
        "upscale": st.booleans(),
        "wildcards": st.booleans(),
        "dropout": st.one_of(st.floats(), SCALARS),
        "repeats": st.one_of(st.just("1, 2"), SCALARS),
        "balance": st.one_of(st.just("repeats"), SCALARS),
    },
)  # fmt: skip
NODES = st.sampled_from(["GraftCaptions", "GraftBuckets", "GraftJoinDatasets", "GraftTrain", "", 5])
LEAVES = st.fixed_dictionaries({"node": st.just("GraftLoadImages"), "values": VALUES})
PLANS = st.recursive(
    LEAVES,
    lambda inner: st.fixed_dictionaries(
        {"node": NODES, "values": VALUES, "datasets": st.lists(inner, max_size=3)}
    ),
    max_leaves=4,
)
QUESTIONS = st.one_of(
    st.tuples(st.just("pictures?first="), st.one_of(st.integers(), st.text(max_size=5))),
    st.tuples(st.just("pictures/"), st.one_of(st.integers(-2, 5), st.text("./%0129", max_size=9))),
    st.tuples(
        st.just("thumbnails/"), st.one_of(st.integers(-2, 5), st.text("./%0129", max_size=9))
    ),
)


@tiers(60, 1500)
def test_any_plan_and_any_question(comfy, monkeypatch, cases):
    from aiohttp import web
    from aiohttp.test_utils import TestClient, TestServer

    from graft.host import routes
    from graft.host.data import looks
    from graft.host.routes import datasets

    folder = comfy / "input" / "fuzzed"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (64, 64 - 8 * number), "orange").save(folder / f"{number}.png")
    (folder / "1.txt").write_text("a {cat|dog", encoding="utf-8")
    server = Routed()
    monkeypatch.setattr(routes, "prompt_server", lambda: server)
    monkeypatch.setattr(datasets, "LOOKS", looks.Looks())
    assert routes.register()
    app = web.Application()
    app.add_routes(server.routes)
    loop = asyncio.new_event_loop()
    client = TestClient(TestServer(app), loop=loop)
    loop.run_until_complete(client.start_server())

    async def ask(method, path, body=None):
        async with client.request(method, path, json=body) as answer:
            return answer.status, answer.content_type, await answer.read()

    def asked(*given):
        status, kind, data = loop.run_until_complete(ask(*given))
        assert status < 500, data
        assert str(comfy).encode() not in data and b"Traceback" not in data
        return status, json.loads(data) if kind == "application/json" else data

    def check(given):
        plan, (path, value) = given
        body = {"dataset": plan}
        for _ in range(40):
            status, told = asked("POST", "/graft/datasets", body)
            if status != 200 or told["done"]:
                break
            body = {"id": told["id"]}
        if status == 200:
            assert told["done"]
            summary = told["summary"]
            assert summary["errors"] or summary["pictures"]
            asked("GET", f"/graft/datasets/{told['id']}/pictures")
            try:
                asked("GET", f"/graft/datasets/{told['id']}/{path}{value}")
            except (ValueError, TypeError):  # the client itself does not send such a thing
                assume(False)

    try:
        fuzz(cases, st.tuples(PLANS, QUESTIONS), check)
    finally:
        loop.run_until_complete(client.close())
        loop.close()
        shutil.rmtree(folder)
