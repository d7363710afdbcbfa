# SPDX-License-Identifier: Apache-2.0
"""Which network learns a new shape, and what does it cost the rest? Concept and drift after 300 and 600 steps.

    python -m benchmarks.networks              measure what is not known yet, and write the table
    python -m benchmarks.networks --jobs 1     ... in one process at a time
    python -m benchmarks.networks --page       write the tables of what was measured into docs/networks.md

Every network trains graft-mini on the twelve drawings of `dax` from three seeds: batch 12, Min-SNR, no preservation, a
constant learning rate. Each has the rate, of 1, 3, 10, ... times 1e-5, with the best product of concept and rest after
200 steps of a fourth seed; its neighbours were tried, too. `rank` compares at rank 8, `count` at the rank whose number
of parameters comes nearest to that of the LoRA of rank 8.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .cases import ROOT, Cases, at_once, mini, spread
from .figures import between

PAGE = ROOT / "docs" / "networks.md"
START, END = "<!-- made by `python -m benchmarks.networks --page` -->", "<!-- /made -->"
CASES = Cases("networks")
SEEDS, LENGTHS = (0, 1, 2), (300, 600)
RANK, RANKS, BATCH = 8, (*range(1, 97), *range(104, 321, 8)), 12
SAMPLES, OTHERS = 64, 128
RATE_SEED, RATE_STEPS = 100, 200
BY_RANK, BY_COUNT = "rank", "count"
BASE = ("base", 0)


@dataclass(frozen=True)
class Variant:
    """A network that is compared.

    Attributes:
        title: For the table.
        kind: Its name in the registry.
        rate: The learning rate that is tried first.
        sizes: What it is compared at.
        options: What differs from its defaults.
        at_count: What does at equal count besides, where the rank alone does not reach it.
    """

    title: str
    kind: str
    rate: float
    sizes: tuple[str, ...] = (BY_RANK, BY_COUNT)
    options: dict[str, Any] = field(default_factory=dict)
    at_count: dict[str, Any] = field(default_factory=dict)


_ONE = (BY_RANK,)
VARIANTS = {
    "lora": Variant("LoRA", "lora", 3e-3, _ONE),
    "rslora": Variant("rsLoRA", "lora", 1e-3, _ONE, {"rslora": True}),
    "pissa": Variant("LoRA from PiSSA", "lora", 1e-3, _ONE, {"init": "pissa"}),
    "tucker": Variant("LoCon with a core", "lora", 3e-3, options={"tucker": True}),
    "b-lora": Variant("B-LoRA", "lora", 3e-3, options={"blocks": "b-lora"}),
    "dora": Variant("DoRA", "dora", 3e-3),
    "loha": Variant("LoHa", "loha", 1e-2),
    "lokr": Variant("LoKr", "lokr", 1e-2, at_count={"factor": 2}),
    "oft": Variant("OFT", "oft", 3e-3),
    "boft": Variant("BOFT", "boft", 3e-3),
    "ia3": Variant("(IA)³", "ia3", 3e-2, _ONE),
    "bottleneck": Variant("bottleneck attn2o-ffni", "bottleneck", 3e-3),
    "full": Variant("full weights", "full", 3e-4, _ONE),
}
TI, PIVOTAL, LORA = "ti", "pivotal", "lora"
WORD_RATE = {TI: 1e-2, PIVOTAL: 3e-3}
WORDS = {TI: "textual inversion alone", PIVOTAL: "pivotal, half of the steps", LORA: "LoRA alone"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--only", default="", help=f"one of {', '.join((*VARIANTS, TI, PIVOTAL))}")
    parser.add_argument(
        "--page", action="store_true", help="write docs/networks.md and nothing else"
    )
    parser.add_argument("--case", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.case:
        what, *rest = options.case
        measures = {"base": base, "size": size, "rate": try_rate, "run": run, "word": word}
        print(json.dumps(measures[what](*rest)))
        return 0
    if not options.page:
        measure(options.jobs, [options.only] if options.only else [*VARIANTS, TI, PIVOTAL])
    text = between(PAGE.read_text(encoding="utf-8"), START, END, "\n".join(tables(CASES.known())))
    PAGE.write_text(text, encoding="utf-8")
    return 0


def measure(jobs: int, names: Sequence[str]) -> None:
    """Measure what is not known: rates first, then seed by seed, so that a table that is not complete has every row."""
    CASES.found(*BASE)
    networks = [name for name in names if name in VARIANTS]
    CASES.measure([("size", n, s) for n in networks for s in VARIANTS[n].sizes], jobs)
    at_once(jobs, [functools.partial(best_rate, name) for name in networks])
    cases: list[tuple[Any, ...]] = []
    for seed in SEEDS:
        cases += [("run", n, s, seed) for n in networks for s in _different(n)]
        cases += [("word", n, seed) for n in names if n in WORD_RATE]
    CASES.measure(cases, jobs)


def _different(name: str) -> tuple[str, ...]:
    """Its sizes, but one that is no other network."""
    by_rank = CASES.known().get(f"size {name} {BY_RANK}")
    variant = VARIANTS[name]
    return tuple(
        by
        for by in variant.sizes
        if by == BY_RANK or variant.at_count or CASES.known()[f"size {name} {by}"] != by_rank
    )


def best_rate(name: str) -> float:
    """The best of a variant's learning rates, climbed to from the one that is tried first."""
    return climb(VARIANTS[name].rate, lambda rate: _worth(CASES.found("rate", name, f"{rate:g}")))


def climb(rate: float, worth: Any) -> float:
    """The rate of 1, 3, 10, 30, ... that is worth more than both its neighbours."""
    tried = {rate: worth(rate)}
    while True:
        best = max(tried, key=lambda one: tried[one])
        missing = [one for one in neighbours(best) if one not in tried]
        if not missing:
            return best
        tried[missing[0]] = worth(missing[0])


def neighbours(rate: float) -> tuple[float, float]:
    """The rates before and after one of 1, 3, 10, 30, ..."""
    step = round(2 * math.log10(rate))
    below, above = (float(f"{10 ** ((step + way) / 2):.0e}") for way in (-1, 1))
    return below, above


def _worth(found: dict[str, Any]) -> float:
    return float(found["concept"] * found["kept"])


def network(name: str, rank: int, by: str = BY_RANK) -> Any:
    """The settings of a variant at a rank, or of its one size."""
    from graft.adapters import NETWORKS

    variant = VARIANTS[name]
    cls: Any = NETWORKS.get(variant.kind)
    given = {"rank": rank, "blocks": "all", **variant.options}
    given |= variant.at_count if by == BY_COUNT else {}
    return cls(**{key: value for key, value in given.items() if key in cls.__dataclass_fields__})


def parameters(model: Any, settings: Any) -> int:
    """How many numbers a network trains."""
    from graft.adapters.attach import Attached

    attached = Attached(model.model.diffusion_model, settings, 0)
    attached.remove()
    return sum(p.numel() for p in attached.parameters().values())


def size(name: str, by: str) -> dict[str, Any]:
    """The rank that a variant is compared at, and its number of ``parameters``."""
    import torch

    model = mini()[0]
    with torch.inference_mode(False):
        if by == BY_RANK:
            return {"rank": RANK, "parameters": parameters(model, network(name, RANK))}
        aim = parameters(model, network(LORA, RANK))
        counts = {}
        for rank in RANKS:
            with contextlib.suppress(ValueError):  # OFT has none of 1
                counts[rank] = parameters(model, network(name, rank, by))
    rank = min(counts, key=lambda one: abs(math.log(counts[one] / aim)))
    return {"rank": rank, "parameters": counts[rank]}


def base(_: str) -> dict[str, Any]:
    """The score of the untrained model on other prompts, as ``others``."""
    wires = mini()
    from graft.benchmarks.skeleton import concept

    others = concept.other_prompts(OTHERS)
    return {"others": concept.found(concept.pictures(wires, others), others)["all"]}


def try_rate(name: str, rate: str) -> dict[str, Any]:
    """Concept and rest of a variant at rank 8 after a short training with a learning rate."""
    wires = mini()
    asked = request(wires, network(name, RANK), float(rate), RATE_SEED, RATE_STEPS)
    return trained(asked, wires)[1]


def run(name: str, by: str, seed: str) -> dict[str, Any]:
    """Concept and rest after each of the lengths, in one training that stops between them."""
    rank, rate = CASES.found("size", name, by)["rank"], best_rate(name)
    wires = mini()
    asked = request(wires, network(name, rank, by), rate, int(seed), LENGTHS[0], LENGTHS[-1])
    made, first = trained(asked, wires)
    if made is None:
        return dict.fromkeys(map(str, LENGTHS), first)
    plan = dataclasses.replace(asked.plan, steps=LENGTHS[1] - LENGTHS[0])
    last = trained(dataclasses.replace(asked, state=made.state, plan=plan), wires)[1]
    return {str(LENGTHS[0]): first, str(LENGTHS[1]): last}


def word(name: str, seed: str) -> dict[str, Any]:
    """The same where the word is learned, alone or with the LoRA; each length a training of its own, for the pivot."""
    wires = mini()
    return {
        str(steps): trained(_of_word(wires, name, int(seed), steps), wires)[1] for steps in LENGTHS
    }


def _of_word(wires: Any, name: str, seed: int, steps: int) -> Any:
    from graft.adapters.lora import LoRA
    from graft.adapters.targets import NONE
    from graft.adapters.tokens import Concept, Tokens
    from graft.benchmarks.skeleton.concept import WORD

    settings = LoRA(blocks=NONE) if name == TI else network(LORA, RANK)
    rate = WORD_RATE[TI] if name == TI else best_rate(LORA)
    asked = request(wires, settings, rate, seed, steps)
    optimizer = dataclasses.replace(
        asked.optimizer,
        embedding_lr=WORD_RATE[name],
        embedding_stop=1.0 if name == TI else 0.5,
        embedding_weight_decay=0.0,
    )
    return dataclasses.replace(asked, optimizer=optimizer, tokens=Tokens((Concept(WORD),)))


def request(
    wires: Any, settings: Any, rate: float, seed: int, steps: int, total_steps: int = 0
) -> Any:
    """A training on the drawings of the concept."""
    from graft.benchmarks.skeleton import concept
    from graft.host.engine import Request
    from graft.nodes.dataset import LoadImages
    from graft.trainers.objectives import WEIGHTS, Objective
    from graft.trainers.optimizers import SCHEDULES, Optimizer
    from graft.trainers.optimizers.adamw import AdamW
    from graft.trainers.plan import Plan

    model, clip, vae = wires
    return Request(
        model=model,
        dataset=LoadImages.execute(**concept.shipped(LoadImages)).args[0],
        vae=vae,
        clip=clip,
        network=settings,
        objective=Objective(weight=WEIGHTS.get("min-snr")(), preserve=0.0),
        optimizer=Optimizer(AdamW(rate), SCHEDULES.get("constant")()),
        plan=Plan(steps, total_steps=total_steps, batch_size=BATCH, seed=seed),
        name=f"networks {seed}",
    )


def trained(asked: Any, wires: Any) -> tuple[Any, dict[str, float]]:
    """Train, and what came of it: ``concept``, and ``kept``, the share of the base's score on other prompts."""
    from graft.benchmarks.skeleton import concept
    from graft.host import engine
    from graft.trainers.loop import Diverged

    try:
        made = engine.train(asked)
    except Diverged:
        return None, {"concept": 0.0, "kept": 0.0}
    drawn = (made.model, made.clip, wires[2])
    prompts, others = concept.concept_prompts(SAMPLES), concept.other_prompts(OTHERS)
    rest = concept.found(concept.pictures(drawn, others), others)["all"]
    return made, {
        "concept": concept.found(concept.pictures(drawn, prompts), prompts)["all"],
        "kept": rest / CASES.found(*BASE)["others"],
    }


def tables(known: dict[str, dict[str, Any]]) -> list[str]:
    """Lines of two Markdown tables: the networks, and what learning the word alone or along gives."""
    heads = " | ".join(f"concept at {n} | others kept at {n}" for n in LENGTHS)
    lines = [
        f"| network | at equal | rank | parameters | learning rate | {heads} | seeds |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, variant in VARIANTS.items():
        for by in variant.sizes:
            of = known.get(f"size {name} {by}", {})
            is_same = not variant.at_count and of == known.get(f"size {name} {BY_RANK}")
            cases = _cases(known, f"run {name} {BY_RANK if is_same else by}")
            if cases:
                at = f"{of['rank']} | {of['parameters']:,} | {_rate(known, name):g}"
                lines.append(f"| {variant.title} | {by} | {at} | {_row(cases)} |")
    lines += ["", f"| what learns | {heads} | seeds |", "|---|---:|---:|---:|---:|---:|"]
    for name, title in WORDS.items():
        cases = _cases(known, f"word {name}" if name in WORD_RATE else f"run {name} {BY_RANK}")
        if cases:
            lines.append(f"| {title} | {_row(cases)} |")
    return lines


def _rate(known: dict[str, dict[str, Any]], name: str) -> float:
    return climb(VARIANTS[name].rate, lambda rate: _worth(known[f"rate {name} {rate:g}"]))


def _cases(known: dict[str, dict[str, Any]], start: str) -> list[dict[str, Any]]:
    return [known[f"{start} {seed}"] for seed in SEEDS if f"{start} {seed}" in known]


def _row(cases: Sequence[dict[str, Any]]) -> str:
    shares = [
        spread([case[str(length)][what] for case in cases])
        for length in LENGTHS
        for what in ("concept", "kept")
    ]
    return " | ".join([*shares, str(len(cases))])


if __name__ == "__main__":
    sys.exit(main())
