# SPDX-License-Identifier: Apache-2.0
"""A LoRA of a shape and one of a texture in one model: their sum, PEFT's TIES, or ZipLoRA?

    python -m benchmarks.zip_lora              measure what is not known yet, and write the table
    python -m benchmarks.zip_lora --jobs 1     ... in one process at a time
    python -m benchmarks.zip_lora --page       write the table of what was measured into docs/zip-lora.md

From each seed one LoRA is trained on the twelve drawings of `dax`, a shape, and one on those of `vex`, a texture, both
unknown to graft-mini, with the rate that benchmarks.networks found for a LoRA. Both go into one model in each of
the ways, and prompts in colour pairs that are in no training picture ask for one of them and for both. A share counts
pictures in which the scorer finds the shape, the texture, both, and both in the colours of the prompt.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

from . import networks
from .cases import ROOT, Cases, mini, spread
from .figures import between

PAGE = ROOT / "docs" / "zip-lora.md"
START, END = "<!-- made by `python -m benchmarks.zip_lora --page` -->", "<!-- /made -->"
CASES = Cases("zip_lora")
SEEDS, STEPS, RATE, RANK = (0, 1, 2), 300, 1e-3, 8
SAMPLES, ALONE, PROMPT_SEED = 64, 32, 3
DENSITY = 0.5
ZIP_STEPS = 100
# By name: learning rate, pictures of each subject a step and weight of the overlap.
ZIPS = {
    "zip": (5e-5, 1, 0.01),
    "zip 0.001": (1e-3, 4, 0.01),
    "zip 0.01": (1e-2, 4, 0.01),
    "zip 0.01 free": (1e-2, 4, 0.0),
}
WAYS = {
    "content": "the LoRA of the shape alone",
    "style": "the LoRA of the texture alone",
    "sum": "both at strength 1",
    "ties": f"TIES of the factors, density {DENSITY:g}",
    "ties-svd": f"TIES of the changes, density {DENSITY:g}",
    "zip": "ZipLoRA as it is by default: rate 5e-5",
    "zip 0.001": "ZipLoRA, rate 1e-3, 4 pictures of each a step",
    "zip 0.01": "ZipLoRA, rate 1e-2, 4 pictures of each a step",
    "zip 0.01 free": "the same, the overlap counting nothing",
}
WHEN = ("before", "after", "without both")
SHARES = ("shape", "texture", "both", "all")
COLUMNS = {
    "shape alone": "asked for the shape: shape",
    "texture alone": "asked for the texture: texture",
    "shape": "asked for both: shape",
    "texture": "texture",
    "both": "both",
    "all": "both, and the colours",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="only the first so many")
    parser.add_argument("--page", action="store_true", help="write the page and nothing else")
    parser.add_argument("--case", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.case:
        print(json.dumps(together(int(options.case[-1]))))
        return 0
    if not options.page:
        CASES.measure([("together", seed) for seed in SEEDS[: options.seeds]], options.jobs)
    text = between(PAGE.read_text(encoding="utf-8"), START, END, "\n".join(table(CASES.known())))
    PAGE.write_text(text, encoding="utf-8")
    return 0


def together(seed: int) -> dict[str, dict[str, float]]:
    """What the pictures show, by the way that two LoRAs of one seed are put together."""
    wires = mini()
    from graft.host import engine
    from graft.host.files import result
    from graft.tools.mini import make_concepts

    subjects = []
    for learned in (make_concepts.SHAPE, make_concepts.TEXTURE):
        network = networks.network(networks.LORA, RANK)
        asked = networks.request(wires, network, RATE, seed, STEPS)
        asked = dataclasses.replace(asked, dataset=drawings(learned), name=learned.name)
        made = engine.train(asked)
        subjects.append((made.adapter, asked.dataset))
    content, style = (adapter for adapter, _ in subjects)
    ways = {"content": [content], "style": [style], "sum": [content, style]}
    ways |= {mode: [_merged(content, style, mode)] for mode in ("ties", "ties-svd")}
    found = {}
    for way, adapters in ways.items():
        model = wires[0]
        for adapter in adapters:
            model = result.apply(model, adapter.tensors)[0]
        found[way] = shown((model, *wires[1:]))
    for way in ZIPS:
        made, measured = _zipped(wires, subjects, seed, way)
        found[way] = shown((made.model, *wires[1:])) | measured
    return found


def drawings(learned: Any) -> Any:
    """The shipped drawings of a concept, as a dataset."""
    from graft.benchmarks.skeleton import concept
    from graft.nodes.dataset import LoadImages

    folder = {"folder": f"graft-examples/{learned.name}"}
    return LoadImages.execute(**(concept.shipped(LoadImages) | folder)).args[0]


def shown(wires: Sequence[Any]) -> dict[str, float]:
    """Shares of pictures of each concept and of both."""
    from graft.benchmarks.skeleton import concept
    from graft.tools.mini import make_concepts

    texture = make_concepts.TEXTURE
    shape = _seen(wires, concept.concept_prompts(ALONE))
    pattern = _seen(wires, make_concepts.fresh_prompts(texture, ALONE, PROMPT_SEED))
    return shares(_seen(wires, concept.concept_prompts(SAMPLES, style=texture))) | {
        "shape alone": shares(shape)["shape"],
        "texture alone": shares(pattern)["texture"],
    }


def _seen(wires: Sequence[Any], prompts: Any) -> list[dict[str, bool]]:
    """What each picture has of what its prompt asks for."""
    from graft.benchmarks.skeleton import concept
    from graft.metrics.scorer import load_scorer

    verdicts = load_scorer().judge(concept.pictures(wires, prompts))
    kinds = ("shape", "texture", "colour", "background")
    return [
        {kind: verdicts[kind].matches(asked[kind])[index] for kind in kinds}
        for index, (_, asked) in enumerate(prompts)
    ]


def shares(pictures: Sequence[dict[str, bool]]) -> dict[str, float]:
    """Of what each picture shows: the shape, the texture, both, and both in the colours that were asked for."""
    rows = [
        (one["shape"], one["texture"], one["shape"] and one["texture"], all(one.values()))
        for one in pictures
    ]
    columns = zip(*rows, strict=True)
    return {kind: sum(column) / len(rows) for kind, column in zip(SHARES, columns, strict=True)}


def _merged(content: Any, style: Any, mode: str) -> Any:
    from graft.host.files.strengths import Strengths
    from graft.host.merging import loras
    from graft.loaders.merging import MODES

    given = [loras.Given(one, Strengths()) for one in (content, style)]
    return loras.merge(given, MODES.get(mode)(density=DENSITY)).adapter  # type: ignore[call-arg]


def _zipped(
    wires: Sequence[Any], subjects: Sequence[Any], seed: int, way: str
) -> tuple[Any, dict[str, float]]:
    """What ZipLoRA makes of both, and how it says how far each was and is, and how much they overlap."""
    from graft.host.merging import zip_loras
    from graft.trainers.zip_lora import ZipPlan

    rate, batch, weight = ZIPS[way]
    plan = ZipPlan(ZIP_STEPS, rate, weight, batch_size=batch, seed=seed)
    content, style = (zip_loras.Subject(*one) for one in subjects)
    made = zip_loras.zip_loras(*wires, content, style, plan)
    measured = {}
    for line in made.report.splitlines():
        name, _, said = line.partition(": ")
        numbers = [float(part.split()[0]) for part in said.split(", ") if " as a plain sum" in said]
        measured |= {f"{name}, {when}": n for when, n in zip(WHEN, numbers, strict=False)}
    return made, measured


def table(known: dict[str, dict[str, Any]]) -> list[str]:
    """Lines of a Markdown table: a row a way."""
    cases = [known[f"together {seed}"] for seed in SEEDS if f"together {seed}" in known]
    lines = [
        f"| | {' | '.join(COLUMNS.values())} | seeds |",
        f"|---|{'---:|' * len(COLUMNS)}---:|",
    ]
    for way, title in WAYS.items():
        rows = [case[way] for case in cases if way in case]
        if rows:
            cells = [spread([row[kind] for row in rows]) for kind in COLUMNS]
            lines.append(f"| {title} | {' | '.join(cells)} | {len(rows)} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
