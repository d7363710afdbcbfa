# SPDX-License-Identifier: Apache-2.0
"""The conversion of saved workflows: the browser's rules on small graphs, the host's templates."""

import json
from pathlib import Path

import pytest

from tests.host import workflow

INFO = {
    "Make": {
        "input": {
            "required": {
                "seed": ["INT", {"default": 0, "control_after_generate": True}],
                "mode": [["a", "b"], {}],
                "text": ["STRING", {}],
            },
            "optional": {"model": ["MODEL"]},
        },
    },
    "Pass": {"input": {"required": {"model": ["MODEL"], "strength": ["FLOAT", {"default": 1.0}]}}},
    "Use": {
        "input": {
            "required": {"model": ["MODEL"], "text": ["STRING", {}]},
            "optional": {"extra": ["MODEL"]},
        }
    },
}


def node(key, kind, values=(), inputs=(), mode=0, outputs=("MODEL",)):
    return {
        "id": key,
        "type": kind,
        "mode": mode,
        "widgets_values": list(values),
        "inputs": [
            {"name": name, "type": type_, "link": link, **({"widget": {"name": name}} if w else {})}
            for name, type_, link, w in inputs
        ],
        "outputs": [{"type": type_} for type_ in outputs],
    }


def test_the_hidden_seed_control_is_not_a_value():
    saved = {"nodes": [node(1, "Make", [7, "randomize", "b", "x"])], "links": []}
    assert workflow.to_prompt(saved, INFO)["1"]["inputs"] == {"seed": 7, "mode": "b", "text": "x"}


def test_links_go_through_reroutes_and_bypassed_nodes_but_not_through_muted_ones():
    saved = {
        "nodes": [
            node(1, "Make", [7, "fixed", "a", ""]),
            node(2, "Reroute", inputs=[("", "*", 1, False)], outputs=("*",)),
            node(3, "Pass", [0.5], inputs=[("model", "MODEL", 2, False)], mode=workflow.BYPASS),
            node(4, "Pass", [0.5], inputs=[("model", "MODEL", 4, False)], mode=workflow.NEVER),
            node(
                5,
                "Use",
                ["old"],
                inputs=[
                    ("model", "MODEL", 3, False),
                    ("text", "STRING", 6, True),
                    ("extra", "MODEL", 5, False),
                ],
            ),
            node(6, "PrimitiveNode", ["new", "fixed"], outputs=("STRING",)),
            node(7, "MarkdownNote", ["# hello"]),
        ],
        "links": [
            [1, 1, 0, 2, 0, "MODEL"],
            [2, 2, 0, 3, 0, "MODEL"],
            [3, 3, 0, 5, 0, "MODEL"],
            [4, 1, 0, 4, 0, "MODEL"],
            [5, 4, 0, 5, 2, "MODEL"],
            {"id": 6, "origin_id": 6, "origin_slot": 0, "target_id": 5, "target_slot": 1},
        ],
    }
    prompt = workflow.to_prompt(saved, INFO)
    assert set(prompt) == {"1", "5"}
    assert prompt["5"]["inputs"] == {"model": ["1", 0], "text": "new"}


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"nodes": [node(1, "Gone")]}, "no such node"),
        ({"nodes": [node(1, "Make", [1, "fixed"])]}, "widget 'mode'"),
        ({"nodes": [node(1, "Pass", [1], [("model", "MODEL", 9, False)])]}, "link 9"),
        ({"nodes": [node(1, "Pass", [1], [("vae", "VAE", 9, False)])]}, "no input 'vae'"),
        ({"nodes": [], "definitions": {"subgraphs": [{}]}}, "subgraphs"),
    ],
)
def test_a_broken_workflow_is_named(saved, message):
    with pytest.raises(workflow.WorkflowError, match=message):
        workflow.to_prompt(saved, INFO)


@pytest.mark.parametrize(
    "name", ["default", "lora", "hiresfix_latent_workflow", "sdxl_simple_example"]
)
def test_the_hosts_own_templates_convert(server, name):
    import comfyui_workflow_templates

    templates = comfyui_workflow_templates.__path__[0]
    found = sorted(
        Path(templates).parent.glob(f"comfyui_workflow_templates*/templates/{name}.json")
    )
    if not found:
        pytest.skip(f"this host ships no template {name}")
    saved = json.loads(found[0].read_text(encoding="utf-8"))
    info = server.object_info()
    prompt = workflow.to_prompt(saved, info)
    assert {"KSampler", "KSamplerAdvanced"} & {entry["class_type"] for entry in prompt.values()}
    for entry in prompt.values():
        required = info[entry["class_type"]]["input"].get("required", {})
        assert set(required) <= set(entry["inputs"])
        for field, value in entry["inputs"].items():
            kind = (required.get(field) or ["?"])[0]
            if kind in ("INT", "FLOAT") and not isinstance(value, list):
                assert isinstance(value, (int, float)), (entry["class_type"], field, value)
            if field in ("sampler_name", "scheduler") and isinstance(kind, list):
                assert value in kind
