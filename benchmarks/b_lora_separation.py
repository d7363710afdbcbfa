# SPDX-License-Identifier: Apache-2.0
"""Shape of one picture in the texture of another, by B-LoRA and plain LoRAs: `python -m benchmarks.b_lora_separation`.

For each pair of pictures, A with a shape and B with a texture that graft-mini has never seen, each is trained on alone,
and what was learned is put together: B-LoRA's content of A and style of B, or the whole plain LoRAs of both. The scorer
says how many of the pictures of "a dax in vex style" have A's shape, B's texture, or both; `--write` puts the table
into docs/b-lora.md. What is measured is kept in .figures, and a run that was stopped goes on.
"""

import argparse
import hashlib
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .subjects import ROOT, start

KEPT = ROOT / ".figures" / "b_lora_separation.json"
PAGE = ROOT / "docs" / "b-lora.md"
START, END = (
    "<!-- made by `python -m benchmarks.b_lora_separation --write` -->",
    "<!-- /made -->",
)
CONTENT, STYLE, BOTH = "a dax", "a vex", "a dax in vex style"
SHAPE, TEXTURE = "arrow", "zigzag"  # what the scorer calls them
PAIRS = (("shape-01", "texture-03"), ("shape-04", "texture-05"))
STEPS, PICTURES, RANK = 200, 32, 64
# Tried for B-LoRA on one picture: 3e-3 to 2e-2, 200 to 1000 steps, rank 16 and 64. A's shape came in 0.16 of the
# pictures at most (1000 steps at 3e-3); at 3e-2 the model breaks.
RATE = 3e-3
B_LORA, EQUAL_RANK, EQUAL_SIZE = "B-LoRA", "plain, equal rank", "plain, equal size"
METHODS = (B_LORA, EQUAL_RANK, EQUAL_SIZE)
COLUMNS = ("A: shape", "B: texture", "mixed: shape", "mixed: texture", "mixed: both")


def shares(shapes: Sequence[bool], textures: Sequence[bool]) -> dict[str, float]:
    """How many pictures show the shape, the texture, and both."""
    count = len(shapes)
    both = [a and b for a, b in zip(shapes, textures, strict=True)]
    return {
        "shape": sum(shapes) / count,
        "texture": sum(textures) / count,
        "both": sum(both) / count,
    }


def equal_rank(sizes: Mapping[str, tuple[int, int]], wanted: int) -> int:
    """The rank with which LoRAs on layers of these ``(in, out)`` come nearest to so many parameters."""
    each = sum(inside + outside for inside, outside in sizes.values())
    return max(1, round(wanted / each))


def rank_of(method: str, model: Any) -> int:
    """The rank of a method on a model."""
    from graft.adapters.targets import targets

    if method != EQUAL_SIZE:
        return RANK
    root = model.model.diffusion_model

    def sizes(blocks: str) -> dict[str, tuple[int, int]]:
        modules = {name: root.get_submodule(name) for name in targets(root, blocks)}
        return {name: (m.in_features, m.out_features) for name, m in modules.items()}

    wanted = RANK * sum(a + b for a, b in sizes("b-lora").values())
    return equal_rank(sizes("attention"), wanted)


def train(wires: Sequence[Any], picture: str, prompt: str, method: str) -> Any:
    """The adapter of one picture of assets/concepts."""
    from graft.adapters.lora import LoRA
    from graft.host.engine import Request
    from graft.host.engine import train as run
    from graft.trainers.data import Dataset, Item
    from graft.trainers.objectives import Objective
    from graft.trainers.optimizers import Optimizer
    from graft.trainers.optimizers.adamw import AdamW
    from graft.trainers.plan import Plan

    model, clip, vae = wires
    path = ROOT / "assets" / "concepts" / picture.partition("-")[0] / f"{picture}.png"
    blocks = "b-lora" if method == B_LORA else "attention"
    request = Request(
        model,
        Dataset((Item(prompt, path=str(path)),), resolution=64),
        vae,
        clip,
        network=LoRA(rank_of(method, model), blocks=blocks),
        objective=Objective(preserve=0.0),
        optimizer=Optimizer(AdamW(RATE)),
        plan=Plan(STEPS),
    )
    with torch.inference_mode():
        return run(request).adapter


def parts(method: str, adapter: Any, block: str) -> Any:
    """What of an adapter is used beside another: one block, or all of it."""
    from graft.loaders.selection import select

    return select(adapter, f"b-lora {block}" if method == B_LORA else "")


def applied(model: Any, *adapters: Any) -> Any:
    """The MODEL with adapters on it, each at strength 1."""
    from graft.host.files import result

    for adapter in adapters:
        model, _ = result.apply(model, adapter.tensors)
    return model


def judged(wires: Sequence[Any], model: Any, prompt: str) -> dict[str, float]:
    """What the scorer finds in pictures of one prompt, always of the same seeds."""
    from graft.metrics.scorer import load_scorer
    from graft.tools.mini import evaluate

    with torch.inference_mode():
        images = evaluate.sample(model, *wires[1:], [prompt] * PICTURES, seed=90_000)
    verdicts = load_scorer().judge(images)
    return shares(verdicts["shape"].matches(SHAPE), verdicts["texture"].matches(TEXTURE))


def measure(wires: Sequence[Any], pair: tuple[str, str], method: str) -> dict[str, float]:
    """Train on both pictures of a pair, and judge each alone and both together."""
    model = wires[0]
    a, b = train(wires, pair[0], CONTENT, method), train(wires, pair[1], STYLE, method)
    content, style = parts(method, a, "content"), parts(method, b, "style")
    alone = [judged(wires, applied(model, one), p) for one, p in ((a, CONTENT), (b, STYLE))]
    mixed = judged(wires, applied(model, content, style), BOTH)
    kinds = (alone[0]["shape"], alone[1]["texture"], *mixed.values())
    return dict(zip(COLUMNS, kinds, strict=True))


def collect(fresh: bool = False, pairs: int = len(PAIRS)) -> dict[str, list[dict[str, float]]]:
    """All figures by method, for each of the first so many pairs; what is known is not measured again."""
    from graft.benchmarks.data.rows import folder
    from graft.host.model.mini import load_mini

    known: dict[str, dict[str, float]] = {}
    if KEPT.is_file() and not fresh:
        known = json.loads(KEPT.read_text(encoding="utf-8"))
    with torch.inference_mode():
        wires = load_mini()
    found: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
    with folder():
        for pair in PAIRS[:pairs]:
            for method in METHODS:
                key = _key(pair, method)
                if key not in known:
                    known[key] = measure(wires, pair, method)
                    KEPT.parent.mkdir(exist_ok=True)
                    KEPT.write_text(json.dumps(known, indent=1), encoding="utf-8")
                    print(method, *pair, known[key], flush=True)
                found[method].append(known[key])
    return found


def _key(pair: tuple[str, str], method: str) -> str:
    """What a measurement depends on."""
    settings = (STEPS, PICTURES, RANK, RATE, BOTH)
    text = repr((pair, method, settings, torch.__version__))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def table(found: Mapping[str, Sequence[Mapping[str, float]]], ranks: Mapping[str, int]) -> str:
    """Means over the pairs in Markdown, with the least and the most."""
    lines = [
        f"| | rank | {' | '.join(COLUMNS)} |",
        "|---|---:|" + "---:|" * len(COLUMNS),
    ]
    for method, rows in found.items():
        cells = [spread([row[column] for row in rows]) for column in COLUMNS]
        lines.append(f"| {method} | {ranks[method]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """``0.25 (0.10-0.40)``: the mean, the least and the most."""
    return f"{statistics.mean(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def write(text: str) -> None:
    """Put the table between its marks in docs/b-lora.md."""
    head, rest = PAGE.read_text(encoding="utf-8").split(START)
    made = f"{head}{START}\n{text}\n{END}{rest.split(END)[1]}"
    PAGE.write_text(made, encoding="utf-8", newline="\n")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fresh", action="store_true", help="measure again what is known")
    parser.add_argument("--pairs", type=int, default=len(PAIRS), help="only the first so many")
    parser.add_argument("--write", action="store_true", help="put the table into docs/b-lora.md")
    options = parser.parse_args(arguments)
    start()
    from graft.benchmarks import b_lora_separation as own  # the pack's modules are there from here
    from graft.host.model.mini import load_mini

    found = own.collect(options.fresh, options.pairs)
    with torch.inference_mode():
        model = load_mini()[0]
    text = own.table(found, {method: own.rank_of(method, model) for method in METHODS})
    print(text)
    if options.write:
        own.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
