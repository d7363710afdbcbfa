# SPDX-License-Identifier: Apache-2.0
"""Any request to our routes: an answer below 500, in JSON where it is ours, and nothing asked for by another site."""

import asyncio
import json
import string

import pytest
from hypothesis import assume
from hypothesis import strategies as st

from tests.fuzz.fuzzing import fuzz, tiers
from tests.host.runs.test_history import RUN, Routed

pytestmark = pytest.mark.comfy
IDS = st.one_of(
    st.just(RUN),
    st.just(RUN),
    st.text(max_size=20),
    st.text("0123456789abcdef", min_size=1, max_size=80),
    st.sampled_from(
        ["..", "%2e%2e", "%00", "..%2f..%2fetc", "a" * 5000, RUN.upper(), RUN + "%0a", "\u0661" * 8]
    ),
)
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "Origin": st.one_of(
            st.sampled_from(
                ["http://comfy.local:8188", "http://evil.example", "null", "", "http://[", "//"]
            ),
            st.text(string.printable, max_size=20),
        ),
        "Sec-Fetch-Site": st.sampled_from(["same-origin", "cross-site", "none", "x", ""]),
        "Content-Type": st.one_of(
            st.sampled_from(
                ["application/json", "application/json", "text/plain", "application/json;"]
            ),
            st.text(string.printable, max_size=20),
        ),
        "Content-Encoding": st.sampled_from(["gzip", "deflate", "br", "identity", "x"]),
        "Host": st.one_of(
            st.just("comfy.local:8188"), st.text(string.ascii_letters + ":[]@/", max_size=12)
        ),
    },
)
BODIES = st.one_of(
    st.just(b"{}"),
    st.binary(max_size=40),
    st.sampled_from(
        [b"", b"[]", b"[" * 3000, b"{}" + b" " * 5000, b'{"a":NaN}', b'{"a":{"a":{}}}', b"\xff"]
    ),
)
METHODS = st.sampled_from(
    ["GET", "POST", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE"]
)


@tiers(150, 2000)
def test_any_request(comfy, monkeypatch, cases):
    from aiohttp import web
    from aiohttp.test_utils import TestClient, TestServer

    from graft.host import routes
    from graft.host.runs import history as runs

    server = Routed()
    for module in (routes, runs):
        monkeypatch.setattr(module, "prompt_server", lambda: server)
    monkeypatch.setattr(routes.runs, "RUNS", runs.Runs())
    assert routes.register()
    routes.runs.RUNS.start(RUN, total=3, facts={"where": f"{comfy}/output"})
    app = web.Application()
    app.add_routes(server.routes)
    loop = asyncio.new_event_loop()
    client = TestClient(TestServer(app), loop=loop)
    loop.run_until_complete(client.start_server())

    async def ask(method, path, headers, body):
        async with client.request(method, path, headers=headers, data=body) as answer:
            return answer.status, answer.content_type, await answer.text()

    def check(given):
        method, run, tail, headers, body = given
        try:
            status, kind, text = loop.run_until_complete(
                ask(method, f"/graft/runs/{run}{tail}", headers, body)
            )
        except (ValueError, TypeError, OSError):  # the client itself does not send such a thing
            assume(False)
        except Exception as error:
            if not type(error).__module__.startswith("aiohttp"):
                raise
            assume(False)
        assert status < 500, text
        assert str(comfy) not in text and "Traceback" not in text
        wanted = routes.runs.RUNS.wants_save(RUN), routes.runs.RUNS.wants_finish(RUN)
        if any(wanted):
            assert status == 200 and method == "POST" and routes.guard.is_same_origin(headers)
            assert headers["Content-Type"].startswith("application/json")
            assert isinstance(json.loads(body), dict)
            routes.runs.RUNS.start(RUN, total=3)
        if status == 200 and method != "HEAD":
            assert kind == "application/json" and json.loads(text)

    tails = st.sampled_from(
        ["", "/finish", "/save", "/finish", "/save", "?since=1", "?since=x", "/x", "/"]
    )
    numbers = st.one_of(st.integers(), st.text(max_size=9)).map(lambda since: f"?since={since}")
    given = st.tuples(METHODS, IDS, st.one_of(tails, numbers), HEADERS, BODIES)
    try:
        fuzz(cases, given, check)
    finally:
        loop.run_until_complete(client.close())
        loop.close()
