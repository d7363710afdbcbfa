# SPDX-License-Identifier: Apache-2.0
"""What recipes have in common: widgets of learning rates and weights, and the parts of a run that they make."""

from typing import Any

from ..trainers.objectives import WEIGHTS, Objective
from ..trainers.optimizers import SCHEDULES, Optimizer
from ..trainers.optimizers.adamw import AdamW
from .config import lines
from .schema import choice, number


def rate(name: str, tooltip: str, default: float = 0.0) -> Any:
    """The widget of a learning rate."""
    return number(name, tooltip, default, min=0.0, max=10.0, step=1e-6)


def course() -> Any:
    """The widget of the learning rates' schedule."""
    return choice(
        "schedule",
        "The course of the learning rates. constant: for a run that may go on from its state. cosine: down to 0 at "
        "the last step, for cleaner pictures.",
        SCHEDULES.names(),
        "constant",
    )


def weighting() -> Any:
    """The widget of the weight of noise levels."""
    return choice(
        "weight",
        "How much each noise level counts. one: the model's plain loss. min-snr: less where little noise is left, "
        "which teaches texture. debiased: more where there is much noise, which decides what is to be seen.",
        WEIGHTS.names(),
        "one",
        advanced=True,
    )


def how(inputs: dict[str, Any], usual: float = 0.0, **more: Any) -> dict[str, Any]:
    """What is minimized, with preservation where the node has it, and the optimizer: AdamW.

    Args:
        inputs: Of the node.
        usual: The learning rate where the node's is 0.
        more: Further settings of the optimizer.
    """
    objective = Objective(
        weight=WEIGHTS.get(inputs["weight"])(),
        preserve=inputs.get("preserve", 0.0),
        preserve_prompts=lines(inputs.get("preserve_prompts", "")),
    )
    algorithm = AdamW(inputs["learning_rate"] or usual)
    schedule = SCHEDULES.get(inputs["schedule"])()
    return {"objective": objective, "optimizer": Optimizer(algorithm, schedule, **more)}
