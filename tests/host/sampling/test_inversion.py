# SPDX-License-Identifier: Apache-2.0
"""Inversion and its way back by the host's own nodes, in every family, and what is refused."""

import logging

import pytest
import torch

from graft.host.sampling import inversion
from graft.host.sampling.sampler import sampler
from graft.samplers import SAMPLERS
from graft.samplers.inversion import INVERSIONS
from tests.host import tiny
from tests.host.sampling.guiding import noise

pytestmark = pytest.mark.comfy
SIGMAS = torch.tensor([14.0, 6.0, 2.5, 1.0, 0.4, 0.1, 0.0])
FLOW = torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2, 0.05, 0.0])


def guider(model, family, cfg=2.0):
    import comfy.samplers

    made = comfy.samplers.CFGGuider(model)
    made.set_conds(tiny.conditioning(family), tiny.conditioning(family, seed=6))
    made.set_cfg(cfg)
    return made


def sampled(guided, through, sigmas, latent):
    """LATENT of the host's SamplerCustomAdvanced."""
    from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced

    execute = getattr(SamplerCustomAdvanced, "execute", None) or SamplerCustomAdvanced().sample
    with torch.inference_mode():
        done = execute(noise(5), guided, through, sigmas.clone(), latent)
    return getattr(done, "args", done)[0]["samples"]


def inverted(guided, family, method="ledits-dpmpp", sigmas=SIGMAS, batch=1, **options):
    latent = {"samples": tiny.latent(family, batch=batch)}
    with torch.inference_mode():
        return latent, inversion.invert(
            guided, sigmas, latent, INVERSIONS.get(method)(**options), seed=3
        )


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sdxl_v", "sdxl_edm"])
@pytest.mark.parametrize("method", ["ledits-ddim", "ledits-dpmpp"])
def test_the_way_back_is_to_the_picture(family, method):
    guided = guider(tiny.model(family), family)
    latent, (made, said) = inverted(guided, family, method, batch=2)
    assert "exactly to the picture" in said and "6 evaluations" in said
    scale = float(latent["samples"].abs().max())
    for skip, left in ((0.0, "6 of 6 steps"), (0.4, "4 of 6 steps, from sigma 2.5")):
        through, sigmas, start, words = inversion.replayed(made, skip)
        out = sampled(guided, through, sigmas, start)
        assert float((out - latent["samples"]).abs().max()) < 1e-5 * scale
        assert words.startswith(left)


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_flow_models_are_inverted_without_noise_and_refused_with_it(family):
    guided = guider(tiny.model(family), family, 1.0)
    latent, (made, said) = inverted(guided, family, "ddim", FLOW, iterations=60, tolerance=1e-7)
    through, sigmas, start, _ = inversion.replayed(made, 0.0)
    back = float((sampled(guided, through, sigmas, start) - latent["samples"]).abs().max())
    one = inverted(guided, family, "ddim", FLOW, iterations=1)[1][0].inversion
    assert made.inversion.residual <= 1e-7 < 0.05 < one.residual
    assert back < 1e-5
    assert bool(torch.isfinite(start["samples"]).all()) and "largest error of a step" in said
    with pytest.raises(ValueError, match=r"ledits-ddim draws the noise .* a flow model"):
        inverted(guided, family, "ledits-ddim", FLOW)


def test_any_sampler_without_noise_can_begin_at_the_noise():
    """LATENT and SIGMAS, without SAMPLER: ddim of ours from the noise that DDIM inversion found."""
    from comfy_extras.nodes_custom_sampler import Noise_EmptyNoise, SamplerCustomAdvanced

    guided = guider(tiny.model("sdxl"), "sdxl", 1.0)
    _, (made, _) = inverted(guided, "sdxl", "ddim", iterations=10)
    through, sigmas, start, _ = inversion.replayed(made, 0.0)
    ours = sampled(guided, through, sigmas, start)
    ddim = sampler(SAMPLERS.get("ddim")())
    execute = getattr(SamplerCustomAdvanced, "execute", None) or SamplerCustomAdvanced().sample
    with torch.inference_mode():
        done = execute(Noise_EmptyNoise(), guided, ddim, sigmas, start)
    theirs = getattr(done, "args", done)[0]["samples"]
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-3 * float(ours.abs().max()))


def test_a_picture_is_inverted_by_itself_in_any_batch():
    guided = guider(tiny.model("sdxl"), "sdxl")
    _, (four, _) = inverted(guided, "sdxl", batch=4)
    two = {"samples": tiny.latent("sdxl", batch=4)[:2]}
    with torch.inference_mode():
        made, _ = inversion.invert(guided, SIGMAS, two, INVERSIONS.get("ledits-dpmpp")(), seed=3)
    whole = four.inversion.states[:, :2]
    torch.testing.assert_close(made.inversion.states, whole, rtol=0, atol=1e-3)


def test_outside_of_a_noise_mask_the_picture_stays_with_another_prompt():
    model = tiny.model("sdxl")
    guided, other = guider(model, "sdxl"), guider(model, "sdxl", 6.0)
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :32] = 1
    latent = {"samples": tiny.latent("sdxl"), "noise_mask": mask}
    with torch.inference_mode():
        made, _ = inversion.invert(guided, SIGMAS, latent, INVERSIONS.get("ledits-ddim")(), seed=3)
    through, sigmas, start, _ = inversion.replayed(made, 0.2)
    out = sampled(other, through, sigmas, start) - latent["samples"]
    scale = float(latent["samples"].abs().max())
    assert float(out[..., 4:].abs().max()) < 1e-5 * scale
    assert float(out[..., :4].abs().max()) > 0.01 * scale


def test_another_prompt_is_told_in_the_log(caplog):
    model = tiny.model("sdxl")
    guided = guider(model, "sdxl")
    _, (made, _) = inverted(guided, "sdxl")
    through, sigmas, start, _ = inversion.replayed(made, 0.5)
    with caplog.at_level(logging.INFO, logger="graft"):
        sampled(guided, through, sigmas, start)
        assert "not that of the inversion" not in caplog.text
        sampled(guider(model, "sdxl", 3.0), through, sigmas, start)
    assert "not that of the inversion" in caplog.text


def test_progress_is_told_as_the_host_expects_it():
    told = []
    guided = guider(tiny.model("sdxl"), "sdxl")
    _, (made, _) = inverted(guided, "sdxl", "dpmpp-2m", sweeps=2, iterations=1)
    through, sigmas, start, _ = inversion.replayed(made, 0.5)

    def callback(step, denoised, x, total):
        told.append((step, total, tuple(denoised.shape), tuple(x.shape)))

    with torch.inference_mode():
        guided.sample(
            torch.zeros(1, 4, 8, 8),
            start["samples"],
            through,
            sigmas,
            callback=callback,
            disable_pbar=True,
            seed=1,
        )
    assert told == [(i, 3, (1, 4, 8, 8), (1, 4, 8, 8)) for i in range(3)]


def test_what_does_not_fit_an_inversion_is_refused():
    model = tiny.model("sdxl")
    guided = guider(model, "sdxl")
    _, (made, _) = inverted(guided, "sdxl")
    through, sigmas, start, _ = inversion.replayed(made, 0.0)
    with pytest.raises(ValueError, match=r"SIGMAS has 5 steps from 6, and this inversion 6 from"):
        sampled(guided, through, sigmas[1:], start)
    other = sigmas.clone()
    other[2] = 2.4
    with pytest.raises(ValueError, match=r"Level 3 of SIGMAS is 2.4, and that of this inversion"):
        sampled(guided, through, other, start)
    with pytest.raises(
        ValueError, match=r"of latents \[1, 4, 8, 8\], and LATENT is \[2, 4, 8, 8\]"
    ):
        sampled(guided, through, sigmas, {"samples": torch.ones(2, 4, 8, 8)})
    v_model = guider(tiny.model("sdxl_v"), "sdxl")
    with pytest.raises(ValueError, match=r"another kind of model \(SDXL, eps\) .*\(SDXL, v\)"):
        sampled(v_model, through, sigmas, start)
    sd15 = guider(tiny.model("sd15"), "sd15")
    with pytest.raises(ValueError, match=r"\(SDXL, eps\) .*\(SD15, eps\).*invert the picture with"):
        sampled(sd15, through, sigmas, start)


def test_what_cannot_be_inverted_is_refused():
    import comfy.nested_tensor
    import comfy.samplers

    guided = guider(tiny.model("sdxl"), "sdxl")

    def run(latent, sigmas=SIGMAS, by=guided):
        with torch.inference_mode():
            return inversion.invert(by, sigmas, latent, INVERSIONS.get("ddim")(), seed=0)

    fine = {"samples": torch.ones(1, 4, 8, 8)}
    nested = comfy.nested_tensor.NestedTensor([torch.ones(1, 4, 8, 8), torch.ones(1, 8, 16)])
    cases = [
        ({"samples": torch.ones(1, 16, 8, 8)}, r"LATENT is \[1, 16, 8, 8\].*SDXL.*4 channels"),
        ({"samples": torch.zeros(1, 4, 8, 8)}, "LATENT is empty, all 0"),
        ({"samples": torch.full((1, 4, 8, 8), torch.nan)}, "not finite"),
        ({"samples": nested}, "several in one"),
    ]
    for latent, said in cases:
        with pytest.raises(ValueError, match=said):
            run(latent)
    with pytest.raises(ValueError, match="SIGMAS has no level"):
        run(fine, torch.zeros(0))
    with pytest.raises(ValueError, match="without Flip Sigmas"):
        run(fine, SIGMAS.flip(0))
    with pytest.raises(ValueError, match="has no conditioning"):
        run(fine, by=comfy.samplers.CFGGuider(tiny.model("sdxl")))
    with pytest.raises(ValueError, match="none of ComfyUI's kind"):
        run(fine, by=type("Other", (), {"model_patcher": tiny.model("sdxl")})())
