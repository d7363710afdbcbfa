# SPDX-License-Identifier: Apache-2.0
"""What is sampled while a run trains."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Preview:
    """Prompts and sampler settings of the pictures made every ``every`` steps.

    ``width`` and ``height`` 0 mean the commonest bucket of the dataset, in pixels.
    """

    prompts: tuple[str, ...]
    negative: str = ""
    width: int = 0
    height: int = 0
    steps: int = 20
    cfg: float = 7.0
    sampler: str = "euler"
    scheduler: str = "normal"
    seed: int = 0
    every: int = 100
    at_start: bool = True

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError("A preview needs at least one prompt.")
        if self.every < 1 or self.steps < 1:
            raise ValueError(
                f"Preview steps ({self.steps}) and every ({self.every}) must be at least 1."
            )

    def due(self, step: int, total: int) -> bool:
        """Whether pictures are due after ``step`` of ``total`` steps (0 = before the first)."""
        return self.at_start if step == 0 else step % self.every == 0 or step == total
