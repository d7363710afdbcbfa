# SPDX-License-Identifier: Apache-2.0
"""Pixel diffusion models through the nodes, from making one to loading what was trained."""

import types

import pytest
import torch

from tests.host.files import test_ddpm as folders

pytestmark = pytest.mark.comfy
output = folders.output  # fixture
SMALL = {
    "size": 8,
    "colors": "gray",
    "classes": 3,
    "width": 8,
    "levels": "1,2",
    "layers": 1,
    "schedule": "linear",
    "predicts": "epsilon",
    "unlabelled": True,
    "seed": 0,
}


@pytest.fixture
def nodes(monkeypatch):
    from graft.nodes import ddpm

    for node in ddpm.NODES:
        monkeypatch.setattr(node, "hidden", types.SimpleNamespace(unique_id=None), raising=False)
    return types.SimpleNamespace(**{node.__name__: node for node in ddpm.NODES})


def test_a_model_is_made_saved_found_and_drawn_with(nodes, output):
    import comfy.sample

    made = nodes.NewDdpm.execute(**SMALL)
    model, vae = made.args
    assert "8 x 8 px, gray, 3 classes and one for none; linear, epsilon" in made.ui["text"][0]
    saved = nodes.SaveDdpm.execute(model, "mine")
    assert saved.args == ("mine",) and "output/diffusers/mine" in saved.ui["text"][0]
    assert nodes.LoadDdpm.validate_inputs("mine") is True
    assert "There are: mine" in nodes.LoadDdpm.validate_inputs("nime")
    assert nodes.LoadDdpm.fingerprint_inputs("mine")
    loaded, _ = nodes.LoadDdpm.execute("mine").args
    positive, negative, latent = nodes.ClassLabel.execute(loaded, "2, 0", 2, 0, 16).args
    assert latent["samples"].shape == (4, 1, 16, 8)
    given = (2, 2.0, "euler", "normal", positive, negative, latent["samples"])
    with torch.inference_mode():
        noise = torch.randn(4, 1, 16, 8)
        drawn = comfy.sample.sample(loaded, noise, *given, disable_pbar=True, seed=0)
        assert vae.decode(drawn).shape == (4, 16, 8, 3)


def test_the_seed_makes_the_model(nodes, output):
    models = [nodes.NewDdpm.execute(**SMALL | {"seed": s}).args[0] for s in (0, 0, 1)]
    first, again, other = (m.model.state_dict()["diffusion_model.conv_in.weight"] for m in models)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_bad_input_is_refused(nodes, output):
    from tests.host import tiny

    model, _ = nodes.NewDdpm.execute(**SMALL).args
    free, _ = nodes.NewDdpm.execute(**SMALL | {"classes": 0}).args
    with pytest.raises(
        ValueError, match="'3' is no class of this MODEL: give a number from 0 to 2"
    ):
        nodes.ClassLabel.execute(model, "1, 3", 1, 0, 0)
    with pytest.raises(ValueError, match="knows no classes: leave labels empty"):
        nodes.ClassLabel.execute(free, "1", 1, 0, 0)
    with pytest.raises(ValueError, match="is no pixel diffusion model"):
        nodes.ClassLabel.execute(tiny.model("sd15"), "1", 1, 0, 0)
    with pytest.raises(ValueError, match="4096 are possible"):
        nodes.ClassLabel.execute(model, "0 1", 4000, 0, 0)
    assert "cannot be used" in nodes.SaveDdpm.validate_inputs("a/b")
