# SPDX-License-Identifier: Apache-2.0
"""The rows of `make figures TOPIC=skeleton`: what is measured, how, and its bound."""

import io
import math
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
CODE = ("adapters/**/*.py", "host/**/*.py", "loaders/**/*.py", "trainers/**/*.py", "registry.py")
NODES = (*CODE, "nodes/**/*.py", "example_workflows/*.json")
MINI = ("assets/*.safetensors", "assets/concepts/**/*", "tools/mini/*.py", "metrics/*.py")
GRAPHS = ("benchmarks/skeleton/*.py", "tests/host/server.py", "tests/host/workflow.py")
FAMILIES = {
    "eps": "sdxl",
    "v": "sdxl_v",
    "v-zero-terminal": "sdxl_zsnr",
    "edm": "sdxl_edm",
    "flow-sd3": "sd3",
    "flow-flux": "flux",
}
LAYOUTS = ("SD15", "SDXL", "SD3", "Flux")
MANY_SIGMAS = 200


class Bench:
    """What measurements share: graft-mini in this process, and one real server."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @cached_property
    def wires(self) -> tuple[Any, Any, Any]:
        """MODEL, CLIP and VAE of graft-mini."""
        from graft.host.model.mini import load_mini

        with torch.inference_mode():
            return load_mini()

    @cached_property
    def server(self) -> Any:
        """A real ComfyUI, on the CPU."""
        from tests.host.server import ComfyServer

        return self._stack.enter_context(ComfyServer())


@dataclass(frozen=True)
class Measurement:
    """Some rows that are measured together.

    Attributes:
        name: What ``--only`` selects it by, beside the names of its rows.
        bounds: The bound of each row, an operator and a number.
        inputs: Patterns of the files that it depends on.
        measure: Gives the value of each row.
        about: What is measured, for the table's reader.
        is_headline: Whether its rows are in the README.
    """

    name: str
    bounds: dict[str, str]
    inputs: tuple[str, ...]
    measure: Callable[[Bench], dict[str, float]]
    about: str = ""
    is_headline: bool = False


def concept(bench: Bench) -> dict[str, float]:
    """Train by the shipped workflow on a server, then score base and LoRA in this process."""
    import comfy.sd
    import comfy.utils

    from graft.tools import demo

    from . import concept as scored

    lora, losses, seconds, _ = demo.train(bench.server)
    weights = comfy.utils.load_torch_file(str(bench.server.output / "loras" / lora), safe_load=True)
    model, clip, vae = bench.wires
    with torch.inference_mode():
        tuned, _ = comfy.sd.load_lora_for_models(model, None, weights, 1.0, 0.0)
    result = scored.learned(model, tuned, clip, vae)
    return {
        "concept before": result["before"],
        "concept after": result["after"],
        "other prompts kept": result["kept"],
        "training steps": len(losses),
        "training minutes": seconds / 60,
    }


def base(bench: Bench) -> dict[str, float]:
    """How well graft-mini follows prompts of its own grammar."""
    from graft.tools.mini import evaluate

    with torch.inference_mode():
        return {"base follows prompts": float(evaluate.follow_prompts(*bench.wires)["all"])}


def scorer(bench: Bench) -> dict[str, float]:
    """Right and certain answers on drawings that the scorer was not trained on."""
    from graft.metrics.scorer import load_scorer
    from graft.tools.mini import pretrain_scorer

    shares = pretrain_scorer.measure(load_scorer(), 2048)
    return {f"scorer {kind}": float(share) for kind, share in shares.items()}


def autoencoder(bench: Bench, count: int = 256) -> dict[str, float]:
    """Peak signal to noise of fresh drawings through the VAE."""
    from graft.tools.mini import drawing

    generator = torch.Generator().manual_seed(77)
    pictures = drawing.draw(drawing.random_attributes(count, generator), generator).movedim(1, -1)
    vae = bench.wires[2]
    with torch.inference_mode():
        back = vae.decode(vae.encode(pictures)).float().cpu()
    error = float((back - pictures).square().mean())
    return {"autoencoder dB": -10 * math.log10(error)}


def assets(bench: Bench) -> dict[str, float]:
    """Size of graft-mini as a file, and compressed."""
    path = ROOT / "assets" / "graft-mini.safetensors"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(path, path.name)
    sizes = (path.stat().st_size, len(packed.getvalue()))
    return dict(
        zip(("graft-mini MB", "graft-mini compressed MB"), (s / 1e6 for s in sizes), strict=True)
    )


def loss(kind: str, many: int = MANY_SIGMAS) -> Callable[[Bench], dict[str, float]]:
    """The relative difference of our loss from the network's own mean square error."""

    def measure(bench: Bench) -> dict[str, float]:
        worst = {"above": 0.0, "whole": 0.0}
        for sigma, error in errors(FAMILIES[kind], many):
            worst["whole"] = max(worst["whole"], error)
            if sigma >= 2e-2:
                worst["above"] = max(worst["above"], error)
        return {f"loss {kind}": worst["above"], f"loss {kind}, whole table": worst["whole"]}

    return measure


def errors(family: str, many: int = MANY_SIGMAS) -> list[tuple[float, float]]:
    """For noise levels over the whole table: (sigma, relative difference of the losses)."""
    from graft.host.model.trainee import trainee
    from graft.trainers.denoiser import c_out
    from tests.host import tiny
    from tests.host.model.test_denoiser import cond_for, network_target

    raw: list[torch.Tensor] = []
    found = []
    with trainee(tiny.model(family), precision="fp32") as t, torch.no_grad():
        d, cond = t.denoiser, cond_for(family, t, 1)
        clean, noise = tiny.latent(family), tiny.latent(family, seed=8)
        handle = t.diffusion_model.register_forward_hook(lambda m, a, y: raw.append(y))
        picks = torch.linspace(0, len(d.sigmas) - 1, many).round().long().unique()
        for sigma in d.sigmas[picks].split(1):
            raw.clear()
            out = d(d.add_noise(sigma, noise, clean), sigma, cond)
            ours = ((out - clean) / c_out(d, sigma)).square().mean().item()
            target = network_target(family, sigma, noise, clean)
            plain = (raw[-1].double() - target).square().mean().item()
            found.append((sigma.item(), abs(ours - plain) / plain))
        handle.remove()
    return found


def accumulation(bench: Bench, steps: int = 5) -> dict[str, float]:
    """Losses of a batch of four in one, two and four parts, on graft-mini."""
    from . import concept as scored

    losses = []
    for batch in (4, 2, 1):
        parts = {"batch_size": batch, "accumulate": 4 // batch}
        out = scored.train(bench.wires, steps=steps, steps_unit="steps", **parts)
        losses.append(torch.tensor(out[4]["loss"], dtype=torch.float64))
    gap = max(float(((other - losses[0]) / losses[0]).abs().max()) for other in losses[1:])
    return {"4x1 = 2x2 = 1x4": gap}


def interrupted(bench: Bench) -> dict[str, float]:
    """Interrupt from outside, then load the file and sample."""
    from . import runs

    seen = runs.interrupted(bench.server)
    is_kept = len(seen["new_files"]) == 1 and seen["samples_differ"] and not seen["lora_complaints"]
    return {
        "interrupt: further steps": seen["steps_after"],
        "interrupt: LoRA kept and loads": float(is_kept),
        "interrupt: change of the model": seen["change"],
    }


def repeated(bench: Bench) -> dict[str, float]:
    """The recipe of the shipped workflow, 20 steps, twice."""
    from . import runs

    return {"same seed, same file": float(runs.repeated(bench.server, steps=20, preserve=1.0))}


def continued(bench: Bench) -> dict[str, float]:
    """Train, sample, train on, train on top, sample: and 3 + 3 steps of 6 are 6."""
    from . import runs

    return {"3 + 3 of 6 = 6, samples between": float(runs.continued(bench.server))}


def reloaded(bench: Bench) -> dict[str, float]:
    """The stock LoraLoader's samples against those of the MODEL on the wire."""
    from . import runs

    off, change = runs.reloaded(bench.server, steps=30)
    if change < 0.05:
        raise RuntimeError("the LoRA changes too little for this to say anything")
    return {"stock loader against the wire": off}


def keys(bench: Bench) -> dict[str, float]:
    """Keys of LoRAs on every layer of the real layouts that ComfyUI does not take."""
    from graft.adapters.targets import targets
    from graft.host.files import result
    from tests.host.files.test_keys import build, fake_lora

    left = {}
    for layout in LAYOUTS:
        patcher = build(layout)
        root = patcher.model.diffusion_model
        report = result.apply(patcher, fake_lora(root, targets(root, "all")))[1]
        left[f"keys left over, {layout}"] = float(report.total - report.applied)
    return left


def against_core(model: str) -> Callable[[Bench], dict[str, float]]:
    """Our trainer against ComfyUI's, by `make bench`'s own code."""

    def measure(bench: Bench) -> dict[str, float]:
        from graft.benchmarks.bench import compare

        result = compare(model)
        return {
            f"{model}: steps a second, ours / core": result["speed"]["ratio"],
            f"{model}: peak memory, ours / core": result["memory"]["ratio"],
            f"{model}: peak memory, checkpointed / not": result["memory"]["checkpointed"],
        }

    return measure


def _against_core(model: str) -> Measurement:
    bounds = {
        f"{model}: steps a second, ours / core": ">= 1.5",
        f"{model}: peak memory, ours / core": "<= 0.7",
        f"{model}: peak memory, checkpointed / not": "< 1",
    }
    return Measurement(
        f"core {model}", bounds, (*CODE, "benchmarks/*.py"), against_core(model), is_headline=True
    )


def _loss(kind: str) -> Measurement:
    bounds = {f"loss {kind}": "<= 1e-5", f"loss {kind}, whole table": "<= 3e-4"}
    inputs = (
        *CODE,
        "tests/host/tiny.py",
        "tests/host/model/test_denoiser.py",
        "benchmarks/skeleton/*",
    )
    return Measurement(f"loss {kind}", bounds, inputs, loss(kind))


_TRUE = ">= 1"
MEASUREMENTS = (
    Measurement(
        "concept",
        {
            "concept before": "<= 0.15",
            "concept after": ">= 0.70",
            "other prompts kept": ">= 0.90",
            "training steps": "<= 600",
            "training minutes": "<= 4",
        },
        (*NODES, *MINI, *GRAPHS, "tools/demo.py"),
        concept,
        is_headline=True,
    ),
    Measurement("base", {"base follows prompts": ">= 0.85"}, ("host/model/mini.py", *MINI), base),
    Measurement(
        "scorer",
        {f"scorer {kind}": ">= 0.98" for kind in ("shape", "colour", "background", "texture")},
        MINI,
        scorer,
    ),
    Measurement(
        "autoencoder", {"autoencoder dB": ">= 25"}, ("host/model/mini.py", *MINI), autoencoder
    ),
    Measurement(
        "assets",
        {"graft-mini MB": "<= 40", "graft-mini compressed MB": "<= 26"},
        ("assets/*.safetensors",),
        assets,
    ),
    *(_loss(kind) for kind in FAMILIES),
    Measurement("accumulation", {"4x1 = 2x2 = 1x4": "<= 1e-5"}, (*NODES, *MINI), accumulation),
    Measurement("repeated", {"same seed, same file": _TRUE}, (*NODES, *MINI, *GRAPHS), repeated),
    Measurement(
        "continued",
        {"3 + 3 of 6 = 6, samples between": _TRUE},
        (*NODES, *MINI, *GRAPHS),
        continued,
    ),
    Measurement(
        "interrupted",
        {
            "interrupt: further steps": "<= 1",
            "interrupt: LoRA kept and loads": _TRUE,
            "interrupt: change of the model": "<= 0",
        },
        (*NODES, *MINI, *GRAPHS),
        interrupted,
    ),
    Measurement(
        "reloaded",
        {"stock loader against the wire": "<= 1e-3"},
        (*NODES, *MINI, *GRAPHS),
        reloaded,
    ),
    Measurement(
        "keys",
        {f"keys left over, {layout}": "<= 0" for layout in LAYOUTS},
        (*CODE, "tests/host/files/test_keys.py"),
        keys,
    ),
    _against_core("mini"),
    _against_core("sdxl64"),
)
