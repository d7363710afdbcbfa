# SPDX-License-Identifier: Apache-2.0
"""A small classifier that judges drawings: shape, colour, background and texture.

It is trained by tools/pretrain_mini.py on the drawings graft-mini knows and on the concepts it does not know.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

ASSET = Path(__file__).resolve().parents[1] / "assets" / "graft-mini-scorer.safetensors"
AREA = 64 * 64
CERTAIN = 0.5


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The likeliest label of each picture for one attribute, with its probability ``[B]``."""

    labels: tuple[str, ...]
    probabilities: torch.Tensor

    def matches(self, wanted: str) -> list[bool]:
        """Which pictures show `wanted`, with a probability of at least one half."""
        found = zip(self.labels, self.probabilities.tolist(), strict=True)
        return [label == wanted and probability >= CERTAIN for label, probability in found]


def _layer(inside: int, outside: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inside, outside, 3, stride=stride, padding=1)
    return nn.Sequential(convolution, nn.GroupNorm(8, outside), nn.SiLU())


class Scorer(nn.Module):
    """Convolutions, pooled by mean and maximum, and one linear head per attribute."""

    def __init__(self, labels: dict[str, list[str]]) -> None:
        super().__init__()
        self.labels = labels
        self.body = nn.Sequential(
            _layer(3, 24, 2), _layer(24, 48, 2), _layer(48, 48, 1), _layer(48, 96, 2), _layer(96, 96, 1),
            _layer(96, 96, 1),
        )  # fmt: skip
        self.heads = nn.ModuleDict(
            {kind: nn.Linear(192, len(names)) for kind, names in labels.items()}
        )

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits per attribute ``[B, labels]`` of pictures ``[B, 3, H, W]`` in 0..1."""
        features = self.body(pictures * 2 - 1)
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1)
        return {kind: head(pooled) for kind, head in self.heads.items()}

    @torch.no_grad()
    def judge(self, images: torch.Tensor) -> dict[str, Verdict]:
        """Judge pictures of any size.

        Args:
            images: IMAGE ``[B, H, W, 3]`` in 0..1.

        Returns:
            A verdict per attribute: `shape`, `colour`, `background`, `texture`.
        """
        weight = next(self.parameters())
        pictures = images[..., :3].movedim(-1, 1).to(weight.device, weight.dtype)
        height, width = pictures.shape[-2:]
        factor = (AREA / (height * width)) ** 0.5
        if abs(factor - 1) > 0.05:
            size = (max(16, round(height * factor)), max(16, round(width * factor)))
            pictures = F.interpolate(pictures, size, mode="bilinear", antialias=True)
        parts = [self(part) for part in pictures.split(64)]
        verdicts = {}
        for kind, names in self.labels.items():
            chances = torch.cat([part[kind] for part in parts]).float().softmax(-1).cpu()
            best, index = chances.max(-1)
            verdicts[kind] = Verdict(tuple(names[place] for place in index.tolist()), best)
        return verdicts


def load_scorer(path: Path | None = None) -> Scorer:
    """Load the scorer.

    Args:
        path: Another file than the shipped one.

    Returns:
        The scorer, in evaluation mode on the CPU.
    """
    from safetensors import safe_open

    path = path or ASSET
    if not path.is_file():
        raise FileNotFoundError(
            f"the scorer is missing: {path.name} is not in {path.parent.name}/; reinstall the pack"
        )
    with safe_open(str(path), framework="pt") as file:
        labels = json.loads((file.metadata() or {})["labels"])
        state = {name: file.get_tensor(name).float() for name in file.keys()}
    scorer = Scorer(labels)
    scorer.load_state_dict(state)
    return scorer.eval().requires_grad_(False)


def save_scorer(scorer: Scorer, path: Path) -> None:
    """Write a scorer with its labels, in half precision."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        name: value.detach().cpu().half().contiguous()
        for name, value in scorer.state_dict().items()
    }
    save_file(
        state, str(path), metadata={"labels": json.dumps(scorer.labels), "license": "Apache-2.0"}
    )
