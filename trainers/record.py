# SPDX-License-Identifier: Apache-2.0
"""The noise level and the loss of every picture trained on, step by step."""

from collections.abc import Sequence

import torch

Row = tuple[tuple[float, ...], tuple[float, ...]]


class Record:
    """Levels and losses are fetched from the device once a step.

    Args:
        rows: What ``rows`` was when a run ended that goes on now.
        steps: Steps of that run; those that it has no row for have an empty one.
    """

    def __init__(self, rows: Sequence[Row] = (), steps: int = 0) -> None:
        self.rows: list[Row] = [((), ())] * (steps - len(rows)) + list(rows)
        self._seen: list[torch.Tensor] = []

    def begin(self) -> None:
        """A step begins; what was noted since the last one's end is forgotten."""
        self._seen.clear()

    def note(self, sigma: torch.Tensor, loss: torch.Tensor) -> None:
        """Note levels ``[B]`` and losses ``[B]`` of pictures."""
        self._seen.append(torch.stack([sigma.detach().float(), loss.detach().float()]))

    def end(self) -> None:
        """The step is done."""
        levels, losses = torch.cat(self._seen, 1).tolist() if self._seen else ((), ())
        self.rows.append((tuple(levels), tuple(losses)))
        self._seen.clear()

    def columns(self) -> dict[str, list[list[float]]]:
        """``sigma`` and ``sample_loss``, each a list for every step."""
        return {
            "sigma": [list(levels) for levels, _ in self.rows],
            "sample_loss": [list(losses) for _, losses in self.rows],
        }
