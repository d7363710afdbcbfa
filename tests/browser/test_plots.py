# SPDX-License-Identifier: Apache-2.0
"""Plots that change with the widgets of their node, and what they say where there is nothing to plot."""

import time

import pytest

from tests.browser.built import add, in_row, open_again

MINI = "GraftMiniModel"
FILES = ("graft-examples/dax begun.safetensors", "graft-examples/dax as TOK.safetensors")


def said(page, node, part):
    """Wait until the plot says something in its words."""
    page.wait(
        "([id, part]) => (app.rootGraph ?? app.graph).getNodeById(id).widgets"
        ".find((one) => one.name === 'graft_plot').element.title.includes(part)",
        [node, part],
    )


def drawn(page, node):
    page.page.wait_for_timeout(250)
    return in_row(page, node, "graft_plot", "(row) => row.querySelector('canvas').toDataURL()")


def test_an_objectives_plot_follows_its_widgets(comfy_page):
    page = comfy_page
    links = ((0, 0, 1, "model"), (2, 0, 1, "objective"))
    _, _, node = add(page, MINI, "GraftTrain", "GraftObjective", links=links)
    page.zoom(0.9, node)
    said(page, node, "half below 1.62")  # the middle of Stable Diffusion's table
    before = drawn(page, node)
    page.set(node, "weight", "min-snr")
    said(page, node, "middle 2.0")
    weighed = drawn(page, node)
    assert weighed != before
    page.set(node, "options", "gamma=1")
    page.wait(
        "([id, before]) => (app.rootGraph ?? app.graph).getNodeById(id).widgets"
        ".find((one) => one.name === 'graft_plot').element.querySelector('canvas').toDataURL() !== before",
        [node, weighed],
    )
    page.set(node, "options", "gama=1")
    said(page, node, "Did you mean gamma")
    page.set(node, "options", "")
    page.set(node, "noise", "logit-normal")
    said(page, node, "does not go with this MODEL")


def test_an_objective_without_a_model_takes_a_family(comfy_page):
    page = comfy_page
    (node,) = add(page, "GraftObjective")
    said(page, node, "choose a family")
    page.wait("() => document.querySelector('.graft-plot select')?.options.length > 3")
    in_row(
        page, node, "graft_plot",
        "(row) => { const s = row.querySelector('select'); s.value = 'Flux'; s.dispatchEvent(new Event('change')); }",
    )  # fmt: skip
    page.set(node, "noise", "logit-normal")
    said(page, node, "half below 0.5")


def test_a_schedules_levels_and_fold(comfy_page):
    page = comfy_page
    (node,) = add(page, "GraftSchedule")
    page.zoom(0.9, node)
    said(page, node, "karras: 18 steps, sigma 80 to 0.002")
    before = drawn(page, node)
    page.set(node, "steps", 5)
    said(page, node, "5 steps")
    assert drawn(page, node) != before
    high = page.evaluate("(id) => (app.rootGraph ?? app.graph).getNodeById(id).size[1]", node)
    in_row(page, node, "graft_plot", "(row) => row.querySelector('.graft-plot-fold').click()")
    page.wait(
        "([id, high]) => (app.rootGraph ?? app.graph).getNodeById(id).size[1] < high - 100",
        [node, high],
    )
    open_again(page)
    fold = in_row(
        page,
        node,
        "graft_plot",
        "(row) => row.querySelector('button').getAttribute('aria-expanded')",
    )
    assert fold == "false"


def test_the_overlap_of_two_files(comfy_page):
    page = comfy_page
    (node,) = add(page, "GraftMergeLoras")
    said(page, node, "Choose two files")
    page.set(node, "file_1", FILES[0])
    page.set(node, "file_2", FILES[0])
    said(page, node, "1 and 2: cosine 1.00")
    page.set(node, "file_2", FILES[1])
    said(page, node, "1 and 2: cosine 0.")


def test_the_overlap_of_adapters_is_shown_after_a_run(comfy_page):
    page = comfy_page
    links = ((0, 0, 2, "adapter_1"), (1, 0, 2, "adapter_2"), (2, 2, 3, "source"))
    one, other, node, _ = add(
        page, "GraftLoadLora", "GraftLoadLora", "GraftMergeLoras", "PreviewAny", links=links
    )
    page.set(one, "lora", FILES[0])
    page.set(other, "lora", FILES[1])
    page.set(
        node, "name", f"merged {time.time_ns()}"
    )  # what is cached is not run, and tells nothing
    said(page, node, "after a run")
    page.queue()
    said(page, node, "1 and 2: cosine 0.")
    page.wait_idle()


def test_scales_are_right(plain_page):
    code = """(m) => {
        const log = m.axis([0.01, null, 100], 0, 400, true, true);
        const linear = m.axis([1, 3], 100, 0);
        const empty = m.axis([], 0, 10, true);
        const colors = [m.cellColor(null), m.cellColor(-2)];
        return [log.at(1), linear.at(0), linear.at(3), Number.isFinite(empty.at(1)), ...colors];
    }"""
    found = plain_page.module("plots/curves", code)
    assert found[:4] == pytest.approx([200, 100, 0, True])
    assert found[4].startswith("rgba(128") and found[5] == "rgba(70, 130, 240, 1)"
