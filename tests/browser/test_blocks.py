# SPDX-License-Identifier: Apache-2.0
"""Blocks picked by clicks: the text follows the picture, the picture follows the text, and Python decides."""

import pytest

from tests.browser.built import add, in_row, open_again

MINI = "GraftMiniModel"
FILE = "graft-examples/dax begun.safetensors"
CELL = '[data-cell="output_blocks.1 attn2"]'
STYLE = "output_blocks.1.1.*.attn2"


def open_picker(page, node):
    in_row(page, node, "graft_blocks", "(row) => row.click()")
    page.page.wait_for_selector(".graft-picker:not([hidden])")


def state_of(page, state, cell=CELL):
    page.page.wait_for_selector(f'.graft-picker {cell}[data-state="{state}"]')


def text_is(page, node, text, widget="blocks"):
    page.wait(
        "([id, name, text]) => (app.rootGraph ?? app.graph).getNodeById(id).widgets"
        ".find((one) => one.name === name).value === text",
        [node, widget, text],
    )


def foot(page):
    return page.page.locator(".graft-picker-foot").text_content()


@pytest.fixture
def picker(comfy_page):
    """The picker of a Train LoRA whose model is graft-mini, through a reroute."""
    page = comfy_page
    links = ((0, 0, 1, ""), (1, 0, 2, "model"))
    page.node = add(page, MINI, "Reroute", "GraftTrainLora", links=links)[2]
    open_picker(page, page.node)
    state_of(page, "all")  # attention is what is trained unless one says otherwise
    yield page
    page.page.keyboard.press("Escape")
    page.evaluate("() => document.querySelector('.graft-picker [title^=Close]')?.click()")


def test_a_click_writes_the_text_that_one_would_type(picker):
    picker.page.locator(CELL).click()
    text_is(picker, picker.node, f"attention, -{STYLE}")
    state_of(picker, "none")
    assert picker.prompt()[str(picker.node)]["inputs"]["blocks"] == f"attention, -{STYLE}"
    picker.page.locator(CELL).click()
    text_is(picker, picker.node, "attention")
    state_of(picker, "all")


def test_typed_text_is_seen_in_the_picture(picker):
    picker.set(picker.node, "blocks", "output_blocks.1, -attn1")
    state_of(picker, "none", '[data-cell="output_blocks.1 attn1"]')
    state_of(picker, "all", '[data-cell="output_blocks.1 res"]')
    state_of(picker, "none", '[data-cell="output_blocks.2 attn2"]')
    picker.set(picker.node, "blocks", "transformer_blocks.0.attn2.to_q")
    state_of(picker, "some")


def test_presets_groups_parts_and_undo(picker):
    page = picker.page
    page.get_by_role("button", name="b-lora style", exact=True).click()
    text_is(picker, picker.node, "b-lora style")
    page.get_by_role("button", name="b-lora content", exact=True).click(modifiers=["Shift"])
    text_is(picker, picker.node, "b-lora style, b-lora content")
    state_of(picker, "all", '[data-cell="output_blocks.0 attn1"]')
    page.locator('[data-group="output_blocks"] .graft-map-row', has_text="attn2").click()
    text_is(picker, picker.node, "b-lora style, b-lora content, output_blocks.*.attn2")
    page.locator('[data-group="input_blocks"] .graft-map-head').first.click()
    text_is(
        picker, picker.node, "b-lora style, b-lora content, output_blocks.*.attn2, input_blocks"
    )
    for _ in range(2):
        page.get_by_role("button", name="Undo", exact=True).click()
    text_is(picker, picker.node, "b-lora style, b-lora content")
    state_of(picker, "none", '[data-cell="output_blocks.3 attn2"]')


def test_the_hosts_undo_takes_a_click_back_and_the_picker_stays(picker):
    picker.page.locator(CELL).click()
    text_is(picker, picker.node, f"attention, -{STYLE}")
    picker.page.wait_for_timeout(400)
    picker.page.locator(".graft-picker-title").click()
    picker.page.keyboard.press("Control+z")
    text_is(picker, picker.node, "attention")
    state_of(picker, "all")
    picker.page.locator(CELL).click()
    text_is(picker, picker.node, f"attention, -{STYLE}")


def test_what_the_language_does_not_take_stays_and_is_told(picker):
    hostile = "atention <img src=x onerror=window.broken=1>"
    picker.set(picker.node, "blocks", hostile)
    picker.page.wait_for_selector(".graft-picker-foot.is-wrong")
    assert "matches no layer" in foot(picker)
    assert "<img src=x" in foot(picker)
    assert picker.evaluate("() => window.broken") is None
    assert picker.widget(picker.node, "blocks") == hostile
    picker.page.locator(CELL).click()
    text_is(picker, picker.node, f"{hostile}, {STYLE}")


def test_the_row_is_neither_in_the_prompt_nor_in_the_workflow(picker):
    inputs = picker.prompt()[str(picker.node)]["inputs"]
    assert "graft_blocks" not in inputs
    node = next(n for n in picker.serialized()["nodes"] if str(n["id"]) == str(picker.node))
    values = [value for value in node["widgets_values"] if value is not None]
    assert "graft_display" not in str(node)
    open_again(picker)
    again = next(n for n in picker.serialized()["nodes"] if str(n["id"]) == str(picker.node))
    assert [value for value in again["widgets_values"] if value is not None] == values


def test_a_setting_finds_the_model_of_the_node_that_takes_it(comfy_page):
    links = ((0, 0, 1, "model"), (2, 0, 1, "network"))
    _, _, node = add(comfy_page, MINI, "GraftTrain", "GraftNetwork", links=links)
    open_picker(comfy_page, node)
    state_of(comfy_page, "all")
    comfy_page.set(node, "network", "bottleneck")  # sits in whole blocks
    state_of(comfy_page, "all", '[data-cell="output_blocks.1 ff"]')


def test_without_a_model_a_family_is_chosen(comfy_page):
    (node,) = add(comfy_page, "GraftTrainLora")
    open_picker(comfy_page, node)
    comfy_page.page.wait_for_selector(".graft-picker-foot.is-wrong")
    assert "choose its family" in foot(comfy_page)
    families = comfy_page.page.locator(".graft-picker select:visible")
    comfy_page.wait("() => document.querySelectorAll('.graft-picker option').length > 4")
    families.select_option("SDXL")
    comfy_page.wait(
        "() => document.querySelector('.graft-picker-title').textContent.includes('794')"
    )
    assert "560 of 794" in foot(comfy_page)
    families.select_option("Flux")
    comfy_page.page.wait_for_selector('[data-cell="double_blocks.18 img_attn"]')


def test_a_files_layers_their_strengths_and_how_much_they_change(comfy_page):
    page = comfy_page
    _, node = add(page, MINI, "GraftLoadLoraBlocks", links=((0, 0, 1, "model"),))
    page.set(node, "file", FILE)
    open_picker(page, node)
    state_of(page, "absent", '[data-cell="middle_block res"]')
    state_of(page, "all")  # empty: all of the file
    page.page.locator(CELL).click()
    text_is(page, node, f"-{STYLE}")
    page.page.get_by_role("button", name="|dW|", exact=True).click()
    page.wait(
        "() => Number(document.querySelector('[data-cell=\"output_blocks.1 attn1\"]').style"
        ".getPropertyValue('--heat')) > 0.1"
    )
    page.page.locator(".graft-picker select:visible").select_option("1")
    page.page.locator(".graft-picker input[type=number]").fill("0.25")
    page.page.locator(CELL).click()
    text_is(page, node, f"{STYLE}=0.25", "strengths")
    page.wait(f"() => document.querySelector('{CELL}').textContent === '0.25'")
    page.page.locator(CELL).click()
    text_is(page, node, "", "strengths")


# A graph of plain objects: a loader outside, a node inside of a subgraph, and a setting behind another one's end.
_FAKE = """(m) => {
    const loader = {id: 1, type: "UNETLoader", widgets: [{name: "unet_name", value: "a.safetensors"}],
        inputs: [], outputs: [{links: [1]}]};
    const lora = {id: 2, type: "LoraLoader", inputs: [{name: "model", type: "MODEL", link: 1}],
        outputs: [{links: [2]}]};
    const train = {id: 9, type: "GraftTrain", outputs: [],
        inputs: [{name: "model", type: "MODEL", link: 7}, {name: "network", type: "GRAFT_NETWORK", link: 8}]};
    const setting = {id: 8, type: "GraftNetwork", inputs: [], outputs: [{links: [8]}]};
    const inner = {nodes: [train, setting], links: {
        7: {origin_id: -10, origin_slot: 0, target_id: 9, target_slot: 0},
        8: {origin_id: 8, origin_slot: 0, target_id: 9, target_slot: 1},
    }, getNodeById: (id) => inner.nodes.find((n) => n.id === id)};
    const outer = {id: 3, type: "uuid", subgraph: inner, inputs: [{name: "model", link: 2}], outputs: []};
    const graph = {nodes: [loader, lora, outer], links: new Map([
        [1, {origin_id: 1, origin_slot: 0, target_id: 2, target_slot: 0}],
        [2, {origin_id: 2, origin_slot: 0, target_id: 3, target_slot: 0}],
    ]), getNodeById: (id) => graph.nodes.find((n) => n.id === id)};
    inner.rootGraph = graph;
    for (const node of graph.nodes) node.graph = graph;
    for (const node of inner.nodes) node.graph = inner;
    const circle = {id: 5, type: "Reroute", inputs: [{name: "", type: "*", link: 4}], outputs: [{links: [4]}]};
    const back = {origin_id: 5, origin_slot: 0, target_id: 5, target_slot: 0};
    circle.graph = {links: {4: back}, getNodeById: () => circle};
    const loose = {id: 10, type: "GraftTrain", graph: inner, outputs: [{links: [9]}],
        inputs: [{name: "model", link: null}]};
    inner.links[9] = {origin_id: 10, origin_slot: 0, target_id: 9, target_slot: 1};
    return [train, setting, lora, circle, loose].map((node) => m.modelSource(node));
}"""


def test_the_loader_is_found_through_subgraphs_and_circles_end(plain_page):
    found = {"source": "unet", "name": "a.safetensors"}
    assert plain_page.module("source", _FAKE) == [found, found, found, None, None]
