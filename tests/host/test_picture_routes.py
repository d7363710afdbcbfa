# SPDX-License-Identifier: Apache-2.0
"""The routes of pictures and plots, over HTTP: what is wrong with a setting is an answer, a bad request is refused."""

import json
import urllib.error
import urllib.request

import pytest


def post(server, path, body, headers=None):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(
        f"{server.url}/graft/{path}",
        data,
        {"Content-Type": "application/json", **(headers or {})},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()  # the host turns some away itself, without a word


def test_layout_match_and_pick(server):
    status, shown = post(server, "blocks/layout", {"source": "mini"})
    assert (status, shown["layers"]) == (200, 239)
    body = {"source": "mini", "kind": "blocks", "text": "attention"}
    status, match = post(server, "blocks/match", body)
    assert status == 200 and match["error"] == "" and len(match["on"]) == len(match["of"])
    body |= {"group": "output_blocks", "block": "output_blocks.1", "part": "attn2", "on": False}
    status, picked = post(server, "blocks/pick", body)
    assert picked["text"] == "attention, -output_blocks.1.1.*.attn2"
    assert picked["layers"] == match["layers"] - 8


def test_families_are_listed(server):
    status, answer = post(server, "blocks/layout", {})
    assert status == 200 and "SDXL" in answer["families"]


def test_heat_and_plots(server):
    file = "graft-examples/dax begun.safetensors"
    assert any(post(server, "blocks/heat", {"source": "mini", "file": file})[1]["size"])
    body = {"source": "mini", "widgets": {"weight": "min-snr", "preserve": 1}}
    assert len(post(server, "plots/objective", body)[1]["weight"]) == 60
    assert len(post(server, "plots/schedule", {"widgets": {"steps": 7}})[1]["sigmas"]) == 8
    assert post(server, "plots/overlap", {"files": [file, file]})[1]["pairs"][0]["cosine"] > 0.99


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("blocks/layout", {"source": "checkpoint", "name": "../x.safetensors"}, "Unknown file of"),
        ("blocks/layout", {"source": "/etc", "name": "passwd"}, "Unknown source"),
        ("blocks/heat", {"source": "mini", "file": "/etc/passwd"}, "Unknown LoRA file"),
        ("blocks/match", {"source": "mini", "kind": "x"}, "Unknown kind"),
        ("plots/objective", {"source": "mini", "widgets": {"noise": "x"}}, "Unknown noise law"),
        ("plots/schedule", {"widgets": {"options": "rho"}}, "name=value"),
        ("plots/overlap", {"files": []}, "two to 4"),
        (
            "blocks/pick",
            {"source": "mini", "kind": "strengths", "group": "output_blocks", "value": 10**400},
            "too large",
        ),
    ],
)
def test_a_wrong_setting_is_answered_in_words(server, path, body, said):
    status, answer = post(server, path, body)
    assert status == 200
    assert said in answer["error"]


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("blocks/layout", b"[]", {}, 400),
        ("blocks/layout", b"{" * 100, {}, 400),
        ("blocks/layout", {"source": 3}, {}, 400),
        ("blocks/match", {"source": "mini", "text": "a" * 9000}, {}, 400),
        ("blocks/match", {"source": "mini", "text": "a" * 40_000}, {}, 413),
        ("blocks/pick", {"source": "mini", "on": 1}, {}, 400),
        ("blocks/pick", {"source": "mini", "on": True, "value": "1"}, {}, 400),
        ("plots/objective", {"source": "mini"}, {}, 400),
        ("plots/overlap", {"files": "x"}, {}, 400),
        ("blocks/layout", {}, {"Content-Type": "text/plain"}, 415),
        ("blocks/layout", {}, {"Sec-Fetch-Site": "cross-site"}, 403),
        ("plots/schedule", {}, {"Origin": "http://evil.example"}, 403),
    ],
)
def test_a_bad_request_is_refused(server, path, body, headers, status):
    assert post(server, path, body, headers)[0] == status
