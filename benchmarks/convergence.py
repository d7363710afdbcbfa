# SPDX-License-Identifier: Apache-2.0
"""How soon does a recipe learn? Steps until the concept score is 70 % on graft-mini, by objective and optimizer.

    python -m benchmarks.convergence              measure what is not known yet, and print the table
    python -m benchmarks.convergence --only prodigy --jobs 1
    python -m benchmarks.convergence --readme     put the table of what was measured into README.md

Each case is the shipped workflow's training with one thing changed, from three seeds, in a process of its own on one
thread. Every 40 steps it samples 64 prompts for the concept as a preview, which the scorer judges; at the end 256 other
prompts. A case that is done is kept in benchmarks/convergence.json, so the measurement may be stopped at any time.
"""

import argparse
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from .cases import ROOT, Cases, mini, spread
from .figures import between

CASES = Cases("convergence")
START, END = (
    "<!-- convergence: made by `python -m benchmarks.convergence --readme` -->",
    "<!-- /convergence -->",
)
BAR, EVERY, SAMPLES, OTHERS, SEEDS = 0.70, 40, 64, 256, (0, 1, 2)
AT_ONCE = 32  # pictures that are sampled together
BASE = "base"  # the untrained model, measured once
# Title, then what differs from the shipped workflow: optimizer, weight, preserve.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "adamw": ("AdamW, Min-SNR, preservation (the template)", {}),
    "plain": ("without Min-SNR", {"weight": "one"}),
    "x0": ("core's x0 loss", {"weight": "x0"}),
    "prodigy": ("Prodigy", {"optimizer": "prodigy"}),
    "free": ("without preservation", {"preserve": 0.0}),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help=f"one of {', '.join(VARIANTS)}")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--fresh", action="store_true", help="measure again what is known")
    parser.add_argument("--readme", action="store_true", help="write the table into README.md")
    parser.add_argument("--case", nargs=2, metavar=("VARIANT", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.case:
        variant, seed = options.case
        print(json.dumps(base() if variant == BASE else measure(variant, int(seed))))
        return 0
    if options.readme:
        path = ROOT / "README.md"
        text = between(
            path.read_text(encoding="utf-8"), START, END, "\n".join(table(CASES.known()))
        )
        path.write_text(text, encoding="utf-8")
        return 0
    if options.only and options.only not in VARIANTS:
        parser.error(f"there is no variant {options.only}; there are {', '.join(VARIANTS)}")
    CASES.found(BASE, 0)
    variants = [options.only] if options.only else list(VARIANTS)
    # Seed by seed, so that a table that is not complete has every variant.
    CASES.measure([(v, s) for s in SEEDS for v in variants], options.jobs, options.fresh)
    print("\n".join(table(CASES.known())))
    return 0


def base() -> dict[str, Any]:
    """The score of the untrained model on other prompts, as ``others``."""
    wires = mini()
    from graft.benchmarks.skeleton import concept

    others = concept.other_prompts(OTHERS)
    return {"others": concept.found(concept.pictures(wires, others), others)["all"]}


def measure(variant: str, seed: int) -> dict[str, Any]:
    """Train one case.

    Args:
        variant: A name in ``VARIANTS``.
        seed: Seed of the run.

    Returns:
        ``scores`` of the concept by step, and ``kept``, the share of the base's score on other prompts.
    """
    wires = mini()
    from graft.benchmarks.skeleton import concept
    from graft.host import engine
    from graft.host.files import paths
    from graft.host.preview import sampled

    # The same pictures up to rounding, several times as fast; this process does nothing else.
    sampled.sampled = functools.partial(sampled.sampled, at_once=AT_ONCE)
    prompts, others = concept.concept_prompts(SAMPLES), concept.other_prompts(OTHERS)
    made = engine.train(_request(wires, [text for text, _ in prompts], VARIANTS[variant][1], seed))
    folder = paths.run_folder(made.run) / "samples"
    steps = sorted({int(path.name.split("_")[1]) for path in folder.glob("step_*.png")})
    scores = {
        step: concept.found(_pictures(folder, step, SAMPLES), prompts)["all"] for step in steps
    }
    tuned = concept.found(concept.pictures((made.model, *wires[1:]), others), others)["all"]
    return {"scores": scores, "kept": tuned / CASES.known()[f"{BASE} 0"]["others"]}


def _request(
    wires: Sequence[Any], prompts: Sequence[str], changes: dict[str, Any], seed: int
) -> Any:
    """The shipped workflow's training with some things changed, and a preview of the prompts."""
    from graft.adapters.lora import LoRA
    from graft.benchmarks.skeleton import concept
    from graft.host.engine import Request
    from graft.nodes.config import lines
    from graft.nodes.dataset import LoadImages
    from graft.nodes.recipes import TrainLora
    from graft.trainers.objectives import WEIGHTS, Objective
    from graft.trainers.optimizers import OPTIMIZERS, SCHEDULES, Optimizer
    from graft.trainers.plan import Plan
    from graft.trainers.preview import Preview

    model, clip, vae = wires
    given = concept.shipped(TrainLora) | {"optimizer": "adamw"} | changes
    # Prodigy finds the learning rate itself; 1 is the factor on what it finds.
    rate = {} if given["optimizer"] == "prodigy" else {"lr": given["learning_rate"]}
    objective = Objective(
        weight=WEIGHTS.get(given["weight"])(),
        preserve=given["preserve"],
        preserve_prompts=lines(given["preserve_prompts"]),
    )
    algorithm: Any = OPTIMIZERS.get(given["optimizer"])
    preview = Preview(tuple(prompts), cfg=4.0, seed=concept.NOISE_SEED, every=EVERY)
    return Request(
        model=model,
        dataset=LoadImages.execute(**concept.shipped(LoadImages)).args[0],
        vae=vae,
        clip=clip,
        network=LoRA(given["rank"], given["alpha"], given["blocks"]),
        objective=objective,
        optimizer=Optimizer(algorithm(**rate), SCHEDULES.get(given["schedule"])()),
        plan=Plan(given["steps"], batch_size=given["batch_size"], seed=seed),
        preview=preview,
        name=f"convergence {seed}",
    )


def _pictures(folder: Path, step: int, count: int) -> Any:
    import numpy as np
    import torch
    from PIL import Image

    files = (folder / f"step_{step:06}_{index}.png" for index in range(count))
    pixels = [torch.from_numpy(np.array(Image.open(path).convert("RGB"))) for path in files]
    return torch.stack(pixels).float() / 255


def steps_until(scores: dict[str, float], bar: float = BAR) -> int | None:
    """The first step at which the score reaches the bar; None when it never does."""
    reached = [int(step) for step, score in scores.items() if score >= bar]
    return min(reached) if reached else None


def table(found: dict[str, dict[str, Any]]) -> list[str]:
    """Lines of a Markdown table: mean and spread (standard deviation) over the seeds."""
    rows = [
        f"| one thing changed | steps until {BAR:.0%} | concept at the end | other prompts kept | seeds |",
        "|---|---:|---:|---:|---:|",
    ]
    for variant, (title, _) in VARIANTS.items():
        cases = [case for key, case in found.items() if key.rpartition(" ")[0] == variant]
        if not cases:
            continue
        ends = [case["scores"][max(case["scores"], key=int)] for case in cases]
        until = [steps_until(case["scores"]) for case in cases]
        kept = [case["kept"] for case in cases]
        rows.append(
            f"| {title} | {_until(until)} | {spread(ends)} | {spread(kept)} | {len(cases)} |"
        )
    return rows


def _until(steps: Sequence[int | None]) -> str:
    reached = [step for step in steps if step is not None]
    if len(reached) < len(steps):
        return f"{len(steps) - len(reached)} of {len(steps)} never"
    spread = f" ± {stdev(reached):.0f}" if len(reached) > 1 else ""
    return f"{mean(reached):.0f}{spread}"


if __name__ == "__main__":
    sys.exit(main())
