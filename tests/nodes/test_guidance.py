# SPDX-License-Identifier: Apache-2.0
"""Guidance and Guide Model as a graph calls them, on graft-mini, and what they refuse."""

import pytest
import torch

from tests.host import tiny
from tests.host.sampling.vision import vision

pytestmark = pytest.mark.comfy

PROMPT = "a large green circle on a yellow background"


@pytest.fixture
def guidance(comfy):
    from graft.nodes.guidance import Guidance

    def make(guidance="color", strength=40.0, color="#3030ff", text="", options="", **more):
        reach = more.pop("schedule", "constant"), more.pop("start", 0.0), more.pop("end", 1.0)
        with torch.inference_mode():
            return Guidance.execute(guidance, strength, color, text, *reach, options, **more).args[
                0
            ]

    return make


@pytest.fixture
def guide(comfy):
    from graft.nodes.guidance import GuideModel

    def make(model, guidance, method="denoised", decode="fast", vae=None):
        with torch.inference_mode():
            return GuideModel.execute(model, guidance, method, decode, vae).args[0]

    return make


@pytest.fixture(scope="module")
def mini():
    from tests.host import inprocess

    inprocess.start()
    from graft.host.model import mini

    with torch.inference_mode():
        return mini.load_mini()


def mean_color(model, clip, vae, steps=8, side=4):
    """Of two pictures of the KSampler's own function."""
    import comfy.sample

    with torch.inference_mode():
        texts = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (PROMPT, "")]
        empty = torch.zeros(2, 4, side, side)
        noise = comfy.sample.prepare_noise(empty, 1)
        out = comfy.sample.sample(
            model, noise, steps, 4.0, "euler", "normal", *texts, empty, disable_pbar=True, seed=1
        )
        return vae.decode(out).mean(dim=(1, 2))


@pytest.mark.parametrize(
    ("method", "strengths", "steps", "start"),
    [("denoised", (0.0, 10.0, 20.0, 40.0), 8, 0.0), ("network", (0.0, 40.0, 80.0), 10, 0.5)],
)
def test_the_stronger_the_guidance_the_nearer_the_mean_color(
    guidance, guide, mini, method, strengths, steps, start
):
    model, clip, vae = mini
    wanted = torch.tensor([0x30, 0x30, 0xFF]) / 255
    far = []
    for strength in strengths:
        made = guide(model, guidance(strength=strength, start=start), method, "vae", vae)
        found = mean_color(made, clip, vae, steps, 8)
        far.append((found - wanted).abs().mean(dim=1))
    assert all((after < before).all() for before, after in zip(far, far[1:], strict=False)), far
    assert (far[-1] < 0.65 * far[0]).all()


def test_a_strength_of_zero_is_the_model_itself(guidance, guide, mini):
    model, clip, vae = mini
    made = guide(model, guidance(strength=0.0))
    assert torch.equal(mean_color(made, clip, vae), mean_color(model, clip, vae))


def test_a_custom_sampler_with_its_own_guider_is_guided_alike(guidance, guide, mini):
    """SamplerCustomAdvanced samples by a guider's own sample()."""
    import comfy.samplers

    model, clip, vae = mini
    made = guide(model, guidance(strength=10.0))
    with torch.inference_mode():
        texts = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (PROMPT, "")]
        empty = torch.zeros(2, 4, 4, 4)
        guider = comfy.samplers.CFGGuider(made)
        guider.set_conds(*texts)
        guider.set_cfg(4.0)
        sigmas = comfy.samplers.calculate_sigmas(model.model.model_sampling, "normal", 8)
        noise = comfy.sample.prepare_noise(empty, 1)
        out = guider.sample(noise, empty, comfy.samplers.sampler_object("euler"), sigmas, seed=1)
        assert torch.allclose(vae.decode(out).mean(dim=(1, 2)), mean_color(made, clip, vae))


def test_guidances_are_joined(guidance):
    first = guidance("color", 3.0, "#ff0000", options="metric=l2", schedule="cosine", end=0.5)
    both = guidance("color", 5.0, schedule="linear", options="last=0.5", more=first)
    assert [one.strength for one in both] == [3.0, 5.0]
    assert both[0].loss.metric == "l2" and both[0].end_percent == 0.5
    assert both[1].course.last == 0.5 and len(first) == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"color": "grass"}, "it must be like #1ae680"),
        ({"options": "metrik=l2"}, "Did you mean metric"),
        ({"options": "metric=l3"}, "Unknown metric"),
        ({"options": "cuts=4"}, "Unknown option"),
        ({"guidance": "colour"}, "Did you mean color"),
        ({"start": 0.6, "end": 0.4}, "must begin before it ends"),
        ({"guidance": "image"}, "connect one to image"),
        ({"guidance": "perceptual"}, "connect one to image"),
        ({"guidance": "clip"}, "lacks clip and clip_vision and text"),
    ],
)
def test_bad_settings_are_refused(guidance, given, said):
    with pytest.raises(ValueError, match=said):
        guidance(**given)


def test_what_cannot_be_decoded_is_refused(guidance, guide, tmp_path):
    model = tiny.model("sdxl")
    color = guidance()
    with pytest.raises(ValueError, match="no VAE is connected"):
        guide(model, color, decode="vae")
    with pytest.raises(ValueError, match="VAE .* makes latents of 16 channels"):
        guide(model, color, decode="vae", vae=tiny.vae("sd3"))
    with pytest.raises(ValueError, match="decode pixels is for models that draw pixels"):
        guide(model, color, decode="pixels")
    with pytest.raises(ValueError, match="set decode to vae and connect the VAE"):
        guide(model, guidance("perceptual", image=torch.zeros(1, 8, 8, 3)))
    model.model.latent_format.latent_rgb_factors = None
    with pytest.raises(ValueError, match="no linear map"):
        guide(model, color)


def test_clip_guidance_of_a_graph(guidance, guide, tmp_path, mini):
    model, clip, vae = mini
    made = guidance("clip", 50.0, text="a red circle", clip=clip, clip_vision=vision(tmp_path))
    assert made[0].target.text.shape == (1, 64)
    assert torch.isfinite(mean_color(guide(model, made), clip, vae)).all()
    with pytest.raises(ValueError, match="lacks text"):
        guidance("clip", text=" ", clip=clip, clip_vision=vision(tmp_path))
