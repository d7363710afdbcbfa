# SPDX-License-Identifier: Apache-2.0
"""What is sampled while a run trains."""

from dataclasses import dataclass

from ..registry import check_limits, option

ROWS = ("samples", "all")


@dataclass(frozen=True)
class Preview:
    """Prompts and sampler settings of the pictures made every ``every`` steps.

    ``width`` and ``height`` 0 mean the commonest bucket of the dataset, in pixels.
    """

    prompts: tuple[str, ...]
    negative: str = option("", "What the pictures shall not show.")
    width: int = option(0, "Width in pixels; 0 is that of the pictures.", min=0, max=16384)
    height: int = option(0, "Height in pixels; 0 is that of the pictures.", min=0, max=16384)
    steps: int = option(20, "Sampling steps.", min=1, max=10_000)
    cfg: float = option(7.0, "Guidance; 1 for models like Flux.", min=0.0, max=100.0)
    sampler: str = option("euler", "The host's sampler.")
    scheduler: str = option("normal", "The host's scheduler.")
    seed: int = option(0, "Seed of the first prompt; each has the next.", min=0, max=2**64 - 1)
    every: int = option(100, "Steps between previews.", min=1, max=10_000_000)
    at_start: bool = option(True, "Sample before the first step, too.")
    rows: str = option(
        "samples",
        "samples: the prompts' pictures. all: one sheet with the first training pictures, noised and denoised at "
        "several noise levels, and the samples below.",
        choices=ROWS,
    )

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError("A preview needs at least one prompt.")
        check_limits(self)

    def due(self, step: int, total: int) -> bool:
        """Whether pictures are due after ``step`` of ``total`` steps (0 = before the first)."""
        return self.at_start if step == 0 else step % self.every == 0 or step == total
