# SPDX-License-Identifier: Apache-2.0
"""The pack in a real server: it loads without a word of complaint, as a link and as the copy that ships."""

import ast
import json
import re
from pathlib import Path

import pytest

from tests.host.server import PACK_FOLDER, ComfyServer, ExecutionError, Interrupted, PromptRejected

pytestmark = pytest.mark.server
ROOT = Path(__file__).resolve().parents[2]


def ids_in_source() -> set[str]:
    """Return the literal node ids of nodes/*.py."""
    found = set()
    for path in (ROOT / "nodes").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "schema":
                (given,) = (one.value for one in node.keywords if one.arg == "node_id")
                found.add(ast.literal_eval(given))
    return found


def check_loaded(server: ComfyServer) -> None:
    """Assert that the server has all nodes of the pack, and printed no problem of ours."""
    log = server.log().split("Starting server")[0]  # other tests fail on purpose later
    assert "IMPORT FAILED" not in log, log
    assert "Error while calling comfy_entrypoint" not in log, log
    assert "Traceback" not in log, log
    assert not re.search(rf"Failed to load.*{PACK_FOLDER}|Graft's nodes? .* (not|could)", log), log
    known = server.object_info()
    assert ids_in_source()
    assert ids_in_source() <= set(known)
    for name in ids_in_source():
        assert known[name]["category"].startswith("graft"), name
        assert known[name]["python_module"] == f"custom_nodes.{PACK_FOLDER}"


def test_the_pack_loads_with_all_its_nodes(server):
    check_loaded(server)


def test_the_web_folder_is_served(server):
    served = [url for url in server.get("/extensions") if f"/{PACK_FOLDER}/" in url]
    scripts = sorted((ROOT / "web").rglob("*.js"))
    assert len(served) == len(scripts)
    for script in scripts:
        path = script.relative_to(ROOT / "web").as_posix()
        body = server.get_bytes(f"/extensions/{PACK_FOLDER}/{path}")
        assert body == script.read_bytes()


def test_the_help_pages_are_served(server):
    for page in sorted((ROOT / "web" / "docs").glob("*.md")):
        assert page.stem in ids_in_source(), f"web/docs/{page.name} is the page of no node"
        assert server.get_bytes(f"/extensions/{PACK_FOLDER}/docs/{page.name}") == page.read_bytes()


def test_the_texts_of_every_language_are_served(server):
    served = server.get("/i18n")
    languages = {path.name for path in (ROOT / "locales").iterdir()}
    assert {"en", "zh"} <= languages
    for language in languages:
        path = ROOT / "locales" / language / "nodeDefs.json"
        texts = json.loads(path.read_text(encoding="utf-8"))
        assert set(texts) == ids_in_source()
        assert {node: served[language]["nodeDefs"].get(node) for node in texts} == texts
    assert served["zh"]["nodeDefs"]["GraftTrain"]["inputs"]["steps"]["name"] == "步数"


def test_the_templates_are_listed(server):
    listed = server.get("/workflow_templates").get(PACK_FOLDER, [])
    assert sorted(listed) == sorted(p.stem for p in (ROOT / "example_workflows").glob("*.json"))


def test_what_ships_loads_without_the_repository(tmp_path):
    with ComfyServer(tmp_path, copy_pack=True) as server:
        pack = server.base / "custom_nodes" / PACK_FOLDER
        assert not pack.is_symlink()
        assert not (pack / "tests").exists()
        check_loaded(server)


def picture(width: object = 64, source: str = "EmptyImage") -> dict:
    """Return the prompt that saves one red picture of core's."""
    size = {"width": width, "height": 64, "batch_size": 1, "color": 0xFF0000}
    return {
        "1": {"class_type": source, "inputs": size},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "red"}},
    }


def test_a_prompt_runs_and_its_events_arrive(server):
    prompt_id = server.queue(picture())
    entry = server.wait(prompt_id)
    (image,) = server.images(entry, "2")
    assert server.view(image).startswith(b"\x89PNG")
    assert (server.output / image["subfolder"] / image["filename"]).is_file()
    end = server.wait_event(
        lambda e: e["type"] == "execution_success" and e["data"]["prompt_id"] == prompt_id
    )
    start = server.events_of(prompt_id, "execution_start")[0]
    assert start["time"] <= end["time"]


def test_a_bad_prompt_is_rejected_with_the_servers_own_words(server):
    with pytest.raises(PromptRejected, match="EmptyImage.*width") as caught:
        server.queue(picture("wide"))
    assert "1" in caught.value.node_errors
    with pytest.raises(PromptRejected, match="NoSuchNode"):
        server.queue(picture(source="NoSuchNode"))


def test_a_nodes_error_is_raised_with_its_text(server):
    broken = server.put_input(ROOT / "pyproject.toml", "not_a_picture.png")
    prompt = picture()
    prompt["1"] = {"class_type": "LoadImage", "inputs": {"image": broken.name}}
    with pytest.raises(ExecutionError, match="LoadImage.*(not_a_picture|identify)") as caught:
        server.run(prompt)
    assert not isinstance(caught.value, Interrupted)
    assert caught.value.details["node_id"] == "1"
