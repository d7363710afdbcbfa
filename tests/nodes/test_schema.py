# SPDX-License-Identifier: Apache-2.0
"""What must hold for every node, on the real schema classes of the host."""

import ast
import asyncio
import inspect
import json
import re

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.comfy

OUTPUTS = ["MODEL", "CLIP", "LORA_MODEL", "GRAFT_STATE", "LOSS_MAP", "IMAGE", "GRAFT_ADAPTER"]
TRAINING = {
    "GraftTrain",
    "GraftTrainBLora",
    "GraftTrainLora",
    "GraftTrainPivotal",
    "GraftTrainTextualInversion",
    "GraftTrainDreamBooth",
    "GraftTrainCustomDiffusion",
}
# Characters that mean something to the browser's translation library.
NOT_IN_LOCALES = re.compile(r"[{}@|]")


def ids_in_source() -> set[str]:
    """Return the literal node ids, found as ComfyUI-Manager's scanner finds them."""
    found = set()
    for path in (ROOT / "nodes").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_id = isinstance(node, ast.keyword) and node.arg == "node_id"
            if is_id and isinstance(node.value, ast.Constant):
                found.add(node.value.value)
    return found


@pytest.fixture(scope="module")
def nodes():
    from graft.nodes import node_classes

    return {node.GET_SCHEMA().node_id: node for node in node_classes()}


def every(test):
    return pytest.mark.parametrize("node_id", sorted(ids_in_source()))(test)


def workflow_nodes() -> set[str]:
    return {
        node["type"]
        for path in (ROOT / "example_workflows").glob("*.json")
        for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]
    }


def test_every_node_in_the_source_works_on_this_host(nodes):
    assert set(nodes) == ids_in_source()


def test_the_extension_lists_the_nodes():
    from graft.nodes import GraftExtension, node_classes

    assert asyncio.run(GraftExtension().get_node_list()) == node_classes()


@every
def test_ids_names_and_categories(nodes, node_id):
    schema = nodes[node_id].GET_SCHEMA()
    assert re.fullmatch(r"Graft[A-Za-z0-9]+", node_id)
    assert re.fullmatch(r"graft(/[a-z]+)+", schema.category)
    assert schema.display_name and "Graft" not in schema.display_name
    assert schema.description.endswith(".")


@every
def test_nodes_derive_directly_from_comfy_node_and_have_no_docstring(nodes, node_id):
    from comfy_api.latest import io

    assert nodes[node_id].__bases__ == (io.ComfyNode,)
    assert "__doc__" not in vars(nodes[node_id]) or vars(nodes[node_id])["__doc__"] is None


@every
def test_every_input_and_output_has_a_tooltip(nodes, node_id):
    schema = nodes[node_id].GET_SCHEMA()
    for one in [*schema.inputs, *schema.outputs]:
        assert one.tooltip and one.tooltip.endswith("."), one.id
    for one in schema.outputs:
        assert one.display_name


@every
def test_execute_takes_the_inputs_and_nothing_else(nodes, node_id):
    schema = nodes[node_id].GET_SCHEMA()
    parameters = inspect.signature(nodes[node_id].execute).parameters
    assert set(parameters) == {one.id for one in schema.inputs}
    for one in schema.inputs:
        has_default = parameters[one.id].default is not inspect.Parameter.empty
        assert has_default == bool(one.optional), one.id
        assert parameters[one.id].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD


@every
def test_numbers_have_limits_that_hold_the_default(nodes, node_id):
    for one in nodes[node_id].GET_SCHEMA().inputs:
        if hasattr(one, "min"):
            assert one.min is not None and one.max is not None, one.id
            assert one.min <= one.default <= one.max, one.id
        if isinstance(getattr(one, "options", None), list) and one.options:
            assert one.default in one.options, one.id


@every
def test_the_help_page_exists_and_says_the_name(nodes, node_id):
    page = (ROOT / "web" / "docs" / f"{node_id}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {nodes[node_id].GET_SCHEMA().display_name}\n")


def test_help_pages_belong_to_nodes():
    pages = {path.stem for path in (ROOT / "web" / "docs").glob("*.md")}
    assert pages == ids_in_source()


@every
def test_the_node_is_in_an_example_workflow(node_id):
    assert node_id in workflow_nodes()


@pytest.mark.parametrize("node_id", sorted(TRAINING))
def test_training_nodes_have_the_seven_outputs_in_order(nodes, node_id):
    schema = nodes[node_id].GET_SCHEMA()
    assert [str(one.io_type) for one in schema.outputs] == OUTPUTS
    assert schema.is_output_node
    hidden = {str(one.value) for one in schema.hidden}
    assert {"UNIQUE_ID", "PROMPT", "EXTRA_PNGINFO"} <= hidden


def test_the_locale_file_is_up_to_date():
    from graft.tools import make_locales

    shipped = (ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8")
    made = make_locales.definitions()
    assert json.loads(shipped) == made, "run `python -m tools.make_locales`"
    assert shipped == make_locales.text(made)


def test_locale_texts_have_no_characters_that_the_browser_reads_as_syntax():
    def texts(value):
        return [t for v in value.values() for t in texts(v)] if isinstance(value, dict) else [value]

    content = json.loads((ROOT / "locales/en/nodeDefs.json").read_text(encoding="utf-8"))
    assert not [text for text in texts(content) if NOT_IN_LOCALES.search(text)]


def test_a_broken_module_does_not_hide_the_others(monkeypatch, caplog):
    import graft.nodes

    monkeypatch.setattr(graft.nodes, "MODULES", ("mini", "not_there", "preview"))
    found = [node.GET_SCHEMA().node_id for node in graft.nodes.node_classes()]
    assert found == ["GraftMiniModel", "GraftPreview"]
    assert "nodes/not_there.py could not be loaded" in caplog.text
    assert "Traceback" in caplog.text


def test_a_broken_schema_does_not_hide_the_others(monkeypatch, caplog):
    import graft.nodes
    from graft.nodes.mini import MiniModel

    def broken(cls):
        raise TypeError("no such keyword")

    monkeypatch.setattr(MiniModel, "define_schema", classmethod(broken))
    monkeypatch.setattr(graft.nodes, "MODULES", ("mini", "preview"))
    assert [node.GET_SCHEMA().node_id for node in graft.nodes.node_classes()] == ["GraftPreview"]
    assert "MiniModel" in caplog.text and "no such keyword" in caplog.text


def test_keywords_that_the_host_does_not_know_are_left_out():
    from graft.nodes.schema import make

    def old(name, tooltip=None):
        return name, tooltip

    assert make(old, "steps", tooltip="How many.", advanced=True) == ("steps", "How many.")


def test_a_widget_is_made_of_its_field():
    from graft.nodes.schema import field
    from graft.trainers.plan import CHECKPOINTING, Plan

    steps = field(Plan, "steps", max=1000)
    assert (steps.id, steps.default, steps.min, steps.max) == ("steps", 500, 1, 1000)
    assert steps.tooltip == "Optimizer steps to train."
    assert tuple(field(Plan, "checkpointing").options) == CHECKPOINTING
    assert field(Plan, "max_grad_norm", "clip_at").id == "clip_at"


def test_a_choice_that_came_over_a_link_is_one_that_is_there(comfy):
    from graft.nodes.schema import one_of

    assert one_of("network", "LoRA", {"LoRA": 1, "full weights": 2}) == "LoRA"
    with pytest.raises(ValueError, match="Unknown network 'LoRe'. Did you mean LoRA"):
        one_of("network", "LoRe", {"LoRA": 1, "full weights": 2})
