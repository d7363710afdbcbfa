# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from graft.host.data import autoencoder
from tests.host import tiny

pytestmark = pytest.mark.comfy


def pictures(count=3, height=64, width=32):
    return torch.rand((count, height, width, 3), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("ambient", [True, False])
@pytest.mark.parametrize("family", ["sdxl", "sdxl_edm", "sd3"])
def test_latents_are_the_hosts_in_the_models_units(family, ambient):
    vae, model = tiny.vae(family), tiny.model(family)
    with torch.inference_mode():
        raw = vae.encode(pictures())
    with torch.inference_mode(ambient):
        latent = autoencoder.encode(vae, model, pictures())
    channels = tiny.latent_channels(family)
    assert latent.shape == (3, channels, 8, 4) and latent.dtype == torch.float32
    assert not latent.is_inference() and latent.device.type == "cpu"
    if family == "sdxl":
        expected = raw * 0.13025
    elif family == "sd3":
        expected = (raw - 0.0609) * 1.5305
    else:
        mean = torch.tensor([-1.6574, 1.886, -1.383, 2.5155]).view(1, 4, 1, 1)
        std = torch.tensor([8.4927, 5.9022, 6.5498, 5.2299]).view(1, 4, 1, 1)
        expected = (raw - mean) * 0.5 / std
    torch.testing.assert_close(latent, expected, rtol=1e-5, atol=1e-5)
    (latent * torch.ones(1, requires_grad=True)).sum().backward()


def test_an_object_patch_of_the_wire_has_the_units():
    """A tiny SDXL as Playground v2.5: the statistics of its model card, and a key of its own in the cache."""
    from graft.host.runs import identity
    from graft.host.sampling.edm_model import EDMModel, patched

    plain = tiny.model("sdxl")
    made = patched(plain, EDMModel())
    kl, own = tiny.kl_vae(), tiny.model("sdxl_edm")
    for encode in (autoencoder.encode, lambda *wires: autoencoder.posterior(*wires).mean):
        torch.testing.assert_close(encode(kl, made, pictures()), encode(kl, own, pictures()))
    spreads = [autoencoder.posterior(kl, one, pictures()).spread for one in (made, own)]
    torch.testing.assert_close(*spreads)
    digests = [identity.vae_digest(kl, one) for one in (plain, made, own)]
    assert digests[0] != digests[1] == digests[2]


def test_pictures_go_through_in_chunks(monkeypatch):
    vae, model = tiny.vae("sdxl"), tiny.model("sdxl")
    whole = autoencoder.encode(vae, model, pictures(5))
    sizes, encode = [], vae.encode
    vae.encode = lambda p: sizes.append(len(p)) or encode(p)
    monkeypatch.setattr(autoencoder, "CHUNK_PIXELS", 2 * 64 * 32)
    torch.testing.assert_close(autoencoder.encode(vae, model, pictures(5)), whole)
    assert sizes == [2, 2, 1]


def test_an_autoencoder_that_draws_does_so_reproducibly():
    vae, model = tiny.vae("sdxl"), tiny.model("sdxl")
    encode = vae.encode
    vae.encode = lambda p: (z := encode(p)) + torch.randn(z.shape)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = autoencoder.encode(vae, model, pictures(1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(autoencoder.encode(vae, model, pictures(1)), first)


def test_an_alpha_channel_is_not_encoded():
    vae, model = tiny.vae("sdxl"), tiny.model("sdxl")
    rgba = torch.cat([pictures(1), torch.ones(1, 64, 32, 1)], dim=-1)
    assert torch.equal(
        autoencoder.encode(vae, model, rgba), autoencoder.encode(vae, model, pictures(1))
    )


def test_a_vae_of_another_family_is_named():
    autoencoder.check_family(tiny.vae("sdxl"), tiny.model("sdxl"))
    with pytest.raises(
        ValueError, match=r"VAE \(TAESD\) makes latents of 16 channels, the MODEL \(SDXL\) takes 4"
    ):
        autoencoder.encode(tiny.vae("sd3"), tiny.model("sdxl"), pictures())
    with pytest.raises(ValueError, match="takes 16"):
        autoencoder.check_family(tiny.vae("sdxl"), tiny.model("flux"))
    video = tiny.vae("sdxl")
    video.latent_dim = 3
    with pytest.raises(ValueError, match="3 dimensions"):
        autoencoder.check_family(video, tiny.model("sdxl"))
    model, deep = tiny.model("sdxl"), tiny.vae("sdxl")

    class Deep(type(model.model.latent_format)):
        spacial_downscale_ratio = 32

    model.model.latent_format = Deep()
    with pytest.raises(ValueError, match="8 pixels a side"):
        autoencoder.check_family(deep, model)


def test_the_model_says_when_the_vae_lies_about_its_channels():
    vae = tiny.vae("sd3")
    vae.latent_channels = 4
    with pytest.raises(ValueError, match="16 channels"):
        autoencoder.encode(vae, tiny.model("sdxl"), pictures())


def moments(vae, pixels):
    """Mean and log variance by the autoencoder's own layers, and the host's own pixel range of -1..1."""
    network = vae.first_stage_model
    with torch.inference_mode():
        return network.quant_conv(network.encoder(pixels.movedim(-1, 1) * 2 - 1)).chunk(2, dim=1)


@pytest.mark.parametrize("ambient", [True, False])
def test_an_autoencoder_with_a_distribution_gives_it(ambient):
    vae, model = tiny.kl_vae(), tiny.model("sdxl")
    with torch.inference_mode():
        raw = vae.encode(pictures())  # the host's latent is the mode
    mean, logvar = moments(vae, pictures())
    with torch.inference_mode(ambient):
        found = autoencoder.posterior(vae, model, pictures())
        assert torch.equal(autoencoder.encode(vae, model, pictures()), found.mean)
    assert torch.equal(found.mean, raw * 0.13025) and not found.spread.is_inference()
    torch.testing.assert_close(found.mean, mean * 0.13025)
    torch.testing.assert_close(found.spread, 0.13025 * torch.exp(0.5 * logvar))
    assert "forward" not in vars(vae.first_stage_model.regularization) and vae.latent_channels == 4
    with torch.inference_mode():
        assert torch.equal(vae.encode(pictures()), raw)


def test_a_model_whose_latents_are_shifted_spreads_without_the_shift():
    vae, model = tiny.kl_vae(), tiny.model("sdxl_edm")
    logvar = moments(vae, pictures())[1]
    std = torch.tensor([8.4927, 5.9022, 6.5498, 5.2299]).view(1, 4, 1, 1)
    found = autoencoder.posterior(vae, model, pictures())
    expected = torch.exp(0.5 * logvar) * 0.5 / std
    torch.testing.assert_close(found.spread, expected, rtol=1e-4, atol=1e-6)


def test_a_distribution_is_made_in_tiles_where_memory_is_short(monkeypatch):
    import comfy.model_management as management

    vae, model = tiny.kl_vae(), tiny.model("sdxl")
    whole = autoencoder.posterior(vae, model, pictures(1))
    calls = []
    encode = vae.first_stage_model.encode

    def short(pixels):
        calls.append(1)
        if len(calls) == 1:
            raise management.OOM_EXCEPTION("no memory")
        return encode(pixels)

    monkeypatch.setattr(vae.first_stage_model, "encode", short)
    tiled = autoencoder.posterior(vae, model, pictures(1))
    assert len(calls) > 1
    torch.testing.assert_close(tiled.mean, whole.mean)
    torch.testing.assert_close(tiled.spread, whole.spread)


def test_an_autoencoder_that_fails_is_given_back(monkeypatch):
    vae, model = tiny.kl_vae(), tiny.model("sdxl")

    def fail(pixels):
        raise RuntimeError("no paint")

    monkeypatch.setattr(vae.first_stage_model.encoder, "forward", fail)
    with pytest.raises(RuntimeError, match="no paint"):
        autoencoder.posterior(vae, model, pictures(1))
    assert "forward" not in vars(vae.first_stage_model.regularization) and vae.latent_channels == 4


def test_an_autoencoder_of_points_has_no_spread():
    vae, model = tiny.vae("sdxl"), tiny.model("sdxl")
    point = autoencoder.posterior(vae, model, pictures())
    assert point.spread is None
    assert torch.equal(point.mean, autoencoder.encode(vae, model, pictures()))
    after = tiny.kl_vae()
    after.format_encoded = lambda z: (
        z
    )  # what a newer host may do to a latent is not done to moments
    assert autoencoder.posterior(after, model, pictures(1)).spread is None
