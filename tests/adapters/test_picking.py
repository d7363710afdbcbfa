# SPDX-License-Identifier: Apache-2.0
"""Clicks as text: a click does what it says, and leaves what was typed."""

import random

import pytest

from graft.adapters.picking import clicked, weighted
from graft.adapters.settings import pairs
from graft.adapters.targets import chosen

NAMES = [f"output_blocks.{n}.1.{part}.to_q" for n in range(3) for part in ("attn1", "attn2")]
NAMES += ["middle_block.1.attn2.to_q", "out"]


def of_run(text):
    return chosen(NAMES, text)


def of_file(text):
    return chosen(NAMES, text) if text.strip() else NAMES


def click(text, pattern, is_on, select=of_run):
    return clicked(text, [pattern], set(chosen(NAMES, pattern)), is_on, select)


@pytest.mark.parametrize(
    ("text", "pattern", "is_on", "after"),
    [
        ("", "out", True, "out"),
        ("none", "out", True, "out"),
        ("attn2", "out", True, "attn2, out"),
        ("attn2, out", "out", False, "attn2"),
        ("attn2", "output_blocks.1.*.attn2", False, "attn2, -output_blocks.1.*.attn2"),
        ("attn2, -output_blocks.1.*.attn2", "output_blocks.1.*.attn2", True, "attn2"),
        # It is in another part of the text, too: taking its own pattern away does not do it.
        ("out, all", "out", False, "all, -out"),
        ("attn2,\n out ,", "middle_block", True, "attn2,\n out, middle_block"),
    ],
)
def test_a_click_on_what_is_trained(text, pattern, is_on, after):
    assert click(text, pattern, is_on) == after


def test_where_empty_means_all_a_click_leaves_one_out():
    assert click("", "out", False, of_file) == "-out"
    assert click("-out", "out", True, of_file) == ""
    assert click("out", "out", False, of_file) == "out, -out"  # an empty text would be all


def test_a_text_that_is_wrong_is_kept():
    assert click("midle_block", "out", True) == "midle_block, out"
    assert click("midle_block, out", "out", False) == "midle_block, out, -out"


@pytest.mark.parametrize("select", [of_run, of_file])
def test_whatever_was_clicked_before_a_click_changes_its_layers_and_no_others(select):
    draw = random.Random(0)
    patterns = ["output_blocks.0", "output_blocks.1", "attn1", "attn2", "middle_block", "out"]
    patterns += [f"output_blocks.{n}.*.attn{m}" for n in range(3) for m in (1, 2)]
    text, selected = "all", set(NAMES)
    for _ in range(400):
        pattern, is_on = draw.choice(patterns), draw.random() < 0.5
        layers = set(chosen(NAMES, pattern))
        if not is_on and not selected - layers:
            continue  # nothing would be left, which is an error of the language
        selected = selected | layers if is_on else selected - layers
        text = click(text, pattern, is_on, select)
        assert set(select(text)) == selected


def test_strengths_are_written_behind_the_others():
    assert weighted("", ["out"], 0.5) == "out=0.5"
    assert weighted("out=1; attn2=0.25", ["out"], 0.5) == "attn2=0.25; out=0.5"
    assert weighted("out=1, attn2=0.25", ["out"], None) == "attn2=0.25"
    text = weighted("attn1=1", ["middle_block.0", "middle_block.2"], -2.0)
    assert pairs("strengths", text, float, -100.0, 100.0) == [
        ("attn1", 1.0),
        ("middle_block.0", -2.0),
        ("middle_block.2", -2.0),
    ]
