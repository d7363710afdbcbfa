# SPDX-License-Identifier: Apache-2.0
"""Charts by their pixels, and the reports on the host's own models."""

import dataclasses

import pytest
import torch

from graft.host.drawing.charts import CURVE, Chart, draw_chart, level_ticks, place_x
from graft.host.drawing.plots import RAW
from tests.host import tiny

CHART = Chart(
    "t", (0.01, 0.1, 1.0, 10.0), True, (1.0, 2.0, float("nan")), (0.0, 4.0, 4.0), "a", "b"
)
BOX = (70, 72, 576, 302)  # of a picture of 640 x 360


def is_color(picture, color):
    """Where a picture has a color ``[H, W]``."""
    return ((picture[0] * 255).round() == torch.tensor(color, dtype=torch.float32)).all(-1)


def test_bars_have_their_place_and_height():
    """Three equal bins on a log axis; the second bar is twice the first, and the third is not there."""
    picture = draw_chart(CHART)
    assert picture.shape == (1, 360, 640, 3) and picture.dtype == torch.float32
    bars = is_color(picture, RAW)
    widths = [round(place_x(CHART, edge, BOX)) for edge in CHART.edges]
    assert widths == [70, 239, 407, 576]
    heights = [int(bars[:, x].sum()) for x in (100, 270, 500)]
    assert heights[0] == pytest.approx(115, abs=3)  # half of 302 - 72
    assert heights[1] > 200 and heights[2] == 0
    assert is_color(picture, CURVE).any()


def test_a_curve_on_the_scale_of_the_bars_is_not_stretched():
    shared = dataclasses.replace(CHART, curve=(1.0, 1.0, 1.0), has_one_scale=True)
    line = is_color(draw_chart(shared), CURVE)[:, 300].nonzero().flatten()
    assert line.float().mean() == pytest.approx(187, abs=2)  # half way up


def test_level_ticks_are_round_and_inside():
    assert level_ticks(0.03, 14.6, True) == pytest.approx([0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10])
    assert level_ticks(0.002, 80.0, True) == pytest.approx([0.01, 0.1, 1, 10])
    assert level_ticks(0.003, 1.0, False) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.comfy
def test_the_objective_report_says_what_is_drawn():
    """EDM's law: half below exp(-1.2) = 0.301, 9 of 10 between exp(-1.2 -+ 1.2 * 1.645) = 0.0418 and 2.17."""
    from graft.host.studies.reports import objective_report
    from graft.trainers.objectives import NOISE, WEIGHTS, Objective

    model = tiny.model("sdxl_edm")
    objective = Objective(NOISE.get("log-normal")(), WEIGHTS.get("edm")())
    with torch.inference_mode():
        picture, text = objective_report(model, objective)
    assert picture.shape[0] == 1 and not picture.is_inference()
    assert "EDM model, sigma 0.002 to 80" in text
    assert "half below 0.301, 9 of 10 between 0.0419 and 2.17" in text
    assert "weight: 1 to 1" in text
    with pytest.raises(ValueError, match="take soft-min-snr"):
        objective_report(model, Objective(weight=WEIGHTS.get("min-snr")()))


@pytest.mark.comfy
def test_the_objective_report_knows_a_table_that_will_be_patched():
    from graft.host.studies.reports import objective_report
    from graft.trainers.objectives import Objective

    model = tiny.model("sdxl_v")
    assert "to 4519" in objective_report(model, Objective(zero_terminal=True))[1]
    assert "to 14.61" in objective_report(model, Objective())[1]


@pytest.mark.comfy
def test_report_nodes_give_a_picture_and_words():
    from graft.nodes.reports import LossReport, ObjectiveReport
    from graft.trainers.objectives import Objective

    made = ObjectiveReport.execute(tiny.model("sd3"), Objective())
    assert made.args[0].shape == (1, 360, 640, 3) and made.ui == {"text": [made.args[1]]}
    loss_map = {"loss": [2.0], "sigma": [[0.1, 0.3]], "sample_loss": [[1.0, 3.0]]}
    image, text = LossReport.execute(loss_map, 2).args
    assert image.shape == (1, 360, 640, 3)
    assert "2 pictures in 1 steps" in text and "sigma 0.2 to 0.3: 3 (3 -> -), 1 pictures" in text
    with pytest.raises(ValueError, match="one of Graft's training nodes"):
        LossReport.execute({"loss": [1.0]}, 2)
