# SPDX-License-Identifier: Apache-2.0
"""How long a training is: widgets, and the plan that they make."""

from typing import Any

from ..trainers.data import Dataset
from ..trainers.data.order import Order
from ..trainers.plan import Plan
from .schema import choice, taken, whole

STEPS, PER_IMAGE, EPOCHS = "steps", "steps per image", "epochs"


def length(steps: int) -> list[Any]:
    """The widgets, with ``steps`` as the default."""
    return [
        whole("steps", "How long it trains, in the unit below.", steps, min=1, max=10_000_000),
        choice(
            "steps_unit",
            "steps: optimizer steps. steps per image: times the number of pictures. epochs: passes over all "
            "pictures, at the batch size.",
            (STEPS, PER_IMAGE, EPOCHS),
        ),
    ]


def steps_for(
    amount: int, unit: str, dataset: Dataset, batch_size: int, accumulate: int = 1
) -> int:
    """Optimizer steps of a length that is given in one of the units.

    An epoch is what the loop takes for one: every picture as often as it is repeated, where a batch never mixes sizes.

    Args:
        amount: How many of the unit.
        unit: ``steps``, ``steps per image`` or ``epochs``.
        dataset: The pictures.
        batch_size: Pictures in one forward pass.
        accumulate: Forward passes in one optimizer step.

    Raises:
        ValueError: A number is below 1, or there is no such unit.
    """
    for widget, value in (
        ("steps", amount),
        ("batch_size", batch_size),
        ("accumulate", accumulate),
    ):
        if value < 1:
            raise ValueError(f"{widget} is {value}; it must be at least 1.")
    if unit == STEPS:
        return amount
    if unit == PER_IMAGE:
        return amount * len(dataset.items)
    if unit == EPOCHS:
        sizes = [dataset.size(index) for index in range(len(dataset))]
        order = Order(sizes, batch_size * accumulate, 0, dataset.repeats)
        return amount * order.steps_per_epoch
    raise ValueError(f"steps_unit is '{unit}'; it must be '{STEPS}', '{PER_IMAGE}' or '{EPOCHS}'.")


def plan_for(inputs: dict[str, Any]) -> Plan:
    """The plan of a node's inputs, whose length may be in one of the units."""
    given = taken(Plan, inputs)
    if "steps_unit" in inputs:
        names = ("steps", "steps_unit", "dataset", "batch_size", "accumulate")
        given["steps"] = steps_for(*(inputs[name] for name in names))
    return Plan(**given)
