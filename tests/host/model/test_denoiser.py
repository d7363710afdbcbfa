# SPDX-License-Identifier: Apache-2.0
"""D over the host's own models: the residual of D is the residual of the raw network."""

import math

import pytest
import torch

from graft.host.model.trainee import trainee
from graft.host.text.conditioning import Conditioner, Encoded
from graft.trainers.denoiser import c_out, c_skip
from tests.host import tiny

pytestmark = pytest.mark.comfy
LINEAR_SIGMA = 0.029167  # smallest level of the SD schedule (linear_start 0.00085), by hand


def cond_for(family, t, count):
    maker = Conditioner(t.model, t.device)
    encoded = Encoded.from_conditioning(tiny.conditioning(family))
    return maker.batch([maker.per_item(encoded, width=64, height=64)] * count)


def network_target(family, sigma, noise, clean):
    """What the network is asked for in its own training recipe (closed forms, by hand).

    eps: Ho et al. 2020. v: Salimans & Ho 2022, v = a eps - s y with a^2 + s^2 = 1. Flow: SD3 (Esser et al. 2024),
    n - y. EDM: Karras et al. 2022, F* = (y - c_skip (y + sigma n)) / c_out with sigma_data 0.5.
    """
    sigma = sigma.double().view(-1, 1, 1, 1)
    noise, clean = noise.double(), clean.double()
    if family in ("sd15", "sdxl"):
        return noise
    if family in ("sd3", "flux"):
        return noise - clean
    if family == "sdxl_edm":
        root = (sigma**2 + 0.25).sqrt()
        return (clean - 0.25 / root**2 * (clean + sigma * noise)) * root / (sigma * 0.5)
    root = (sigma**2 + 1).sqrt()
    return noise / root - clean * sigma / root


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_loss_is_the_networks_own_mse(family):
    raw = []
    with trainee(tiny.model(family), precision="fp32") as t:
        d = t.denoiser
        picks = torch.linspace(0, len(d.sigmas) - 1, 24).round().long()
        handle = t.diffusion_model.register_forward_hook(lambda m, a, y: raw.append(y))
        with torch.no_grad():
            for sigma in d.sigmas[picks].split(1):
                raw.clear()
                clean, noise = tiny.latent(family), tiny.latent(family, seed=8)
                out = d(d.add_noise(sigma, noise, clean), sigma, cond_for(family, t, 1))
                ours = ((out - clean) / c_out(d, sigma)).square().mean().item()
                target = network_target(family, sigma, noise, clean)
                plain = (raw[-1].double() - target).square().mean().item()
                limit = 1e-5 if sigma >= 2e-2 else 3e-4
                assert ours == pytest.approx(plain, rel=limit), f"sigma {sigma.item()}"
        handle.remove()


def preconditioning(family, s):
    """The table of the design: |c_out| and c_skip."""
    if family in ("sd15", "sdxl", "sd3", "flux"):
        return s, torch.ones_like(s)
    sd = 0.5 if family == "sdxl_edm" else 1.0
    return s * sd / (s**2 + sd**2).sqrt(), sd**2 / (s**2 + sd**2)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_probed_preconditioning_is_the_table(family):
    with trainee(tiny.model(family)) as t:
        s = t.denoiser.sigmas
        out, skip = preconditioning(family, s.double())
        torch.testing.assert_close(c_out(t.denoiser, s).flatten().double(), out, rtol=2e-6, atol=0)
        torch.testing.assert_close(
            c_skip(t.denoiser, s).flatten().double(), skip, rtol=2e-6, atol=0
        )


def test_tables():
    """Ends of the tables by closed form: SD's linear-in-sqrt schedule, zero terminal SNR, SD3's and Flux' shift."""
    tables = {}
    for family in tiny.FAMILIES:
        with trainee(tiny.model(family)) as t:
            tables[family] = t.denoiser.sigmas
            assert t.denoiser.sigmas.dtype == torch.float32
            assert (t.denoiser.sigmas.diff() > 0).all()
    assert tables["sdxl"][0].item() == pytest.approx(LINEAR_SIGMA, rel=1e-4)
    assert tables["sdxl_zsnr"][-1].item() == pytest.approx(
        1 / math.sqrt(4.8973451890853435e-08), rel=1e-3
    )
    assert tables["sdxl_edm"][[0, -1]].tolist() == pytest.approx([0.002, 80.0], rel=1e-5)
    t = torch.arange(1, 1001) / 1000
    torch.testing.assert_close(tables["sd3"], 3 * t / (1 + 2 * t))
    t = torch.arange(1, 10001) / 10000
    e = math.exp(1.15)
    torch.testing.assert_close(tables["flux"], e / (e + (1 / t - 1)))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_nearest_is_the_models_own_time_step(family):
    with trainee(tiny.model(family)) as t:
        d, sampling = t.denoiser, t.model.model_sampling
        g = torch.Generator().manual_seed(0)
        low, high = d.sigmas[0].log(), d.sigmas[-1].log()
        sigma = (torch.rand(512, generator=g) * (high - low) + low).exp()
        if family in ("sd3", "flux", "sdxl_edm"):
            assert d.nearest(sigma) is sigma
        else:
            assert torch.equal(d.nearest(sigma), sampling.sigmas[sampling.timestep(sigma)])
            assert torch.equal(d.nearest(d.sigmas), d.sigmas)
            assert d.nearest(torch.tensor([1e9])).item() == d.sigmas[-1].item()


@pytest.mark.parametrize("family", ["sdxl", "sdxl_edm", "flux"])
def test_noise_is_added_as_the_sampler_does(family):
    with trainee(tiny.model(family)) as t:
        clean, noise = tiny.latent(family, batch=2), tiny.latent(family, batch=2, seed=8)
        kept = noise.clone()
        sigma = torch.tensor([0.3, 0.9])
        s = sigma.view(2, 1, 1, 1)
        expected = s * noise + (1 - s) * clean if family == "flux" else clean + s * noise
        torch.testing.assert_close(
            t.denoiser.add_noise(sigma, noise.half(), clean), expected, rtol=1e-3, atol=1e-3
        )
        torch.testing.assert_close(t.denoiser.add_noise(sigma, noise, clean), expected)
        assert torch.equal(noise, kept)


def test_items_of_a_batch_do_not_mix():
    family = "sdxl"
    with trainee(tiny.model(family), precision="fp32") as t, torch.no_grad():
        maker = Conditioner(t.model, t.device)
        items = [
            maker.per_item(
                Encoded.from_conditioning(tiny.conditioning(family, seed=i)), width=64, height=64
            )
            for i in range(3)
        ]
        x, sigma = tiny.latent(family, batch=3), torch.tensor([0.1, 1.0, 9.0])
        together = t.denoiser(x, sigma, maker.batch(items))
        for i in range(3):
            alone = t.denoiser(x[i : i + 1], sigma[i : i + 1], maker.batch(items[i : i + 1]))
            torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)


def test_gradient_reaches_x_and_adapters_in_fp32():
    for family in ("sd15", "flux"):
        with trainee(tiny.model(family), precision="bf16") as t:
            adapters = tiny.Attached(t.diffusion_model)
            x = tiny.latent(family).requires_grad_()
            out = t.denoiser(x, torch.tensor([0.5]), cond_for(family, t, 1))
            assert out.dtype == torch.float32
            out.square().mean().backward()
            assert x.grad.dtype == torch.float32 and x.grad.abs().sum() > 0
            assert sum(g is not None for g in adapters.gradients()) > 10
            adapters.remove()


def test_finding_layers_that_are_written_over_leaves_generators_and_results_alone():
    """One extra forward on the first call; the second call is the same function."""
    with trainee(tiny.model("flux"), precision="fp32") as t:
        adapters = tiny.Attached(t.diffusion_model, dropout=0.5)
        cond, x, sigma = cond_for("flux", t, 1), tiny.latent("flux"), torch.tensor([0.5])
        torch.manual_seed(0)
        first = t.denoiser(x, sigma, cond)
        after = torch.rand(1)
        torch.manual_seed(0)
        assert torch.equal(first, t.denoiser(x, sigma, cond)) and torch.equal(after, torch.rand(1))
        first.sum().backward()
        adapters.remove()


def test_only_layers_that_need_it_copy_their_input():
    for family, few in (("sdxl", 0), ("sd15", 0), ("flux", 12)):
        with trainee(tiny.model(family)) as t:
            t.denoiser(tiny.latent(family), torch.tensor([0.5]), cond_for(family, t, 1))
            assert len(t.denoiser._guards) <= few
            assert bool(t.denoiser._guards) is (family == "flux")


def test_function_wrapper_of_the_wire_is_part_of_the_model():
    patcher = tiny.model("sdxl")
    patcher.set_model_unet_function_wrapper(
        lambda f, a: 0.5 * f(a["input"], a["timestep"], **a["c"])
    )
    with torch.no_grad():
        x, sigma = tiny.latent("sdxl"), torch.tensor([0.5])
        with trainee(patcher) as t:
            halved = t.denoiser(x, sigma, cond_for("sdxl", t, 1))
        with trainee(tiny.model("sdxl")) as t:
            torch.testing.assert_close(2 * halved, t.denoiser(x, sigma, cond_for("sdxl", t, 1)))


def test_wrong_input_is_refused():
    with trainee(tiny.model("sdxl")) as t:
        cond = cond_for("sdxl", t, 2)
        with pytest.raises(ValueError, match="batch of 1 latents"):
            t.denoiser(tiny.latent("sdxl"), torch.tensor([0.5]), cond)

        class Nested:
            is_nested = True

        with pytest.raises(ValueError, match="nested"):
            t.denoiser(Nested(), torch.tensor([0.5]), cond)
