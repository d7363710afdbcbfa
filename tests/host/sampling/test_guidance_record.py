# SPDX-License-Identifier: Apache-2.0
"""The losses of a guided sampling are kept, and found by the LATENT that came of it."""

import math

import pytest
import torch

from graft.host.sampling import guidance, plots
from graft.host.sampling.recorder import CHANGE, record
from graft.host.sampling.sampler import sampler
from graft.samplers.edm_euler import EDMEuler
from graft.samplers.edm_heun import EDMHeun
from graft.samplers.guidance import COURSES, LOSSES, Target, Term
from tests.host import tiny
from tests.host.sampling.guiding import run

pytestmark = pytest.mark.comfy

SIGMAS = torch.tensor([14.0, 5.0, 1.0, 0.2, 0.0])
FAINT = 1e-9  # a strength that changes nothing that float32 can show


def term(kind="color", reach=(0.0, 1.0), strength=FAINT, target=None):
    return Term(LOSSES.get(kind)(), COURSES.get("constant")(), strength, *reach, target or Target())


@pytest.fixture(scope="module")
def model():
    return tiny.model("sdxl")


def test_the_losses_are_those_at_d(model):
    """The mean distance to the color, worked out here from what the sampler told of D."""
    told = []

    class Watching:
        def __init__(self, inner):
            self.inner = inner

        def sample(self, wrap, sigmas, extra, callback, *args, **kwargs):
            def watch(i, denoised, *rest):
                told.append(denoised.clone())
                return callback(i, denoised, *rest)

            return self.inner.sample(wrap, sigmas, extra, watch, *args, **kwargs)

        def __getattr__(self, name):
            return getattr(self.inner, name)

    guided, recorder = guidance.guide(model, [term()], decoder="fast")
    out, denoised = run(guided, "sdxl", Watching(sampler(EDMEuler())), SIGMAS, batch=2)
    trace, is_its = recorder.of(out["samples"])
    assert is_its and recorder.of(denoised["samples"]) == (trace, True)
    assert trace.calls == trace.steps == 4 and trace.sigmas == pytest.approx((14.0, 5.0, 1.0, 0.2))
    form = model.model.latent_format
    factors, bias = (
        torch.tensor(form.latent_rgb_factors),
        torch.tensor(form.latent_rgb_factors_bias),
    )
    wanted = torch.tensor([26.0, 230.0, 128.0]) / 255 * 2 - 1  # of #1ae680
    for d, loss in zip(told, trace.lines["color"], strict=True):
        rgb = torch.einsum("bchw,cr->brhw", d.float(), factors) + bias.view(1, 3, 1, 1)
        expected = (rgb - wanted.view(1, 3, 1, 1)).abs().mean()
        assert loss == pytest.approx(float(expected), rel=1e-5)


def test_there_is_a_line_for_each_term_and_none_where_it_does_not_act(model):
    terms = [term(), term("color", reach=(0.5, 1.0)), term("image", target=picture())]
    guided, recorder = guidance.guide(model, terms, decoder="fast")
    out, _ = run(guided, "sdxl", sampler(EDMHeun()), SIGMAS)
    trace, _ = recorder.of(out["samples"])
    assert list(trace.lines) == ["color 1", "color 2", "image"] and trace.calls == 7
    late = [math.isfinite(value) for value in trace.lines["color 2"]]
    # Two calls a step, the second at the level of the next; the last step has one.
    assert late == [False, False, False, True, True, True, True]
    assert trace.lines["color 2"][3:] == trace.lines["color 1"][3:]
    image, said = plots.plot_steps(recorder, out)
    assert image.shape == (1, 400, 640, 3)
    first, call = said.splitlines()[:2]
    assert first == "4 steps, 7 evaluations of the model (NFE)"
    assert call.startswith("call 1: sigma 14, color 1 ") and "color 2" not in call


def test_each_sampling_has_its_own_and_a_recorded_sampler_goes_with_it(model):
    guided, recorder = guidance.guide(model, [term(strength=20.0)], decoder="fast")
    recorded, kept = record(sampler(EDMEuler()))
    first, _ = run(guided, "sdxl", recorded, SIGMAS)
    second, _ = run(guided, "sdxl", recorded, SIGMAS[1:])
    assert recorder.of(first["samples"])[0].steps == 4
    assert recorder.of(second["samples"])[0].steps == 3
    trace, is_its = kept.of(first["samples"])
    assert is_its and CHANGE in trace.lines


def test_a_guidance_that_never_acts_is_drawn_as_nothing(model):
    guided, recorder = guidance.guide(model, [term(strength=0.0)], decoder="fast")
    out, _ = run(guided, "sdxl", sampler(EDMEuler()), SIGMAS)
    image, said = plots.plot_steps(recorder, out)
    assert torch.isfinite(image).all() and said.splitlines()[1] == "call 1: sigma 14"


def picture():
    return Target(torch.zeros(1, 3, 64, 64))
