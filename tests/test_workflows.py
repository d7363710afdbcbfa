# SPDX-License-Identifier: Apache-2.0
"""Every example workflow opens, fits the nodes, and runs end to end through a real server, with fewer steps."""

import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from tests.host.workflow import inputs_of, is_widget, load, to_prompt

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / "example_workflows").glob("*.json"))
# What is made smaller, so that a run takes seconds. The rest is run as it ships.
SHORT = {
    "GraftTrainLora": {"steps": 6, "steps_unit": "steps"},
    "GraftTrain": {"steps": 3, "total_steps": 6},
    "GraftTrainBLora": {"steps": 3},
    "GraftPositionStudy": {"steps": 2, "positions": "attn1i-attn2i; attn2o-ffni; ffni-transo"},
    "GraftTrainPivotal": {"steps": 3, "steps_unit": "steps"},
    "GraftTrainTextualInversion": {"steps": 3, "steps_unit": "steps"},
    "GraftTrainDreamBooth": {"steps": 3, "steps_unit": "steps", "class_images": 4},
    "GraftTrainCustomDiffusion": {"steps": 3, "steps_unit": "steps"},
    "GraftZipLora": {"steps": 2},
    "GraftPreview": {"every": 3, "steps": 2},
    "KSampler": {"steps": 3},
    "BasicScheduler": {"steps": 2},
    "EmptyLatentImage": {"batch_size": 4},
    "PrimitiveInt": {"value": 1},
}

TRAINING = (
    "GraftTrainLora",
    "GraftTrain",
    "GraftTrainBLora",
    "GraftTrainPivotal",
    "GraftTrainTextualInversion",
    "GraftTrainDreamBooth",
    "GraftTrainCustomDiffusion",
)

each = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def shortened(path, server):
    """The API prompt of a workflow, with few steps."""
    known = server.object_info()
    prompt = to_prompt(load(path), known)
    for node in prompt.values():
        for name, kind, options in inputs_of(known[node["class_type"]]):
            # Newer hosts' nodes have more widgets than were saved; the browser takes their defaults.
            if is_widget(kind, options) and "default" in options:
                node["inputs"].setdefault(name, options["default"])
        for name, value in SHORT.get(node["class_type"], {}).items():
            if not isinstance(node["inputs"][name], list):
                node["inputs"][name] = value
    return prompt


def of_type(prompt, *kinds):
    return [key for key, node in prompt.items() if node["class_type"] in kinds]


def test_there_are_workflows_and_their_names_are_files_everywhere():
    assert WORKFLOWS
    for path in WORKFLOWS:
        assert not re.search(r'[<>:"/\\|?*]', path.name)


@each
def test_the_workflow_has_its_picture(path):
    with Image.open(path.with_suffix(".jpg")) as picture:
        assert picture.format == "JPEG"
        assert min(picture.size) >= 256


@each
def test_the_layout_leaves_room(path):
    """Nodes grow in the newer browser page: columns keep 200 px apart, and no two nodes overlap."""
    nodes = load(path)["nodes"]
    for node in nodes:
        for other in nodes:
            if node["id"] < other["id"]:
                gap = [
                    max(
                        node["pos"][axis] - other["pos"][axis] - other["size"][axis],
                        other["pos"][axis] - node["pos"][axis] - node["size"][axis],
                    )
                    for axis in (0, 1)
                ]
                assert gap[0] >= 180 or gap[1] >= 40, (node["type"], other["type"])


@each
def test_the_workflow_tells_what_to_do(path):
    workflow = load(path)
    notes = [node for node in workflow["nodes"] if node["type"] in ("Note", "MarkdownNote")]
    assert notes and "Run" in notes[0]["widgets_values"][0]
    assert workflow["groups"]
    assert workflow["version"] == 0.4


@each
def test_seeds_stay(path):
    """A seed that changes after every run would train again on every run."""
    for node in load(path)["nodes"]:
        assert not {"randomize", "increment", "decrement"} & set(map(str, node["widgets_values"]))


@each
def test_slots_and_widgets_are_those_of_the_nodes(path, server):
    known = server.object_info()
    for node in load(path)["nodes"]:
        if node["type"] not in known:
            assert node["type"] in ("Note", "MarkdownNote", "Reroute")
            continue
        schema = known[node["type"]]
        inputs = {**schema["input"].get("required", {}), **schema["input"].get("optional", {})}
        assert {slot["name"] for slot in node["inputs"]} <= set(inputs)
        types = [slot["type"] for slot in node["outputs"]]
        assert types == schema["output"][: len(types)]


@each
def test_the_workflow_runs_and_a_second_run_does_not_train_again(path, server):
    workflow = load(path)
    prompt = shortened(path, server)
    before = set((server.output / "loras").glob("*.safetensors"))
    entry = server.run(prompt, timeout_s=200, workflow=workflow)
    outputs = entry["outputs"]

    for key in of_type(prompt, *TRAINING):
        assert outputs[key]["text"][0]
        assert "images" not in outputs[key]
    for key in of_type(prompt, "GraftSaveLora"):
        found = re.search(r"(\d+) of (\d+) tensors applied", outputs[key]["text"][0])
        assert found and found[1] == found[2] != "0"
    if of_type(prompt, "GraftSaveLora"):
        assert set((server.output / "loras").glob("*.safetensors")) - before
    for key in of_type(prompt, "SaveImage", "PreviewImage", "LossGraphNode", "GraftDatasetPreview"):
        pictures = server.images(entry, key)
        assert pictures
        for reference in pictures:
            Image.open(io.BytesIO(server.view(reference))).verify()
    listed = server.object_info("LoraLoader")["input"]["required"]["lora_name"]
    names = listed[0] if isinstance(listed[0], list) else listed[1]["options"]
    assert all(file.name in names for file in (server.output / "loras").glob("*.safetensors"))

    again = server.queue(prompt)
    server.wait(again)
    cached = server.events_of(again, "execution_cached")[0]["data"]["nodes"]
    assert set(of_type(prompt, *TRAINING, "GraftLoadImages")) <= set(cached)


def test_workflows_are_tidy_json():
    for path in WORKFLOWS:
        text = path.read_text(encoding="utf-8")
        assert text == json.dumps(json.loads(text), indent=2) + "\n"
