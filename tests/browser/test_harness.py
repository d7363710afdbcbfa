# SPDX-License-Identifier: Apache-2.0
"""The page of the real server: the pack's scripts load, its nodes are there, and what goes wrong is noticed."""

import pytest

from tests.browser.modes import RECENT
from tests.host.server import PACK_FOLDER


def test_every_script_of_ours_is_loaded(comfy_page):
    scripts = [name for name in comfy_page.server.get("/extensions") if PACK_FOLDER in name]
    assert f"/extensions/{PACK_FOLDER}/js/dom.js" in scripts
    assert set(scripts) <= set(comfy_page.asked)


def test_the_page_is_of_the_mode_that_the_test_is_for(comfy_page, mode):
    version = comfy_page.evaluate("() => window.__COMFYUI_FRONTEND_VERSION__")
    assert (version == RECENT) is mode.is_recent, version
    assert bool(comfy_page.evaluate("() => window.LiteGraph.vueNodesMode")) is mode.is_vue


def test_a_template_opens_with_its_values(comfy_page):
    workflow = comfy_page.load("graft - train a LoRA")
    prompt = comfy_page.prompt()
    assert {node["type"] for node in workflow["nodes"]} >= {
        node["class_type"] for node in prompt.values()
    }
    assert any(node["class_type"] == "GraftTrainLora" for node in prompt.values())


def test_text_of_others_is_shown_as_text(plain_page):
    hostile = "<img src=x onerror=window.broken=1>&amp;\u202e"
    code = """(m, text) => {
        const made = m.element("p", { text, title: text }, text);
        document.body.append(made);
        return [made.textContent, made.title, made.children.length, window.broken];
    }"""
    assert plain_page.module("dom", code, hostile) == [hostile * 2, hostile, 0, None]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("() => console.error('a thing of ours')", "console: a thing of ours"),
        ("() => { setTimeout(() => { throw new Error('thrown'); }); }", "page error: .*thrown"),
        ("() => fetch('/graft/nothing')", "HTTP 404: .*/graft/nothing"),
        ("() => fetch('http://127.0.0.1:9/x').catch(() => 0)", "(Content Security Policy|:9/x)"),
    ],
)
def test_what_goes_wrong_in_the_page_fails_a_test(plain_page, code, said):
    page = plain_page
    page.evaluate(code)
    page.page.wait_for_timeout(150)
    with pytest.raises(AssertionError, match=said):
        page.check()
