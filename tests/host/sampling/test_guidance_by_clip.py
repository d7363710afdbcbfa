# SPDX-License-Identifier: Apache-2.0
"""Guidance by a text: with random CLIPs of the host's own classes, which agree on nothing but their width."""

import pytest
import torch

from tests.host import tiny
from tests.host.sampling.test_guidance import everything, parts, same, sample, term  # noqa: F401 - a fixture
from tests.host.sampling.vision import likeness, vision

pytestmark = pytest.mark.comfy


@pytest.mark.parametrize("method", ["denoised", "network"])
def test_pictures_become_more_like_the_text_and_the_clip_stays_as_it_was(parts, tmp_path, method):  # noqa: F811
    from graft.host.sampling import guidance_targets

    with torch.inference_mode():
        model, vae, seeing = tiny.model("sdxl"), tiny.vae("sdxl"), vision(tmp_path)
        target = guidance_targets.of_text("a red square", tiny.clip("sdxl"), seeing)
        assert target.text.shape == (1, 64) and not target.text.is_inference()
        before = everything(seeing.model)
        plain = sample(model, steps=6, batch=2)
        one = term(parts, "clip", 1000.0, target, cuts=2, smallest=0.5)
        got = sample(parts[0].guide(model, [one], method=method, vae=vae)[0], steps=6, batch=2)
        same(before, everything(seeing.model))
        score = [likeness(seeing, vae.decode(x), target.text) for x in (plain, got)]
    assert (score[1] > score[0] + 0.01).all()


def test_cuts_do_not_depend_on_the_batch(parts, tmp_path):  # noqa: F811
    from graft.host.sampling import guidance_targets

    with torch.inference_mode():
        model, vae, seeing = tiny.model("sdxl"), tiny.vae("sdxl"), vision(tmp_path)
        target = guidance_targets.of_text("a red square", tiny.clip("sdxl"), seeing)
        guided, _ = parts[0].guide(model, [term(parts, "clip", 20.0, target)], vae=vae)
        many, one = (sample(guided, steps=3, batch=n, seed=7) for n in (2, 1))
        again = sample(guided, steps=3, batch=2, seed=7)
    assert torch.equal(many, again)
    assert (many[:1] - one).abs().max() < 1e-3 * float(one.abs().max())


def test_the_embedding_is_the_hosts_of_a_picture_that_needs_no_rounding(parts, tmp_path):  # noqa: F811
    from graft.host.sampling.guidance_view import _embed

    seeing = vision(tmp_path)
    levels = torch.randint(0, 256, (2, 32, 32, 3), generator=torch.Generator().manual_seed(0)) / 255
    with torch.inference_mode():
        expected = seeing.encode_image(levels).image_embeds
        got = _embed(seeing, seeing.model)(levels.movedim(-1, 1) * 2 - 1)
    assert torch.allclose(got, expected, atol=1e-5)


def test_halves_of_different_clips_are_refused_with_their_widths(parts, tmp_path):  # noqa: F811
    from graft.host.sampling.guidance_targets import of_text

    clip = tiny.clip("sdxl")
    with torch.inference_mode():
        with pytest.raises(ValueError, match="text vectors of 64 .* picture vectors of 48"):
            of_text("a", clip, vision(tmp_path, projection=48))
        with pytest.raises(ValueError, match="not trained beside a CLIP of texts"):
            of_text("a", clip, vision(tmp_path, projection=None, kind="siglip_vision_model"))


@pytest.mark.parametrize("fill", ["identity", "zero"])
def test_a_clip_without_a_text_projection_is_refused(parts, tmp_path, fill):  # noqa: F811
    """SD1.5's checkpoints leave it out: the host has an identity, or whatever is in the memory, in its place."""
    from graft.host.sampling.guidance_targets import of_text

    clip = tiny.clip("sdxl")
    with torch.inference_mode():
        weight = clip.cond_stage_model.clip_g.transformer.text_projection.weight
        weight.copy_(torch.eye(64) if fill == "identity" else torch.zeros(64, 64))
        with pytest.raises(ValueError, match="no text projection .*clip_l.safetensors"):
            of_text("a", clip, vision(tmp_path))
