# SPDX-License-Identifier: Apache-2.0
"""Where does a bottleneck adapter do most? One training a position, and what the scores say (Xiang et al. 2023, sec. 5;
arXiv 2303.18181).

Each score is written down as it comes, so that a study that is cancelled goes on where it was.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from ...adapters import positions
from ...adapters.bottleneck import Bottleneck
from ...adapters.positions import Pair
from ...metrics.anova import one_way
from ...metrics.scorer import load_scorer
from .. import engine, graph
from ..data.picture_index import Digests
from ..drawing.heat_map import Table, heat_map
from ..files import paths
from ..files.row_file import RowFile
from ..request import Request
from ..runs import identity

LOSS, SCORER = "validation loss", "scorer of graft-mini"
ALL = "all"
# Inputs after cross-attention; its text is counted among them, as the paper does.
AFTER = ("attn2o", "ffni", "ffno", "transo", positions.CONTEXT)
Scores = Mapping[Pair, Sequence[float]]


@dataclass(frozen=True)
class Measured:
    """How a training is judged.

    Attributes:
        by: ``validation loss``, where less is better, or ``scorer of graft-mini``.
        shows: What the scorer looks for on the preview's pictures: shape=arrow.
    """

    by: str
    shows: str = ""

    def check(self, request: Request) -> None:
        """Whether a run can be judged so.

        Raises:
            ValueError: Something is missing; says what to connect.
        """
        if self.by == LOSS and request.validation is None:
            raise ValueError(
                "The study is judged by the validation loss, and nothing is connected to validation: connect pictures "
                "that are not trained on, from Split Dataset."
            )
        if self.by == SCORER:
            if request.preview is None:
                raise ValueError(
                    "The study is judged by the scorer, which looks at the preview's pictures: connect a Training "
                    "Preview."
                )
            _label(self.shows)

    def __call__(self, made: engine.Outcome) -> float:
        """The score of a training: a loss, or the scorer's mean probability."""
        if self.by == LOSS:
            return float(made.loss_map["validation"][-1])
        kind, label = _label(self.shows)
        scorer = load_scorer()
        with torch.no_grad():
            logits = scorer(made.images.movedim(-1, 1).float())[kind]
        return float(logits.softmax(-1)[:, scorer.labels[kind].index(label)].mean())


def _label(shows: str) -> tuple[str, str]:
    kind, _, label = (part.strip() for part in shows.partition("="))
    labels = load_scorer().labels
    if kind not in labels or label not in labels[kind]:
        known = "; ".join(f"{name}={' or '.join(values)}" for name, values in labels.items())
        raise ValueError(f"shows is '{shows[:100]}', and the scorer knows: {known}.")
    return kind, label


def pairs(text: str) -> tuple[Pair, ...]:
    """The positions that a study is of: ``all``, or pairs of input and output.

    Raises:
        ValueError: One is unknown or cannot be.
    """
    return positions.PAIRS if text.strip() == ALL else positions.read(text)


def study(
    request: Request,
    wanted: Sequence[Pair],
    rank: int,
    seeds: int,
    measured: Measured,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[Pair, list[float]]:
    """Train an adapter at each position, from several seeds, and score each training.

    Args:
        request: The training; its network is not used.
        wanted: The positions.
        rank: Inner dimension.
        seeds: How many seeds, from the plan's on.
        measured: How each is judged.
        tell: Hears what is trained next.

    Returns:
        A score for each seed by position.

    Raises:
        ValueError: The MODEL has no such positions, or a run cannot be judged so.
    """
    measured.check(request)
    networks = {pair: Bottleneck(rank=rank, positions="-".join(pair)) for pair in wanted}
    for network in networks.values():
        network.targets(request.model.model.diffusion_model)
    path = _rows(request, measured)
    known, file = _read(path), RowFile(path)
    found: dict[Pair, list[float]] = {pair: [] for pair in wanted}
    runs = [(seed, pair) for seed in range(seeds) for pair in wanted]
    for number, (offset, pair) in enumerate(runs):
        seed = request.plan.seed + offset
        key = f"{'-'.join(pair)} {rank} {seed}"
        if key not in known:
            tell(f"{'-'.join(pair)}, seed {seed}: {number + 1} of {len(runs)}")
            known[key] = measured(engine.train(_one(request, networks[pair], seed)))
            file.add(json.dumps({"of": key, "score": known[key]}))
        found[pair].append(known[key])
    file.close()
    return found


def _one(request: Request, network: Bottleneck, seed: int) -> Request:
    plan = dataclasses.replace(request.plan, seed=seed)
    name = f"{request.name} {network.positions}"
    return dataclasses.replace(request, network=network, plan=plan, name=name)


def _rows(request: Request, measured: Measured) -> Path:
    """The file of a study's scores: one for equal models, pictures and settings."""
    digests = Digests(paths.cache_folder() / "files")
    contents = (digests.picture, digests.mask)
    held_out = request.validation and request.validation.digest(*contents)
    plan = dataclasses.replace(request.plan, seed=0)
    settings = (request.objective, request.optimizer, plan, request.preview, measured, held_out)
    model, data = identity.model_digest(request.model), request.dataset.digest(*contents)
    return (
        paths.run_folder(identity.run_id(model, data, "position study", *settings)) / "scores.jsonl"
    )


def _read(path: Path) -> dict[str, float]:
    if not path.exists():
        return {}
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line)
    return {row["of"]: float(row["score"]) for row in rows}


def report(scores: Scores, name: str, less_is_better: bool = False) -> tuple[torch.Tensor, str]:
    """What a study says.

    Args:
        scores: By position, one or more each.
        name: What the scores are.
        less_is_better: Whether the lowest is the best.

    Returns:
        A heat-map, outputs down and inputs across, as IMAGE, and text: the best positions, and analyses of variance of
        the positions' means by input and by output.
    """
    means = {pair: fmean(values) for pair, values in scores.items()}
    inputs = [din for din in positions.LEGAL if any(pair[0] == din for pair in means)]
    outputs = list(
        dict.fromkeys(dout for _, dout in positions.PAIRS if any(p[1] == dout for p in means))
    )
    values = [[means.get((din, dout), math.nan) for din in inputs] for dout in outputs]
    low, high = min(means.values()), max(means.values())
    table = Table(name, outputs, inputs, values, low, high, "output / input")
    ranked = sorted(means, key=lambda pair: means[pair] if less_is_better else -means[pair])
    said = [f"{name}, mean of {min(map(len, scores.values()))} seeds", "best:"]
    said += [f"  {'-'.join(pair)}: {means[pair]:.4f}" for pair in ranked[:5]]
    said += [_analysis("by input", means, lambda pair: pair[0])]
    said += [_analysis("by output", means, lambda pair: pair[1])]
    said += [_analysis("input after cross-attention", _inside(means), _side)]
    return heat_map(table), "\n".join(said)


def _inside(means: Mapping[Pair, float]) -> dict[Pair, float]:
    """The positions in transformer blocks."""
    return {
        pair: value
        for pair, value in means.items()
        if positions.kind_of(pair) == positions.TRANSFORMER
    }


def _side(pair: Pair) -> str:
    return "after" if pair[0] in AFTER else "before"


def _analysis(name: str, means: Mapping[Pair, float], group: Callable[[Pair], str]) -> str:
    groups: dict[str, list[float]] = {}
    for pair, value in means.items():
        groups.setdefault(group(pair), []).append(value)
    try:
        found = one_way(groups)
    except ValueError as error:
        return f"{name}: {error}"
    listed = ", ".join(f"{key} {value:.4f}" for key, value in found.means.items())
    return f"{name}: {found.text} ({listed})"


def run(request: Request, text: str, rank: int, seeds: int, measured: Measured) -> tuple[Any, str]:
    """A whole study for a node: IMAGE and text."""

    def tell(said: str) -> None:
        graph.show_text(request.node_id, said)

    scores = study(request, pairs(text), rank, seeds, measured, tell)
    return report(scores, measured.by, measured.by == LOSS)
