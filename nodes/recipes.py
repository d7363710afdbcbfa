# SPDX-License-Identifier: Apache-2.0
"""Training nodes with widgets for one recipe instead of sockets for every choice."""

from typing import Any

from comfy_api.latest import io

from ..adapters.lora import LoRA
from ..trainers.data import Dataset
from ..trainers.data.order import Order
from ..trainers.objectives import WEIGHTS, Objective
from ..trainers.optimizers import SCHEDULES, Optimizer
from ..trainers.optimizers.adamw import AdamW
from ..trainers.plan import AUTO, CONTINUE, Plan
from .config import PRESERVE_PROMPTS, lines
from .engine import (
    EXTRAS,
    HIDDEN,
    LATER,
    LORA_NAME,
    RUN_SEED,
    STARTS,
    WIRES,
    check_name,
    keeping,
    outputs,
    sockets,
    train,
)
from .schema import choice, field, schema, seed, taken, text, whole

STEPS, PER_IMAGE, EPOCHS = "steps", "steps per image", "epochs"


class TrainLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftTrainLora",
            display_name="Train LoRA",
            category="graft/training",
            description=(
                "Trains a LoRA on the model on the wire: a subject, a character or a style, from a few pictures. "
                "Other prompts wait in the queue until it is done; Cancel keeps what was learned."
            ),
            search_aliases=[
                "lora",
                "lora training",
                "finetune",
                "dreambooth",
                "train style",
                "train character",
            ],
            is_output_node=True,
            hidden=list(HIDDEN),
            inputs=[
                *sockets(*WIRES),
                *sockets(*EXTRAS, optional=True),
                whole(
                    "steps", "How long it trains, in the unit below.", 500, min=1, max=10_000_000
                ),
                choice(
                    "steps_unit",
                    "steps: optimizer steps. steps per image: times the number of pictures. epochs: passes over all "
                    "pictures, at the batch size.",
                    (STEPS, PER_IMAGE, EPOCHS),
                ),
                field(LoRA, "rank", max=4096),
                field(LoRA, "alpha", max=4096.0, step=0.5, advanced=True),
                field(AdamW, "lr", "learning_rate", max=10.0, step=1e-6),
                choice(
                    "schedule",
                    "The course of the learning rate. constant: for a run that may go on from its state. cosine: "
                    "down to 0 at the last step, for cleaner pictures.",
                    SCHEDULES.names(),
                    "constant",
                ),
                field(Plan, "batch_size"),
                field(Plan, "accumulate", advanced=True),
                seed(RUN_SEED),
                field(LoRA, "blocks"),
                choice(
                    "weight",
                    "How much each noise level counts. one: the model's plain loss. min-snr: less where little noise "
                    "is left, which teaches texture. debiased: more where there is much noise, which decides what is "
                    "to be seen.",
                    WEIGHTS.names(),
                    "one",
                    advanced=True,
                ),
                field(Objective, "preserve", max=100.0, step=0.05),
                field(Plan, "precision", advanced=True),
                field(Plan, "checkpointing", advanced=True),
                text("name", LORA_NAME, "graft"),
                text(
                    "preserve_prompts",
                    PRESERVE_PROMPTS,
                    multiline=True,
                    advanced=True,
                ),
                *sockets(*LATER, optional=True),
                *keeping("autosave_minutes", "save_every", "memory_limit"),
                *sockets(*STARTS, optional=True),
                field(Plan, "offload", optional=True, advanced=True),
            ],
            outputs=outputs(),
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        return check_name(name)

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        dataset: Any,
        steps: int,
        steps_unit: str,
        rank: int,
        alpha: float,
        learning_rate: float,
        schedule: str,
        batch_size: int,
        accumulate: int,
        seed: int,
        blocks: str,
        weight: str,
        preserve: float,
        preserve_prompts: str,
        precision: str,
        checkpointing: str,
        name: str,
        preview: Any = None,
        sampler: Any = None,
        sigmas: Any = None,
        state: Any = None,
        validation: Any = None,
        when_found: str = CONTINUE,
        autosave_minutes: float = 10.0,
        save_every: int = 0,
        memory_limit: int = 0,
        start_from: Any = None,
        offload: str = AUTO,
    ) -> io.NodeOutput:
        steps = steps_for(steps, steps_unit, dataset, batch_size, accumulate)
        plan = Plan(**taken(Plan, locals()))
        wires, extras = (model, clip, vae, dataset), (preview, sampler, sigmas, state)
        chosen = {
            "network": LoRA(rank, alpha, blocks),
            "objective": Objective(
                weight=WEIGHTS.get(weight)(),
                preserve=preserve,
                preserve_prompts=lines(preserve_prompts),
            ),
            "optimizer": Optimizer(AdamW(learning_rate), SCHEDULES.get(schedule)()),
            "validation": validation,
            "start_from": start_from,
        }
        return train(cls, wires, extras, **chosen, plan=plan, name=name)


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
    """The plan of a node's inputs, whose length is in one of the units."""
    names = ("steps", "steps_unit", "dataset", "batch_size", "accumulate")
    steps = steps_for(*(inputs[name] for name in names))
    return Plan(**taken(Plan, inputs | {"steps": steps}))


NODES = [TrainLora]
