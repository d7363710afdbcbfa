# SPDX-License-Identifier: Apache-2.0
"""Xiang et al. 2023 (arXiv 2303.18181) on graft-mini: where does a bottleneck adapter do most?

    python -m benchmarks.bottleneck              measure what is not known yet, and write the page
    python -m benchmarks.bottleneck --jobs 1     ... in one process at a time
    python -m benchmarks.bottleneck --page       write docs/bottleneck.md and its picture from what was measured

Each case trains 300 steps on the twelve drawings of `dax`, batch 12, Min-SNR, a constant rate, no preservation. The
rate is the best of 1, 3, 10, ... for attn2o-ffni at 200 steps of a fourth seed, by the product of concept and rest, and
is the same for all positions, as in the paper. The score is the share of 64 prompts in new colours that show shape,
colour and background; `kept` is what is left of the base's score on 128 prompts of its own shapes.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from statistics import fmean
from typing import Any

from . import networks
from .cases import ROOT, Cases, mini, spread
from .figures import between

PAGE, PICTURE = ROOT / "docs" / "bottleneck.md", ROOT / "docs" / "bottleneck.png"
START, END = "<!-- made by `python -m benchmarks.bottleneck --page` -->", "<!-- /made -->"
CASES = Cases("bottleneck")
SEEDS, STEPS, RANK = (0, 1, 2), 300, 16
FIRST_RATE = 3e-3
CROSS_STEPS = (100, 200, 300)
CKA_LEVELS, CKA_PICTURES = 5, 32


@dataclass(frozen=True)
class Cell:
    """An adapter that is trained."""

    positions: str = "attn2o-ffni"
    rank: int = RANK
    activation: str = "relu"
    scale: float = 1.0
    init: str = "zero-up"


# By heading: what is compared, beside the grid of all positions.
STUDIES: dict[str, tuple[Cell, ...]] = {
    "Inner dimension": tuple(Cell(rank=rank) for rank in (2, 4, 8, 16, 32, 64)),
    "Two positions at the parameters of one": (
        Cell(),
        Cell("ffni-transo"),
        Cell("attn2o-ffni;ffni-transo", RANK // 2),
        Cell("attn2i-ffni"),
        Cell("attn2o-ffni;attn2i-ffni", RANK // 2),
        Cell("attn2o-ffni;attn1o-attn2i", RANK // 2),
    ),
    "Activation": tuple(Cell(activation=a) for a in ("relu", "silu", "sigmoid", "identity")),
    "Scale": tuple(Cell(scale=scale) for scale in (0.25, 1.0, 4.0)),
    "Initialisation": (Cell(), Cell(init="pytorch")),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--page", action="store_true", help="write the page and nothing else")
    parser.add_argument("--case", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.case:
        what, *rest = options.case
        measures = {"rate": try_rate, "cell": cell, "cross": cross, "cka": cka}
        print(json.dumps(measures[what](*rest)))
        return 0
    if not options.page:
        measure(options.jobs)
    text = between(PAGE.read_text(encoding="utf-8"), START, END, "\n".join(page(CASES.known())))
    PAGE.write_text(text, encoding="utf-8")
    return 0


def measure(jobs: int) -> None:
    """Measure what is not known: the rate, then the grid and the studies seed by seed, then what needs one training."""
    networks.CASES.found(*networks.BASE)
    best_rate()
    grid = [Cell(positions) for positions in _grid()]
    wanted = dict.fromkeys([*grid, *(one for study in STUDIES.values() for one in study)])
    cases: list[tuple[Any, ...]] = [
        ("cell", *astuple(one), seed) for seed in SEEDS for one in wanted
    ]
    CASES.measure([*cases[: len(wanted)], ("cross", 0), ("cka", 0), *cases[len(wanted) :]], jobs)


def best_rate() -> float:
    """The learning rate of all cases."""

    def worth(rate: float) -> float:
        found = CASES.found("rate", f"{rate:g}")
        return float(found["concept"] * found["kept"])

    return networks.climb(FIRST_RATE, worth)


def _grid() -> list[str]:
    mini()
    from graft.adapters.positions import PAIRS

    return ["-".join(pair) for pair in PAIRS]


def _network(one: Cell) -> Any:
    from graft.adapters.bottleneck import Bottleneck

    return Bottleneck(blocks="all", **dataclasses.asdict(one))


def try_rate(rate: str) -> dict[str, Any]:
    """Concept and rest after a short training with a learning rate."""
    wires = mini()
    given = (float(rate), networks.RATE_SEED, networks.RATE_STEPS)
    return networks.trained(networks.request(wires, _network(Cell()), *given), wires)[1]


def cell(
    positions: str, rank: str, activation: str, scale: str, init: str, seed: str
) -> dict[str, Any]:
    """Concept, rest and number of parameters of one adapter."""
    rate, wires = best_rate(), mini()
    import torch

    settings = _network(Cell(positions, int(rank), activation, float(scale), init))
    found = networks.trained(networks.request(wires, settings, rate, int(seed), STEPS), wires)[1]
    with torch.inference_mode(False):
        return found | {"parameters": networks.parameters(wires[0], settings)}


def cross(seed: str) -> dict[str, Any]:
    """The concept by adapters of some steps (down) with token vectors of some steps (across); 0 is untrained."""
    rate, wires = best_rate(), mini()
    from graft.adapters.tokens import Concept, Tokens
    from graft.benchmarks.skeleton import concept
    from graft.host import engine
    from graft.host.files import result
    from graft.host.text.words import with_words

    asked = networks.request(
        wires, _network(Cell()), rate, int(seed), CROSS_STEPS[0], CROSS_STEPS[-1]
    )
    optimizer = dataclasses.replace(asked.optimizer, embedding_lr=networks.WORD_RATE["pivotal"])
    asked = dataclasses.replace(
        asked, optimizer=optimizer, tokens=Tokens((Concept(concept.WORD, init="shape"),))
    )
    models, clips, done = [wires[0]], [wires[1]], 0
    for step in CROSS_STEPS:
        asked = dataclasses.replace(asked, plan=dataclasses.replace(asked.plan, steps=step - done))
        made = engine.train(asked)
        asked, done = dataclasses.replace(asked, state=made.state), step
        models.append(result.apply(wires[0], made.adapter.tensors)[0])
        clips.append(with_words(wires[1], made.adapter.tensors))
    prompts = concept.concept_prompts(networks.SAMPLES)
    shares = [
        [concept.found(concept.pictures((m, c, wires[2]), prompts), prompts)["all"] for c in clips]
        for m in models
    ]
    return {"steps": [0, *CROSS_STEPS], "table": shares}


def cka(seed: str) -> dict[str, Any]:
    """Linear CKA of what the blocks put out before and after training, mean over noise levels, by block."""
    rate, wires = best_rate(), mini()
    import torch

    from graft.benchmarks.skeleton import concept
    from graft.host.model.block_outputs import alike
    from graft.tools.mini.evaluate import conditioning

    asked = networks.request(wires, _network(Cell()), rate, int(seed), STEPS)
    tuned = networks.trained(asked, wires)[0].model
    prompts = concept.concept_prompts(CKA_PICTURES)
    with torch.inference_mode():
        latent = wires[2].encode(concept.pictures((tuned, *wires[1:]), prompts))
        (positive,) = (conditioning(wires[1], f"a {concept.WORD}"),)
        found = alike(wires[0], tuned, positive, latent, CKA_LEVELS, 0)
    return {block: fmean(row) for block, row in zip(found.blocks, found.values, strict=True)}


def page(known: dict[str, dict[str, Any]]) -> list[str]:
    """The lines of the page; draws the heat-map of the grid."""
    lines = [f"Learning rate {_rate(known):g}.", "", *_grid_lines(known)]
    for title, cells in STUDIES.items():
        rows = [_row(known, one) for one in cells if _found(known, one)]
        if rows:
            heads = "| adapter | inner | activation | scale | init | parameters | concept | others kept | seeds |"
            lines += [
                "",
                f"### {title}",
                "",
                heads,
                "|---|---:|---|---:|---|---:|---:|---:|---:|",
                *rows,
            ]
    if "cross 0" in known:
        lines += ["", *_cross_lines(known["cross 0"])]
    if "cka 0" in known:
        lines += ["", *_cka_lines(known["cka 0"])]
    return lines


def _rate(known: dict[str, dict[str, Any]]) -> float:
    def worth(rate: float) -> float:
        found = known[f"rate {rate:g}"]
        return float(found["concept"] * found["kept"])

    return networks.climb(FIRST_RATE, worth)


def _found(known: dict[str, dict[str, Any]], one: Cell) -> list[dict[str, Any]]:
    keys = (" ".join(map(str, ("cell", *astuple(one), seed))) for seed in SEEDS)
    return [known[key] for key in keys if key in known]


def _grid_lines(known: dict[str, dict[str, Any]]) -> list[str]:
    positions = _grid()
    import numpy as np
    from PIL import Image

    from graft.host.studies.positions import report

    cases = {name: _found(known, Cell(name)) for name in positions}
    scores = {
        (name.partition("-")[0], name.partition("-")[2]): [one["concept"] for one in found]
        for name, found in cases.items()
        if found
    }
    if not scores:
        return []
    image, text = report(scores, "concept")
    pixels = (image[0].numpy() * 255).round().astype(np.uint8)
    Image.fromarray(pixels).save(PICTURE, optimize=True)
    lines = [
        "### The grid of positions",
        "",
        f"![Scores by input and output]({PICTURE.name})",
        "",
        "```text",
    ]
    lines += [*text.splitlines(), "```", ""]
    lines += [
        "| position | parameters | concept | others kept | seeds |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, found in cases.items():
        if found:
            shares = " | ".join(spread([one[key] for one in found]) for key in ("concept", "kept"))
            lines.append(f"| {name} | {found[0]['parameters']:,} | {shares} | {len(found)} |")
    return lines


def _row(known: dict[str, dict[str, Any]], one: Cell) -> str:
    found = _found(known, one)
    shares = [spread([case[key] for case in found]) for key in ("concept", "kept")]
    name = one.positions.replace(";", " and ")
    of = [name, str(one.rank), one.activation, f"{one.scale:g}", one.init]
    of += [f"{found[0]['parameters']:,}", *shares, str(len(found))]
    return f"| {' | '.join(of)} |"


def _cross_lines(found: dict[str, Any]) -> list[str]:
    heads = " | ".join(f"words of step {step}" for step in found["steps"])
    lines = ["### Adapters and token vectors of different steps", "", f"| | {heads} |"]
    lines.append("|---|" + "---:|" * len(found["steps"]))
    for step, shares in zip(found["steps"], found["table"], strict=True):
        lines.append(
            f"| adapter of step {step} | {' | '.join(f'{share:.0%}' for share in shares)} |"
        )
    return lines


def _cka_lines(found: dict[str, float]) -> list[str]:
    lines = ["### Linear CKA before and after training, attn2o-ffni", ""]
    lines += ["| block | CKA |", "|---|---:|"]
    return lines + [f"| {block} | {value:.4f} |" for block, value in found.items()]


if __name__ == "__main__":
    sys.exit(main())
