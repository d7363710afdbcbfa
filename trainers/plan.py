# SPDX-License-Identifier: Apache-2.0
"""How long, how large and how exactly a run trains."""

from dataclasses import dataclass

from ..registry import check_limits, option

PRECISIONS = ("auto", "bf16", "fp32")
AUTO, ON, OFF = "auto", "on", "off"
CHECKPOINTING = OFFLOAD = (AUTO, ON, OFF)
CONTINUE, FRESH = "continue", "start fresh"


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
        "auto",
        "Precision of the frozen model's computations. auto: bf16 where the device is fast at it, else fp32.",
        choices=PRECISIONS,
    )
    checkpointing: str = option(
        "auto",
        "Recompute activations block by block to save memory. auto: of as few blocks as one picture needs to fit.",
        choices=CHECKPOINTING,
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
    save_every: int = option(
        0,
        "Write the LoRA so far into output/loras after every so many steps, as name_step000500, say; 0 never does.",
        repr=False,
        min=0,
        max=10_000_000,
    )

    autosave_minutes: float = option(
        10.0,
        "Minutes between two states written to output/graft, from which a run goes on that was cut off; 0 writes none.",
        repr=False,
        min=0.0,
        max=10_000.0,
    )
    autosave_every: int = option(
        0,
        "Steps between two such states; 0 goes by minutes alone.",
        repr=False,
        min=0,
        max=10_000_000,
    )
    keep_states: int = option(
        2,
        "How many of these states are kept; a whole run removes them.",
        repr=False,
        min=1,
        max=1000,
    )
    when_found: str = option(
        CONTINUE,
        "What to do where the very same run was cut off. continue: go on where it was, which gives what it would have "
        "given. start fresh: from the first step.",
        repr=False,
        choices=(CONTINUE, FRESH),
    )
    memory_limit: int = option(
        0,
        "MiB of the device's memory to train in, weights included: the batch is cut into smaller passes, and "
        "checkpointing auto is switched on, until a measured step fits. 0: what is free on a GPU; on a CPU nothing is "
        "measured.",
        repr=False,
        min=0,
        max=2**31 - 1,
    )

    offload: str = option(
        AUTO,
        "Keep the weights of the model's blocks on the CPU and copy them to the GPU as they are needed, with all "
        "blocks checkpointed: slower, for models that do not fit. auto: only where not one picture fits without.",
        repr=False,
        choices=OFFLOAD,
    )

    def __post_init__(self) -> None:
        check_limits(self)
        if self.offload == ON and self.checkpointing == OFF:
            raise ValueError(
                "offload is on and checkpointing is off, but weights on the CPU need checkpointing: set checkpointing "
                "to auto or on, or offload to auto or off."
            )

    @property
    def may_offload(self) -> str:
        """``offload``, which needs checkpointing."""
        return OFF if self.checkpointing == OFF else self.offload

    @property
    def effective_batch(self) -> int:
        """Pictures in one optimizer step."""
        return self.batch_size * self.accumulate
