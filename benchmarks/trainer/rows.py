# SPDX-License-Identifier: Apache-2.0
"""The rows of `make figures TOPIC=trainer`: objectives, optimizers, determinism, against closed forms and libraries."""

import torch

from ..b_lora import compare
from ..data.rows import folder
from ..skeleton.rows import CODE, Bench, Measurement
from ..stratified import mini

FILES = (*CODE, "benchmarks/trainer/*.py", "tests/trainers/*.py", "tests/host/tiny.py")
LEVELS = (0.1, 0.5, 0.9)
LIMITS = ((0.0, 0.0), (0.2, 0.7))
GAMMA = 5.0
BATCH, STEPS = 8, 100


def objectives(bench: Bench) -> dict[str, float]:
    """Every noise law, weight, metric and noising, for every family that it goes with."""
    from graft.trainers.objectives import NOISE, WEIGHTS
    from tests.trainers import oracles

    perfect = [oracles.perfect_losses(*pair, 0.1)[0] for pair in oracles.pairs(WEIGHTS)]
    gaussian = [oracles.gaussian_loss(family, s) for family in oracles.FAMILIES for s in LEVELS]
    distances = []
    for kind in ("uniform", "stratified"):
        u = oracles.uniforms(kind)
        for pair in oracles.pairs(NOISE):
            for limits in LIMITS:
                found = oracles.kolmogorov(*oracles.drawn(*pair, u, *limits))
                distances.append(found * len(u) ** 0.5)
    return {
        "perfect denoiser: loss": max(perfect),
        "Gaussian data: off the closed form": max(abs(a / b - 1) for a, b in gaussian),
        "noise laws: Kolmogorov's D sqrt(N)": max(distances),
    }


def weights(bench: Bench) -> dict[str, float]:
    """Weights on ComfyUI's own tables against diffusers' and Karras' formulae."""
    import diffusers
    from diffusers.training_utils import compute_snr

    from graft.host.model.sampling import of_model
    from graft.trainers.objectives import WEIGHTS
    from tests.host import tiny
    from tests.trainers.toy import Toy

    scheduler = diffusers.DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012
    )
    snr = compute_snr(scheduler, torch.arange(1000)).double()
    off = []
    for family, denominator in (("eps", snr), ("v", snr + 1)):
        ours = WEIGHTS.get("min-snr")()(snr.rsqrt().float(), Toy(family)).double()
        off.append((ours / (snr.clamp(max=GAMMA) / denominator) - 1).abs().max())
    eps, edm = (of_model(tiny.model(family)) for family in ("sdxl", "sdxl_edm"))
    style, true = WEIGHTS.get("edm-diffusers")(), WEIGHTS.get("edm")()
    return {
        "Min-SNR: off diffusers' SNR": float(max(off)),
        "EDM-style: off the eps loss": float((style(eps.sigmas, eps) - 1).abs().max()),
        "Playground, true lambda: off 1": float((true(edm.sigmas, edm) - 1).abs().max()),
    }


def optimizers(bench: Bench) -> dict[str, float]:
    """Whole runs against the libraries' own steps."""
    from graft.trainers.optimizers import OPTIMIZERS, Optimizer
    from tests.trainers import oracles
    from tests.trainers.test_loop import make

    moved = []
    for name in OPTIMIZERS.names():
        algorithm = OPTIMIZERS.get(name)()
        try:
            Optimizer(algorithm).check(torch.device("cpu"))
        except ValueError:
            continue
        moved.append(oracles.moved_at_rest(algorithm))
    return {
        "Prodigy: off prodigyopt": oracles.prodigy_gap(make, steps=50)[0],
        "a stopped group moves by": max(moved),
        "average: off EMAModel": max(map(oracles.ema_gap, (0.15, 0.9, 0.9999))),
    }


def options(bench: Bench) -> dict[str, float]:
    """Every registered option on tiny models of four families, with pictures and texts that vary."""
    from tests.host import options

    differ, gaps = 0, []
    with folder():
        for number, choice in enumerate(options.choices()):
            whole = options.train(choice)
            torch.manual_seed(number)
            differ += not options.same(whole, options.train(choice))
            gaps += [options.gap(whole, options.train(choice, *cut)) for cut in ((2, 2), (1, 4))]
    return {"options: runs unlike their twin": differ, "options: 4x1 = 2x2 = 1x4": max(gaps)}


def stratified(bench: Bench) -> dict[str, float]:
    """Variance of a step on graft-mini with stratified noise levels, over that without."""
    with folder():
        loss, gradient = mini(bench.wires, BATCH, STEPS, "one")
    return {"stratified: variance of the loss": loss, "stratified: of the gradient": gradient}


def b_lora(bench: Bench) -> dict[str, float]:
    """What B-LoRA computes and keeps, beside a LoRA on all attentions and the floor, on SDXL's layout, 64 channels."""
    found = compare("sdxl64", turns=3, steps=3)
    return {
        "B-LoRA: nodes beyond the floor's": found["nodes"] - found["nodes of the floor"],
        "B-LoRA: bytes kept before its blocks": found["bytes kept before"],
        "B-LoRA: memory of attention LoRA's": found["memory of attention"],
        "B-LoRA: step of attention LoRA's": found["time of attention"],
        "B-LoRA: step of the floor's": found["time of the floor"],
    }


MEASUREMENTS = (
    Measurement(
        "objectives",
        {
            "perfect denoiser: loss": "<= 0",
            "Gaussian data: off the closed form": "<= 0.01",
            "noise laws: Kolmogorov's D sqrt(N)": "< 1.63",
        },
        FILES,
        objectives,
        "1.63 is the 1 % level of the Kolmogorov-Smirnov test",
    ),
    Measurement(
        "weights",
        {
            "Min-SNR: off diffusers' SNR": "<= 1e-5",
            "EDM-style: off the eps loss": "<= 1e-6",
            "Playground, true lambda: off 1": "<= 1e-6",
        },
        FILES,
        weights,
    ),
    Measurement(
        "optimizers",
        {
            "Prodigy: off prodigyopt": "<= 0",
            "a stopped group moves by": "<= 0",
            "average: off EMAModel": "<= 0",
        },
        FILES,
        optimizers,
    ),
    Measurement(
        "options",
        {"options: runs unlike their twin": "<= 0", "options: 4x1 = 2x2 = 1x4": "<= 1e-5"},
        (*FILES, "tests/host/options.py"),
        options,
    ),
    Measurement(
        "stratified",
        {"stratified: variance of the loss": "< 0.7", "stratified: of the gradient": "< 1.1"},
        (*FILES, "benchmarks/stratified.py", "assets/*.safetensors", "assets/concepts/**/*"),
        stratified,
    ),
    Measurement(
        "b-lora",
        {
            "B-LoRA: nodes beyond the floor's": "<= 0",
            "B-LoRA: bytes kept before its blocks": "<= 0",
            "B-LoRA: memory of attention LoRA's": "<= 0.65",
            "B-LoRA: step of attention LoRA's": "<= 0.85",
            "B-LoRA: step of the floor's": "<= 1.05",
        },
        (*FILES, "benchmarks/b_lora.py", "benchmarks/contenders.py", "benchmarks/subjects.py"),
        b_lora,
    ),
)
