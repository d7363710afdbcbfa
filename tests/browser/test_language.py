# SPDX-License-Identifier: Apache-2.0
"""A page in Chinese shows the pack's Chinese texts."""

import json

import pytest

from tests.host.inprocess import ROOT

TEXTS = """() => {
  const node = (app.rootGraph ?? app.graph).nodes.find((one) => one.type === 'GraftTrainLora');
  const name = (one) => one.label ?? one.localized_name ?? one.name;
  return {
    title: node.title,
    inputs: Object.fromEntries(node.inputs.map((one) => [one.name, name(one)])),
    outputs: node.outputs.map(name),
  };
}"""


def _reloaded(page):
    page.reload()
    page.problems.clear(), page.outside.clear()  # the start of ComfyUI's page, as in comfy_page
    return page


@pytest.fixture
def chinese_page(comfy_page, web_server, mode):
    """The shared page in Chinese; in its own language again afterwards."""
    if not mode.is_recent:
        pytest.skip("frontend 1.32 forgets the packs' texts when it loads its own of the language")
    settings = web_server.base / "user" / "default" / "comfy.settings.json"
    before = settings.read_text(encoding="utf-8")
    changed = json.dumps({**json.loads(before), "Comfy.Locale": "zh"})
    settings.write_text(changed, encoding="utf-8")
    yield _reloaded(comfy_page)
    settings.write_text(before, encoding="utf-8")
    _reloaded(comfy_page)


def test_names_are_chinese_where_the_page_is(chinese_page):
    path = ROOT / "locales" / "zh" / "nodeDefs.json"
    wanted = json.loads(path.read_text(encoding="utf-8"))["GraftTrainLora"]
    chinese_page.load("graft - train a LoRA")
    found = chinese_page.evaluate(TEXTS)
    assert found["title"] == wanted["display_name"]
    names = {key: one["name"] for key, one in wanted["inputs"].items()}
    assert {key: found["inputs"].get(key) for key in names} == names
    assert {wanted["outputs"][key]["name"] for key in "36"} <= set(found["outputs"])
