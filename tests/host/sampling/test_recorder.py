# SPDX-License-Identifier: Apache-2.0
"""A recorded SAMPLER samples as it did, and its record is found by the LATENT it led to."""

import math

import pytest
import torch

from graft.host.sampling import plots
from graft.host.sampling.recorder import CHANGE, SIZE, Recorder, record
from graft.host.sampling.sampler import sampler
from graft.samplers.edm_heun import EDMHeun
from tests.host import tiny
from tests.host.sampling.guiding import run

pytestmark = pytest.mark.comfy

SIGMAS = torch.tensor([14.0, 5.0, 1.0, 0.2, 0.0])


def others():
    """Ours, and samplers of the host's with other counts of evaluations."""
    import comfy.samplers

    names = {"euler": 4, "dpmpp_sde": 7, "uni_pc": 4, "euler_cfg_pp": 4}
    made = [(comfy.samplers.sampler_object(name), calls) for name, calls in names.items()]
    return [(sampler(EDMHeun()), 7), *made]


@pytest.mark.parametrize("index", range(5))
def test_any_sampler_is_recorded_and_samples_as_it_did(index):
    inner, calls = others()[index]
    model = tiny.model("sdxl")
    plain, _ = run(model, "sdxl", inner, SIGMAS, batch=2)
    recorded, kept = record(inner)
    out, denoised = run(model, "sdxl", recorded, SIGMAS, batch=2)
    torch.testing.assert_close(out["samples"], plain["samples"])
    for latent in (out, denoised):
        trace, is_its = kept.of(latent["samples"])
        assert is_its and trace.calls == calls and trace.steps == 4
    size, change = trace.lines[SIZE], trace.lines[CHANGE]
    assert len(size) == len(change) == len(trace.sigmas)
    assert math.isnan(change[0]) and all(math.isfinite(x) for x in size)


def test_the_numbers_are_those_of_d():
    """D at the last step of euler to 0 is the result itself: its root mean square, the mean over the batch."""
    import comfy.samplers

    recorded, kept = record(comfy.samplers.sampler_object("euler"))
    model = tiny.model("sdxl")
    out, _ = run(model, "sdxl", recorded, SIGMAS, batch=3)
    inside = model.model.process_latent_in(out["samples"])
    expected = inside.flatten(1).square().mean(1).sqrt().mean()
    trace, _ = kept.of(out["samples"])
    assert trace.lines[SIZE][-1] == pytest.approx(float(expected), rel=1e-5)
    assert trace.sigmas == pytest.approx((14.0, 5.0, 1.0, 0.2))


def test_each_latent_finds_its_own_trace():
    recorded, kept = record(sampler(EDMHeun()))
    model = tiny.model("sdxl")
    first, _ = run(model, "sdxl", recorded, SIGMAS)
    second, _ = run(model, "sdxl", recorded, SIGMAS[:3])
    assert kept.of(first["samples"])[0].steps == 4
    assert kept.of(second["samples"])[0].steps == 2
    trace, is_its = kept.of(first["samples"] + 1)
    assert trace.steps == 2 and not is_its
    _, said = plots.plot_steps(kept, {"samples": first["samples"] + 1})
    assert "is not what came of the sampler" in said


def test_only_the_last_traces_are_kept():
    recorded, kept = record(sampler(EDMHeun()))
    model = tiny.model("sd15")
    for seed in range(10):
        run(model, "sd15", recorded, SIGMAS[3:], seed=seed)
    assert len(kept.traces) == 8


def test_all_else_is_the_inner_samplers():
    inner = sampler(EDMHeun())
    recorded, _ = record(inner)
    assert recorded.sampler_function is inner.sampler_function
    assert recorded.extra_options is inner.extra_options
    with pytest.raises(AttributeError):
        _ = recorded.not_there


def test_the_plot_has_both_lines_and_the_words_each_step():
    recorded, kept = record(sampler(EDMHeun()))
    out, _ = run(tiny.model("sdxl"), "sdxl", recorded, SIGMAS)
    image, said = plots.plot_steps(kept, out)
    assert image.shape == (1, 400, 640, 3)
    lines = said.splitlines()
    assert lines[0] == "4 steps, 7 evaluations of the model (NFE)"
    assert lines[1].startswith("step 1: sigma 14, |D| ") and CHANGE not in lines[1]
    assert lines[4].startswith("step 4: sigma 0.2, |D| ") and CHANGE in lines[4]


def test_nothing_recorded_and_nested_latents_are_refused():
    class Nested:
        is_nested = True

    with pytest.raises(ValueError, match="Nothing is recorded"):
        plots.plot_steps(Recorder(), {"samples": torch.zeros(1, 4, 2, 2)})
    with pytest.raises(ValueError, match="several in one .nested"):
        plots.plot_steps(Recorder(), {"samples": Nested()})
