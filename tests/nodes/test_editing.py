# SPDX-License-Identifier: Apache-2.0
"""The nodes of editing, joined as in a graph, and what their options may be."""

from types import SimpleNamespace

import pytest
import torch

from tests.host import tiny
from tests.host.sampling.test_inversion import SIGMAS, guider, sampled

pytestmark = pytest.mark.comfy


def run(node, **given):
    """A node's outputs, with its defaults for what is not given."""
    from graft.nodes import editing

    kind = getattr(editing, node)
    held = SimpleNamespace(unique_id="1", prompt={}, extra_pnginfo={})
    ready = type(node, (kind,), {"hidden": held})
    values = {i.id: i.default for i in kind.define_schema().inputs if hasattr(i, "default")}
    with torch.inference_mode():
        return ready.execute(**values | given).args


@pytest.fixture(scope="module")
def plain(request):
    from tests.host import inprocess

    inprocess.start()
    return guider(tiny.model("sdxl"), "sdxl")


def test_a_picture_goes_up_and_down_by_the_nodes_and_is_edited_on_the_way(plain):
    latent = {"samples": tiny.latent("sdxl", batch=2)}
    made, said = run("Invert", guider=plain, sigmas=SIGMAS, latent=latent)
    assert said.startswith("ledits-dpmpp: 6 steps from sigma 14 to 0, 6 evaluations")
    through, sigmas, start, words = run("ReplayInversion", inversion=made)
    assert words == "5 of 6 steps, from sigma 6" and len(sigmas) == 6
    (one,) = run("Edit", text="blue", clip=tiny.clip("sdxl"), threshold=0.5)
    given = tiny.conditioning("sdxl", seed=8)
    (two,) = run("Edit", conditioning=given, direction="remove", edits=one)
    assert len(one) == 1 and len(two) == 2 and two[0] is one[0]
    edited, text = run("EditGuider", guider=plain, edits=two)
    unchanged, none = run("EditGuider", guider=plain)
    assert "1: add 'blue', scale 5" in text and none == "No edits."
    back = sampled(unchanged, through, sigmas, start)
    assert float((back - latent["samples"]).abs().max()) < 1e-4
    out = sampled(edited, through, sigmas, start)
    assert float((out - latent["samples"]).abs().max()) > 0.1


def test_widgets_and_options_reach_the_method(plain):
    latent = {"samples": tiny.latent("sdxl")}
    wires = {"guider": plain, "sigmas": SIGMAS, "latent": latent}
    one, _ = run("Invert", **wires, method="ddim", iterations=1)
    many, _ = run("Invert", **wires, method="ddim", iterations=1, options="iterations=4")
    assert one.inversion.evaluations == 6 and 6 < many.inversion.evaluations <= 24
    other, _ = run("Invert", **wires, seed=9)
    first, _ = run("Invert", **wires)
    assert not torch.equal(other.inversion.states[0], first.inversion.states[0])
    with pytest.raises(ValueError, match="Unknown option of ledits-dpmpp 'eta'"):
        run("Invert", **wires, options="eta=0.5")
    with pytest.raises(ValueError, match="Unknown inversion 'ddmi'. Did you mean ddim"):
        run("Invert", **wires, method="ddmi")
