# SPDX-License-Identifier: Apache-2.0
"""Training nodes with widgets for one recipe instead of sockets for every choice."""

from typing import Any

from comfy_api.latest import io

from ..adapters.lora import LoRA
from ..trainers.objectives import Objective
from ..trainers.optimizers.adamw import AdamW
from ..trainers.plan import AUTO, CONTINUE, Plan
from .config import PRESERVE_PROMPTS
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
from .length import length
from .recipe_parts import course, how, weighting
from .schema import field, schema, seed, text


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
                *length(500),
                field(LoRA, "rank", max=4096),
                field(LoRA, "alpha", max=4096.0, step=0.5, advanced=True),
                field(AdamW, "lr", "learning_rate", max=10.0, step=1e-6),
                course(),
                field(Plan, "batch_size"),
                field(Plan, "accumulate", advanced=True),
                seed(RUN_SEED),
                field(LoRA, "blocks"),
                weighting(),
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
        inputs = locals()
        return train(
            cls,
            inputs,
            network=LoRA(rank, alpha, blocks),
            **how(inputs),
        )


NODES = [TrainLora]
