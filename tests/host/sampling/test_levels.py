# SPDX-License-Identifier: Apache-2.0
"""The host's families as samplers see them, and SIGMAS made for a MODEL."""

import pytest
import torch

from graft.host.sampling import levels
from graft.host.sampling.schedule import sigmas
from tests.host import tiny
from tests.samplers.gaussian import table

pytestmark = pytest.mark.comfy


@pytest.mark.parametrize(
    ("family", "kind", "has_times"),
    [
        ("sd15", "eps", True),
        ("sdxl", "eps", True),
        ("sdxl_v", "v", True),
        ("sdxl_edm", "edm", False),
        ("sd3", "flow", False),
        ("flux", "flow", False),
    ],
)
def test_levels_of_the_hosts_families(family, kind, has_times):
    known = levels.of_model(tiny.model(family))
    assert known.family == kind and (known.times is not None) == has_times
    assert known.sigmas.dtype == torch.float64 and not known.sigmas.is_inference()
    if has_times:
        assert known.times.tolist() == list(range(1000))
        torch.testing.assert_close(known.sigmas, table(), rtol=2e-4, atol=0)
        assert known.time(known.sigma(500)) == 500


def test_levels_between_times_are_the_hosts():
    """Its own `sigma` of a time that is none of the table's."""
    model = tiny.model("sdxl")
    sampling, known = model.get_model_object("model_sampling"), levels.of_model(model)
    for time in (0.0, 3.25, 500.5, 998.9, 999.0):
        expected = float(sampling.sigma(torch.tensor([time])))
        assert known.sigma(time) == pytest.approx(expected, rel=1e-5)


def distilled():
    """An SDXL with the host's own patch for LCM, whose table has every 20th level."""
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    return ModelSamplingDiscrete().patch(tiny.model("sdxl"), "lcm", False)[0]


def test_a_distilled_models_times_are_those_of_its_training():
    known = levels.of_model(distilled())
    assert known.times.tolist() == list(range(19, 1000, 20))
    made, _ = sigmas("distilled", 4, "", distilled())
    assert [known.time(float(s)) for s in made[:-1]] == [999, 759, 499, 259]


@pytest.mark.parametrize("name", ["karras", "exponential", "ve", "vp", "discrete", "design-space"])
def test_with_a_model_the_ends_are_its_own(name):
    model = tiny.model("sdxl")
    made, said = sigmas(name, 10, "", model, sigma_min=0.0, sigma_max=0.0, rho=7.0)
    assert float(made[0]) == pytest.approx(14.6146, rel=1e-4)
    assert float(made[-2]) == pytest.approx(0.0291675, rel=1e-3)
    assert said == f"{name}: 10 steps, sigma 14.61 to 0.02917, then 0"
    assert not made.is_inference() and made.dtype == torch.float32 and made.device.type == "cpu"


def test_without_one_they_are_the_schedules():
    made, said = sigmas("karras", 18, "rho=5", sigma_min=0.0, sigma_max=0.0, rho=7.0)
    assert (float(made[0]), float(made[-2])) == (80.0, pytest.approx(0.002))
    assert float(made[1]) == pytest.approx((80**0.2 + (0.002**0.2 - 80**0.2) / 17) ** 5)
    made, _ = sigmas("vp", 4, "", sigma_min=0.0, sigma_max=0.0, rho=7.0)
    assert float(made[0]) == pytest.approx(152.167, rel=1e-5)


def test_what_the_model_has_not_learned_is_told():
    model = tiny.model("sdxl")
    _, said = sigmas("karras", 9, "", model, sigma_min=0.001, sigma_max=80.0, rho=7.0)
    assert "sigma_max 80 is above the model's 14.61" in said
    assert "sigma_min 0.001 is below the model's 0.02917" in said
    _, said = sigmas("discrete", 200, "", model, rho=7.0)
    assert "200 steps were asked for" in said
    _, said = sigmas("distilled", 4, "", model, sigma_min=0.1, sigma_max=0.0, rho=7.0)
    assert "distilled has no sigma_min: 0.1 is not used." in said


def test_a_flow_model_is_sampled_within_its_times():
    model = tiny.model("sd3")
    made, _ = sigmas("karras", 8, "", model, sigma_min=0.0, sigma_max=0.0, rho=7.0)
    assert float(made[0]) == 1.0
    with pytest.raises(ValueError, match="sigma_max is 80; the levels of a flow model"):
        sigmas("karras", 8, "", model, sigma_max=80.0)


@pytest.mark.parametrize(
    ("name", "options", "widgets", "message"),
    [
        ("karas", "", {}, "Unknown schedule 'karas'. Did you mean karras"),
        ("karras", "roh=3", {}, "Did you mean rho"),
        ("karras", "", {"sigma_min": 9.0, "sigma_max": 3.0}, "sigma_min is 9 and sigma_max 3"),
        ("discrete", "", {}, "connect the MODEL"),
        ("karras", "rho=0", {}, "rho is 0.0; it must be between 1"),
    ],
)
def test_wrong_settings_are_refused(name, options, widgets, message):
    with pytest.raises(ValueError, match=message):
        sigmas(name, 8, options, **widgets)
