# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from graft.host import autoencoder
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
