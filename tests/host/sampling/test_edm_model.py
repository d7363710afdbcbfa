# SPDX-License-Identifier: Apache-2.0
"""EDM preconditioning of a MODEL against diffusers' EDMEulerScheduler and the latents of Playground v2.5."""

import diffusers
import pytest
import torch

from graft.host.model.trainee import trainee
from graft.host.sampling import levels
from graft.host.sampling.edm_model import EDMModel, patched
from graft.host.sampling.sampler import sampler
from graft.host.text.conditioning import Conditioner, Encoded
from graft.samplers.edm_heun import EDMHeun
from tests.host import tiny
from tests.host.sampling.guiding import run

pytestmark = pytest.mark.comfy

# The statistics of Playground v2.5's model card: (z - mean) * 0.5 / std.
MEAN, STD = (-1.6574, 1.886, -1.383, 2.5155), (8.4927, 5.9022, 6.5498, 5.2299)


def draws():
    generator = torch.Generator().manual_seed(0)
    sigma = torch.tensor([0.002, 0.3, 5.0, 80.0])
    return sigma, *(torch.randn(4, 4, 6, 6, generator=generator) for _ in range(2))


@pytest.mark.parametrize(("kind", "prediction"), [("edm", "epsilon"), ("edm v", "v_prediction")])
@pytest.mark.parametrize("data", [0.5, 1.0])
def test_it_is_that_of_diffusers(kind, prediction, data):
    model = patched(tiny.model("sdxl"), EDMModel(kind, data))
    sampling = model.get_model_object("model_sampling")
    scheduler = diffusers.EDMEulerScheduler(sigma_data=data, prediction_type=prediction)
    sigma, x, output = draws()
    s = sigma.view(-1, 1, 1, 1)
    torch.testing.assert_close(
        sampling.calculate_input(sigma, x), scheduler.precondition_inputs(x, s)
    )
    torch.testing.assert_close(sampling.timestep(sigma), scheduler.precondition_noise(sigma))
    torch.testing.assert_close(
        sampling.calculate_denoised(sigma, output, x),
        scheduler.precondition_outputs(x, output, s),
    )


def test_the_defaults_are_playgrounds():
    model = patched(tiny.model("sdxl"), EDMModel())
    known = levels.of_model(model)
    assert known.family == "edm"
    assert float(known.sigmas[0]) == pytest.approx(0.002)
    assert float(known.sigmas[-1]) == pytest.approx(80.0)
    z = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(one).view(1, 4, 1, 1) for one in (MEAN, STD))
    latents = model.get_model_object("latent_format")
    torch.testing.assert_close(latents.process_in(z), (z - mean) * 0.5 / std)
    torch.testing.assert_close(latents.process_out(latents.process_in(z)), z)


def test_a_checkpoint_that_says_so_itself_is_the_same():
    """A tiny SDXL with edm_mean and edm_std, as the host finds Playground v2.5 by its keys."""
    own, ours = tiny.model("sdxl_edm"), patched(tiny.model("sdxl"), EDMModel())
    sigmas = torch.tensor([80.0, 9.0, 0.5, 0.0])
    ends = [
        run(m, f, sampler(EDMHeun()), sigmas)[0] for m, f in ((own, "sdxl_edm"), (ours, "sdxl"))
    ]
    torch.testing.assert_close(ends[0]["samples"], ends[1]["samples"])


def test_the_model_that_came_in_is_as_it_was():
    model = tiny.model("sdxl")
    before = model.get_model_object("model_sampling"), model.get_model_object("latent_format")
    patched(model, EDMModel())
    assert model.get_model_object("model_sampling") is before[0]
    assert model.get_model_object("latent_format") is before[1]
    kept = patched(model, EDMModel(latents="the model's own"))
    assert kept.get_model_object("latent_format") is before[1]


def test_own_times_lie_between_those_of_the_table():
    """At a level of the table its own time; between two, by ln sigma, as diffusers' EulerDiscrete has it."""
    model = tiny.model("sdxl")
    own = model.get_model_object("model_sampling")
    between = patched(model, EDMModel("own times")).get_model_object("model_sampling")
    at = between.timestep(own.sigmas[[0, 400, 999]])
    torch.testing.assert_close(at, torch.tensor([0.0, 400.0, 999.0]))
    middle = (own.sigmas[400] * own.sigmas[401]).sqrt()
    assert float(between.timestep(middle[None])) == pytest.approx(400.5, abs=1e-3)
    outside = between.timestep(torch.tensor([0.001, 80.0]))
    torch.testing.assert_close(outside, torch.tensor([0.0, 999.0]))
    assert levels.of_model(patched(model, EDMModel("own times"))).times is None
    sigma, x, output = draws()
    for name in ("calculate_input", "noise_scaling"):
        args = (sigma, x.clone()) if name == "calculate_input" else (sigma, x.clone(), output)
        again = (sigma, x.clone(), *args[2:])
        assert torch.equal(getattr(between, name)(*args), getattr(own, name)(*again))
    assert between.percent_to_sigma(0.3) == own.percent_to_sigma(0.3)


@pytest.mark.filterwarnings("ignore:__array__")
def test_own_times_are_those_that_diffusers_interpolates():
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        use_karras_sigmas=True,
        timestep_spacing="linspace",
    )
    scheduler.set_timesteps(12)
    sampling = patched(tiny.model("sdxl"), EDMModel("own times")).get_model_object("model_sampling")
    found = sampling.timestep(scheduler.sigmas[:-1])
    torch.testing.assert_close(found, scheduler.timesteps.float(), rtol=0, atol=0.05)


def test_own_times_are_sampled_with():
    model = tiny.model("sdxl_v")
    sigmas = torch.tensor([12.0, 3.0, 0.5, 0.0])
    ends = [
        run(m, "sdxl_v", sampler(EDMHeun()), sigmas)[0]["samples"]
        for m in (model, patched(model, EDMModel("own times")))
    ]
    assert 0 < float((ends[0] - ends[1]).abs().mean()) < 0.1 * float(ends[0].abs().mean())


def denoised(model, family, level):
    """D in training, and how its mean depends on x."""
    with trainee(model, precision="fp32") as t:
        maker = Conditioner(t.model, t.device)
        encoded = Encoded.from_conditioning(tiny.conditioning(family))
        cond = maker.batch([maker.per_item(encoded, width=64, height=64)])
        x = tiny.latent(family).requires_grad_()
        out = t.denoiser(x, torch.tensor([level]), cond)
        out.mean().backward()
        return out.detach(), x.grad, type(t.model.latent_format).__name__


def test_a_patched_model_is_trained_as_it_is_sampled():
    ours = denoised(patched(tiny.model("sdxl"), EDMModel()), "sdxl", 0.7)
    own = denoised(tiny.model("sdxl_edm"), "sdxl_edm", 0.7)
    for a, b in zip(ours[:2], own[:2], strict=True):
        torch.testing.assert_close(a, b)
    assert ours[2] == own[2] == "SDXL_Playground_2_5"


def test_own_times_are_trained_with():
    """At a level of the table it is the model itself; between two it is not the nearest's."""
    model = tiny.model("sdxl")
    table = model.get_model_object("model_sampling").sigmas
    at, between = float(table[600]), float((table[600] * table[601]).sqrt())
    made = patched(model, EDMModel("own times"))
    torch.testing.assert_close(
        denoised(made, "sdxl", at)[0], denoised(model, "sdxl", at)[0], rtol=1e-4, atol=1e-4
    )
    out, gradient, _ = denoised(made, "sdxl", between)
    assert bool(torch.isfinite(gradient).all()) and float(gradient.abs().max()) > 0
    assert not torch.equal(out, denoised(model, "sdxl", between)[0])


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("sd3", {}, "This is a flow model"),
        ("flux", {"preconditioning": "edm v"}, "This is a flow model"),
        ("sdxl_edm", {"preconditioning": "own times"}, "a model of continuous levels .EDM"),
        ("sd3", {"preconditioning": "own times"}, "a model of continuous levels .flow"),
        ("sdxl", {"sigma_min": 80.0}, "sigma_min is 80 and sigma_max 80"),
        ("sdxl", {"preconditioning": "emd"}, "Unknown preconditioning 'emd'. Did you mean edm"),
    ],
)
def test_models_that_cannot_have_it_are_refused(family, settings, message):
    with pytest.raises(ValueError, match=message):
        patched(tiny.model(family), EDMModel(**settings))
