# SPDX-License-Identifier: Apache-2.0
"""Converts a workflow as the browser saves it into the prompt that it sends, by /object_info.

It follows the frontend's graphToPrompt: muted and bypassed nodes, reroutes, primitives, notes,
widgets that were converted to inputs, and the hidden value of `control_after_generate`. Subgraphs
are refused.
"""

import json
from pathlib import Path
from typing import Any

NEVER, BYPASS = 2, 4
VIRTUAL = {"Reroute", "PrimitiveNode", "Note", "MarkdownNote"}
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
CONTROL_VALUES = {"fixed", "increment", "decrement", "randomize"}
SEED_NAMES = {"seed", "noise_seed"}


class WorkflowError(ValueError):
    """The workflow cannot be converted; the message names the node."""


def load(path: str | Path) -> dict[str, Any]:
    """Read a workflow file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def to_prompt(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """Return the API prompt of a UI workflow.

    Raises:
        WorkflowError: a node is not known, a value is missing, or a link leads nowhere.
    """
    graph = _Graph(workflow, object_info)
    prompt = {}
    for key, node in graph.nodes.items():
        if node["type"] not in VIRTUAL and node.get("mode", 0) not in (NEVER, BYPASS):
            prompt[key] = graph.api_node(node)
    for node in prompt.values():  # the frontend drops links to nodes that are not sent
        inputs = node["inputs"]
        for name in [n for n, v in inputs.items() if _is_link(v) and v[0] not in prompt]:
            del inputs[name]
    return prompt


def widget_values(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Return a saved node's widget values by input name.

    Raises:
        WorkflowError: there are fewer values than widgets.
    """
    values = node.get("widgets_values") or []
    if isinstance(values, dict):
        return dict(values)
    values, named = list(values), {}
    for name, kind, options in inputs_of(schema):
        if not is_widget(kind, options):
            continue
        if not values:
            if "default" in options or name in schema["input"].get("optional", {}):
                continue  # the pack has grown a widget since the workflow was saved
            raise WorkflowError(f"{_title(node)}: no value is saved for the widget '{name}'")
        named[name] = values.pop(0)
        if _has_control(name, kind, options) and values and values[0] in CONTROL_VALUES:
            values.pop(0)
    return named


def inputs_of(schema: dict[str, Any]) -> list[tuple[str, Any, dict[str, Any]]]:
    """Return (name, type, options) of a node's inputs in the order of the browser."""
    result = []
    for group in ("required", "optional"):
        members = schema["input"].get(group, {})
        for name in schema.get("input_order", {}).get(group, members):
            spec = members[name]
            options = spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {}
            result.append((name, spec[0], options))
    return result


def is_widget(kind: Any, options: dict[str, Any]) -> bool:
    """Return whether the browser makes a widget for this input."""
    if options.get("forceInput"):
        return False
    if isinstance(kind, list) or "widgetType" in options:
        return True
    return kind in WIDGET_TYPES


class _Graph:
    def __init__(self, workflow: dict[str, Any], object_info: dict[str, Any]):
        if (workflow.get("definitions") or {}).get("subgraphs"):
            raise WorkflowError("the workflow has subgraphs: unpack them before it is saved")
        self.object_info = object_info
        self.nodes = {str(node["id"]): node for node in workflow["nodes"]}
        self.links = {}
        for link in workflow.get("links", []):
            if isinstance(link, dict):
                self.links[link["id"]] = (str(link["origin_id"]), link["origin_slot"])
            else:
                self.links[link[0]] = (str(link[1]), link[2])

    def api_node(self, node: dict[str, Any]) -> dict[str, Any]:
        schema = self.object_info.get(node["type"])
        if schema is None:
            raise WorkflowError(f"{_title(node)}: the server has no such node")
        inputs = widget_values(node, schema)
        known = {name for name, _, _ in inputs_of(schema)}
        for slot in node.get("inputs", []):
            if slot.get("link") is None:
                continue
            name = (slot.get("widget") or {}).get("name", slot["name"])
            if name not in known:
                raise WorkflowError(f"{_title(node)}: the server's node has no input '{name}'")
            source = self.resolve(slot["link"], node)
            if source is None:
                inputs.pop(name, None)
            else:
                inputs[name] = source[1] if source[0] == "value" else list(source[1])
        for name, value in inputs.items():
            if isinstance(value, list) and not _is_link(value):
                inputs[name] = {"__value__": value}  # as the browser does: a list is a link
        title = node.get("title") or schema.get("display_name") or node["type"]
        return {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title}}

    def resolve(self, link: int, node: dict[str, Any]) -> tuple[str, Any] | None:
        """Follow a link to ("link", (id, slot)) or ("value", x); None when it ends at nothing."""
        for _ in range(len(self.nodes) + 1):
            if link not in self.links:
                raise WorkflowError(f"{_title(node)}: link {link} is not in the workflow")
            key, slot = self.links[link]
            origin = self.nodes.get(key)
            if origin is None:
                raise WorkflowError(f"{_title(node)}: link {link} comes from no node")
            if origin.get("mode", 0) == NEVER:
                return None
            if origin.get("mode", 0) == BYPASS:
                link_or_none = _bypassed(origin, slot)
            elif origin["type"] == "Reroute":
                link_or_none = (origin.get("inputs") or [{}])[0].get("link")
            elif origin["type"] == "PrimitiveNode":
                return "value", origin["widgets_values"][0]
            else:
                return "link", (key, slot)
            if link_or_none is None:
                return None
            link = link_or_none
        raise WorkflowError(f"{_title(node)}: its links run in a circle")


def _bypassed(node: dict[str, Any], slot: int) -> int | None:
    """Return the link behind output ``slot`` of a bypassed node: same index, else same type."""
    inputs, wanted = node.get("inputs", []), node["outputs"][slot]["type"]
    for entry in inputs[slot : slot + 1] + inputs:
        if entry["type"] == wanted and entry.get("link") is not None:
            return entry["link"]
    return None


def _has_control(name: str, kind: Any, options: dict[str, Any]) -> bool:
    control = options.get("control_after_generate")
    return bool(control) if control is not None else kind == "INT" and name in SEED_NAMES


def _is_link(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    return isinstance(value[0], str) and isinstance(value[1], int)


def _title(node: dict[str, Any]) -> str:
    return f"node {node['id']} ({node['type']})"
