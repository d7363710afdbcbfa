# SPDX-License-Identifier: Apache-2.0
"""The sampling nodes build what the host's own nodes take, and answer wrong settings by name."""

from types import SimpleNamespace

import pytest
import torch

from tests.host import tiny
from tests.host.sampling.guiding import run

pytestmark = pytest.mark.comfy

HELD = SimpleNamespace(unique_id="7")
CHURN = (0.0, 0.0, 0.0, 1.0)


def ready(*nodes):
    """Nodes with hidden inputs, as the host prepares them for a call."""
    return [type(node.__name__, (node,), {"hidden": HELD}) for node in nodes]


def test_sampler_schedule_and_model_make_a_picture_together():
    from graft.nodes import samplers

    EdmModel, Sampler, Schedule = ready(samplers.EdmModel, samplers.Sampler, samplers.Schedule)
    with torch.inference_mode():
        edm = (0.5, 0.002, 80.0, "Playground v2.5")
        (model,) = EdmModel.execute(tiny.model("sdxl"), "own times", *edm).args
        sigmas, words = Schedule.execute("karras", 5, 0.0, 0.0, 7.0, "", model).args
        sampler, said = Sampler.execute("edm-heun", 8.0, 0.0, 0.0, 1.0, -1.0, "", sigmas).args
    assert words.startswith("karras: 5 steps, sigma 14.61")
    assert said.splitlines()[1] == "5 steps, 9 evaluations of the model (NFE)"
    out, _ = run(model, "sdxl", sampler, sigmas, batch=2)
    assert bool(torch.isfinite(out["samples"]).all())


def test_the_record_goes_to_the_plot():
    from graft.nodes import samplers
    from graft.nodes import sampling_plots as plots

    Sampler, RecordSteps = ready(samplers.Sampler, plots.RecordSteps)
    PlotSigmas, PlotSteps = ready(plots.PlotSigmas, plots.PlotSteps)
    sampler, _ = Sampler.execute("ddim", *CHURN, 0.5, "").args
    recorded, steps = RecordSteps.execute(sampler).args
    sigmas = torch.tensor([9.0, 2.0, 0.0])
    out, _ = run(tiny.model("sdxl"), "sdxl", recorded, sigmas)
    image, said = PlotSteps.execute(steps, out).args
    assert image.shape[0] == 1 and said.startswith("2 steps, 2 evaluations")
    image, said = PlotSigmas.execute("\n\n\nmine", True, sigmas_4=sigmas).args
    assert said == "mine: 2 steps, sigma 9 to 2, then 0"


def test_what_it_costs_is_shown_in_the_node(monkeypatch):
    from graft.host import graph
    from graft.nodes import samplers

    shown = []
    monkeypatch.setattr(graph, "show_text", lambda node, text: shown.append((node, text)))
    sigmas = torch.tensor([9.0, 2.0, 1.0, 0.0])
    (Sampler,) = ready(samplers.Sampler)
    Sampler.execute("edm-heun", *CHURN, -1.0, "", sigmas)
    assert shown[0][0] == "7" and "3 steps, 5 evaluations" in shown[0][1]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (("edm-hun", *CHURN, -1.0, ""), "Unknown sampler 'edm-hun'. Did you mean edm-heun"),
        (("ddim", *CHURN, 2.0, ""), "eta is 2.0; it must be between 0.0 and 1.0"),
        (("edm-heun", 1.0, 5.0, 2.0, 1.0, -1.0, ""), "s_tmin is 5 and s_tmax 2"),
        (("dpmpp-2m-sde", *CHURN, -1.0, "solver=euler"), "Unknown solver 'euler'"),
        (("lcm", *CHURN, -1.0, "gamma=1"), "Unknown option of lcm 'gamma'"),
        (("edm-heun", *CHURN, -1.0, "", torch.zeros(0)), "SIGMAS has no level"),
    ],
)
def test_a_wrong_setting_is_named(inputs, message):
    from graft.nodes import samplers

    (Sampler,) = ready(samplers.Sampler)
    with pytest.raises(ValueError, match=message):
        Sampler.execute(*inputs)
