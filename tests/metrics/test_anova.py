# SPDX-License-Identifier: Apache-2.0
"""One-way ANOVA against sums of squares by hand, and against the figures of the paper on bottleneck adapters."""

import pytest

from graft.metrics.anova import one_way

# Xiang et al. 2023 (arXiv 2303.18181), the heat-map of inputs and outputs, read off the figure to 0.003.
PAPER = {
    ("attn1i", "attn1i"): 0.710, ("attn1i", "attn2i"): 0.749, ("attn1o", "attn2i"): 0.758,
    ("attn2i", "attn2i"): 0.689, ("attn1i", "ffni"): 0.718, ("attn1o", "ffni"): 0.700,
    ("attn2i", "ffni"): 0.745, ("attn2o", "ffni"): 0.869, ("ffni", "ffni"): 0.821,
    ("attn1i", "transo"): 0.724, ("attn1o", "transo"): 0.686, ("attn2i", "transo"): 0.695,
    ("attn2o", "transo"): 0.848, ("ffni", "transo"): 0.831, ("ffno", "transo"): 0.756,
    ("transo", "transo"): 0.841, ("attn2c", "attn2c"): 0.869, ("resi", "resi"): 0.768,
    ("resi", "reso"): 0.745, ("reso", "reso"): 0.725,
}  # fmt: skip


def test_it_is_the_ratio_of_mean_squares():
    groups = {"a": [1.0, 2.0, 3.0], "b": [2.0, 3.0, 4.0], "c": [5.0, 6.0, 7.0], "none": []}
    found = one_way(groups)
    # between: 3 (4 + 1 + 9) / (3 - 1), within: 6 / 6; the grand mean is 11 / 3
    between = 3 * sum((m - 11 / 3) ** 2 for m in (2, 3, 6)) / 2
    assert found.f == pytest.approx(between / 1.0)
    assert found.freedom == (2, 6) and found.means == {"a": 2.0, "b": 3.0, "c": 6.0}
    assert found.text.startswith("F(2, 6) = 13, p = 0.00")


def test_the_papers_heat_map_says_that_the_input_matters_and_the_output_does_not():
    by_input, by_output = {}, {}
    for (din, dout), score in PAPER.items():
        by_input.setdefault(din, []).append(score)
        by_output.setdefault(dout, []).append(score)
    assert one_way(by_input).f == pytest.approx(11.9, abs=0.1)
    assert one_way(by_input).p == pytest.approx(3.0e-4, rel=0.1)
    assert one_way(by_output).p == pytest.approx(0.61, abs=0.02)


@pytest.mark.parametrize("groups", [{"a": [1.0, 2.0]}, {"a": [1.0], "b": [2.0]}, {}])
def test_too_little_is_refused(groups):
    with pytest.raises(ValueError, match="two groups and more observations"):
        one_way(groups)
