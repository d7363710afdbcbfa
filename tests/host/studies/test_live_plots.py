# SPDX-License-Identifier: Apache-2.0
"""Numbers behind the plots of a node that is edited: closed forms of laws, weights and schedules."""

import json
import math

import pytest

pytestmark = pytest.mark.comfy

EXAMPLES = ("graft-examples/dax begun.safetensors", "graft-examples/dax as TOK.safetensors")


def plots():
    from graft.host.studies import live_plots

    return live_plots


def of_objective(family="SD 1.5", **widgets):
    return plots().objective(plots().ObjectiveWidgets(**widgets), "family", family)


def middles(found):
    edges = found["edges"]
    pairs = zip(edges[1:], edges[:-1], strict=True)
    return [math.sqrt(a * b) if found["log"] else (a + b) / 2 for a, b in pairs]


def test_min_snr_is_five_over_snr_where_that_is_larger():
    found = of_objective(weight="min-snr", options="gamma=5")
    for sigma, weight in zip(middles(found), found["weight"], strict=True):
        if sigma > 0.1:  # below, the levels of the model's table are further apart than the bins
            # Hang et al. 2023, eq. 6, for eps: min(SNR, gamma) / SNR with SNR = 1 / sigma^2.
            assert weight == pytest.approx(min(1.0, 5 * sigma**2), rel=0.06)


def test_shares_are_of_the_whole_and_follow_the_law():
    found = of_objective(noise="log-normal", options="p_mean=0, p_std=1", weight="one")
    assert sum(found["drawn"]) == pytest.approx(1)
    assert sum(found["counted"]) == pytest.approx(1)
    low, high = (math.log(end) for end in (found["edges"][0], found["edges"][-1]))
    cut = math.erf(high / math.sqrt(2)) - math.erf(low / math.sqrt(2))
    above = sum(
        d for d, edge in zip(found["drawn"], found["edges"], strict=False) if edge >= math.e
    )
    first = next(edge for edge in found["edges"] if edge >= math.e)
    wanted = (math.erf(high / math.sqrt(2)) - math.erf(math.log(first) / math.sqrt(2))) / cut
    assert above == pytest.approx(wanted, abs=0.01)


def test_a_flow_models_logit_normal_is_symmetric():
    found = of_objective("Flux", noise="logit-normal")
    assert not found["log"]
    half = len(found["drawn"]) // 2
    assert sum(found["drawn"][:half]) == pytest.approx(0.5, abs=0.01)


def test_what_does_not_go_together_is_told_as_before_a_run():
    with pytest.raises(ValueError, match="logit-normal.*does not go with this MODEL"):
        of_objective(noise="logit-normal")
    with pytest.raises(ValueError, match="Did you mean gamma"):
        of_objective(weight="min-snr", options="gama=5")
    with pytest.raises(ValueError, match="Unknown noise law"):
        of_objective(noise="<img src=x onerror=alert(1)>")


def test_zero_terminal_moves_the_last_level():
    with pytest.raises(ValueError, match="zero_terminal"):
        of_objective(options="zero_terminal=true")  # eps cannot have it


def test_karras_is_his_formula():
    widgets = plots().ScheduleWidgets(steps=5, sigma_min=0.1, sigma_max=10.0, rho=7.0)
    found = plots().schedule(widgets)
    a, b = 10 ** (1 / 7), 0.1 ** (1 / 7)
    wanted = [(a + i / 4 * (b - a)) ** 7 for i in range(5)]  # Karras et al. 2022, eq. 5
    assert found["sigmas"] == pytest.approx([*wanted, 0], rel=1e-5)
    assert found["at"] == [0, 1, 2, 3, 4, 5]


def test_a_model_gives_a_schedule_its_ends():
    found = plots().schedule(plots().ScheduleWidgets(), "family", "SDXL")
    assert found["sigmas"][0] == pytest.approx(14.6146, rel=1e-4)
    assert found["title"] == "SDXL"


def test_long_schedules_are_thinned_and_longer_ones_refused():
    found = plots().schedule(plots().ScheduleWidgets(steps=10_000))
    assert len(found["at"]) <= 403
    assert found["at"][-1] == 10_000 and found["sigmas"][-1] == 0
    for steps in (0, 10_001):
        with pytest.raises(ValueError, match="between 1 and 10000"):
            plots().schedule(plots().ScheduleWidgets(steps=steps))


def test_a_file_overlaps_itself_wholly():
    found = plots().overlap([EXAMPLES[0], EXAMPLES[0], EXAMPLES[1]], "mini")
    json.dumps(found, allow_nan=False)
    same, other = found["pairs"][0], found["pairs"][1]
    assert same["files"] == [0, 1]
    assert same["cosine"] == pytest.approx(1)
    assert [v for v in same["by_block"] if v is not None] == pytest.approx(
        [1.0] * sum(v is not None for v in same["by_block"])
    )
    assert abs(other["cosine"]) < 0.5


def test_overlap_is_of_files_of_the_list():
    with pytest.raises(ValueError, match="two to 4"):
        plots().overlap([EXAMPLES[0]])
    with pytest.raises(ValueError, match="Unknown LoRA file"):
        plots().overlap([EXAMPLES[0], "../../x.safetensors"])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"nosie": "model"}, "Did you mean noise"),
        ({"noise": 3}, "noise must be a str"),
        ({"preserve": "1"}, "preserve must be a float"),
        ({"preserve": True}, "preserve must be a float"),
    ],
)
def test_widgets_of_another_kind_are_refused(values, said):
    with pytest.raises(ValueError, match=said):
        plots().widgets_of(plots().ObjectiveWidgets, values)
