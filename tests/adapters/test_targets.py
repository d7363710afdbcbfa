# SPDX-License-Identifier: Apache-2.0
"""The block language on a model with a UNet's names."""

import time

import pytest
from torch import nn

from graft.adapters.targets import targets

NAMES = [
    "input_blocks.1.0.in_layers.2",
    "input_blocks.1.1.transformer_blocks.0.attn1.to_q",
    "output_blocks.1.1.transformer_blocks.0.attn1.to_q",
    "output_blocks.1.1.transformer_blocks.0.attn2.to_k",
    "output_blocks.1.1.transformer_blocks.0.ff.net.2",
    "output_blocks.11.1.transformer_blocks.0.attn2.to_k",
    "middle_block.1.proj_in",
    "out.2",
]


@pytest.fixture
def model():
    root = nn.Module()
    for name in NAMES:
        module = root
        *parents, leaf = name.split(".")
        for part in parents:
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            module = getattr(module, part)
        module.add_module(
            leaf, nn.Conv2d(1, 1, 1) if "in_layers" in name or name == "out.2" else nn.Linear(1, 1)
        )
    return root


def pick(*indices):
    return {NAMES[i] for i in indices}


@pytest.mark.parametrize(
    "blocks,expected",
    [
        ("all", pick(*range(8))),
        ("attention", pick(1, 2, 3, 5)),
        ("cross-attention", pick(3, 5)),
        ("transformer", pick(1, 2, 3, 4, 5, 6)),
        ("output_blocks.1", pick(2, 3, 4)),
        ("output_blocks.1.1.", pick(2, 3, 4)),
        ("output_blocks.*.attn2", pick(3, 5)),
        ("attn?.to_q", pick(1, 2)),
        ("attention, -output_blocks.1", pick(1, 5)),
        ("-middle_block", pick(0, 1, 2, 3, 4, 5, 7)),
        ("out, ff.net.2", pick(4, 7)),
        ("to_[qk]", pick(1, 2, 3, 5)),
        ("cross-attention kv", pick(3, 5)),
        ("b-lora style", pick(2, 3)),
        ("-b-lora style, -out", pick(0, 1, 4, 5, 6)),
    ],
)
def test_selection(model, blocks, expected):
    assert set(targets(model, blocks)) == expected


def test_nothing_matched_lists_near_names(model):
    with pytest.raises(ValueError, match="matches no layer.*Did you mean attn2"):
        targets(model, "atn2")
    with pytest.raises(ValueError, match="cross_atention"):
        targets(model, "attention, cross_atention")
    with pytest.raises(ValueError, match="no layer to train"):
        targets(model, "attention, -attention")
    with pytest.raises(ValueError, match="no layer"):
        targets(model, "")


@pytest.mark.parametrize("blocks", ["[", "a[", "(", "output_blocks.[z-a]", "**", "\\"])
def test_odd_patterns_are_errors_not_crashes(model, blocks):
    try:
        targets(model, blocks)
    except ValueError:
        pass


@pytest.mark.parametrize(
    "pattern",
    [
        "*?" * 20 + "x",
        "*" * 40 + "x",
        "*[a-z]" * 3 + "*",
        "*o*o*o*",
        "a" * 1001,
        "*.*.*.*.*.*.*.*.*",
    ],
)
def test_patterns_take_no_time(pattern):
    """A regular expression tries every way to share letters among its stars: it took longer than the universe."""
    root = nn.Module()
    for n in range(300):
        root.add_module(f"transformer_blocks_of_a_rather_long_name_{n}", nn.Linear(1, 1))
    began = time.perf_counter()
    with pytest.raises(ValueError, match="The block (pattern|selection)"):
        targets(root, pattern)
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a?", {"ab", "ac"}),
        ("a*?", {"ab", "ac", "abc"}),
        ("?*", {"a", "ab", "ac", "abc"}),
        ("a**", {"a", "ab", "ac", "abc"}),
        ("???", {"abc"}),
        ("a[bc]", {"ab", "ac"}),
    ],
)
def test_runs_of_wildcards(pattern, names):
    root = nn.Module()
    for name in ("a", "ab", "ac", "abc"):
        root.add_module(name, nn.Linear(1, 1))
    assert set(targets(root, pattern)) == names
