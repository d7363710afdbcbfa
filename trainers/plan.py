# SPDX-License-Identifier: Apache-2.0
"""How long, how large and how exactly a run trains."""

from dataclasses import dataclass, field

from ..registry import check_limits, option

PRECISIONS = ("auto", "bf16", "fp32")
CHECKPOINTING = ("auto", "on", "off")


@dataclass(frozen=True)
class Plan:
    """Settings of the loop. ``total_steps`` 0 means ``steps`` more than where the run starts."""

    steps: int = option(500, "Optimizer steps to train.", min=1, max=10_000_000)
    total_steps: int = option(
        0, "Length of the whole plan that schedules refer to, when it is trained in parts.", min=0
    )
    batch_size: int = option(1, "Pictures in one forward pass.", min=1, max=4096)
    accumulate: int = option(1, "Forward passes in one optimizer step.", min=1, max=4096)
    seed: int = option(0, "Seed of everything drawn in the run.", min=0, max=2**64 - 1)
    max_grad_norm: float = option(
        1.0, "Clip the gradient to this norm; 0 does not clip.", min=0.0, max=1e9
    )
    precision: str = option(
        "auto", "Precision of the frozen model's computations.", choices=PRECISIONS
    )
    checkpointing: str = option(
        "auto", "Recompute activations block by block to save memory.", choices=CHECKPOINTING
    )

    validate_every: int = option(
        50,
        "Steps between two looks at the held-out pictures of validation; each takes 8 forward passes a picture.",
        min=1,
        max=10_000_000,
    )
    patience: int = option(
        0,
        "End after so many validations in a row that were no better than the best, and deliver the best; 0 never does.",
        min=0,
        max=10_000_000,
    )
    stop_when_diverging: float = option(
        5.0,
        "End, and deliver the best so far, when the median loss of 50 steps stays above this many times its best and "
        "above where it began; 0 never does.",
        min=0.0,
        max=1e9,
    )
    # Not in the repr, and so not in a run's id: it changes how a step is cut, not what is trained.
    memory_limit: int = field(
        default=0,
        repr=False,
        metadata={
            "tooltip": "MiB of the device's memory to train in, weights included: the batch is cut into smaller "
            "passes, and checkpointing auto is switched on, until a measured step fits. 0: what is free on a GPU; on a "
            "CPU nothing is measured.",
            "min": 0,
            "max": 2**31 - 1,
        },
    )

    def __post_init__(self) -> None:
        check_limits(self)

    @property
    def effective_batch(self) -> int:
        """Pictures in one optimizer step."""
        return self.batch_size * self.accumulate
