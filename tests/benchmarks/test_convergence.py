# SPDX-License-Identifier: Apache-2.0
"""The table of how soon a recipe learns, from scores that are made up, and what its cases train."""

import pytest

from graft.benchmarks import convergence

pytestmark = pytest.mark.comfy


def test_the_first_step_at_the_bar_counts_whatever_comes_after():
    assert convergence.steps_until({"0": 0.0, "40": 0.5, "120": 0.7, "160": 0.6, "80": 0.69}) == 120
    assert convergence.steps_until({"0": 0.1, "40": 0.69}) is None


def test_the_table_has_mean_and_standard_deviation_over_the_seeds():
    def case(reached, end, kept):
        return {"scores": {"0": 0.0, str(reached): 0.7, "520": end}, "kept": kept}

    found = {"adamw 0": case(200, 0.8, 0.9), "adamw 1": case(240, 0.9, 0.94)}
    found["x0 0"] = {"scores": {"0": 0.0, "520": 0.4}, "kept": 0.8}
    lines = convergence.table(found)
    assert lines[2] == (
        "| AdamW, Min-SNR, preservation (the template) | 220 ± 28 | 85% ± 7% | 92% ± 3% | 2 |"
    )
    assert lines[3] == "| core's x0 loss | 1 of 1 never | 40% | 80% | 1 |"
    assert len(lines) == 4


@pytest.mark.parametrize("variant", convergence.VARIANTS)
def test_a_case_is_the_shipped_training_with_one_thing_changed(variant, comfy):
    from graft.host.model.mini import load_mini

    wires = load_mini()
    title, changes = convergence.VARIANTS[variant]
    made = convergence._request(wires, ["a dax"], changes, 1)
    template = convergence._request(wires, ["a dax"], {}, 1)
    assert len(changes) == (variant != "adamw")
    assert made.plan == template.plan and made.network == template.network
    assert (made.objective != template.objective) == bool({"weight", "preserve"} & set(changes))
    assert (made.optimizer != template.optimizer) == ("optimizer" in changes)
    assert made.preview.every == convergence.EVERY
