# SPDX-License-Identifier: Apache-2.0
"""The training node with a socket for every choice."""

from typing import Any

from comfy_api.latest import io

from ..adapters.lora import LoRA
from ..trainers.objectives import Objective
from ..trainers.optimizers import Optimizer
from ..trainers.plan import AUTO, CONTINUE, Plan
from .engine import (
    EXTRAS,
    HIDDEN,
    LATER,
    LORA_NAME,
    RUN_SEED,
    STARTS,
    TEXTS,
    check_name,
    keeping,
    outputs,
    sockets,
    train,
)
from .schema import (
    GraftNetworkType,
    GraftObjectiveType,
    GraftOptimizerType,
    field,
    schema,
    seed,
    socket,
    text,
)

_MAX_STEPS = 10_000_000


class Train(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftTrain",
            display_name="Train",
            category="graft/training",
            description=(
                "Trains the model on the wire on a dataset, with a socket for every choice. Only model, dataset, VAE "
                "and CLIP are needed. Other prompts wait in the queue until it is done; Cancel keeps what was learned."
            ),
            search_aliases=["finetune", "fine-tune", "lora training", "trainer", "dreambooth"],
            is_output_node=True,
            hidden=list(HIDDEN),
            inputs=[
                *sockets("model", "dataset"),
                *sockets("vae", "clip", optional=True),
                socket(
                    GraftNetworkType,
                    "network",
                    "What is trained; without it, a LoRA on the attention layers.",
                    optional=True,
                ),
                socket(
                    GraftObjectiveType,
                    "objective",
                    "What is minimized; without it, the model's own loss, staying like the base model elsewhere.",
                    optional=True,
                ),
                socket(
                    GraftOptimizerType,
                    "optimizer",
                    "How it is stepped; without it, AdamW at a constant rate.",
                    optional=True,
                ),
                *sockets(*EXTRAS, optional=True),
                field(Plan, "steps", max=_MAX_STEPS),
                field(Plan, "total_steps", max=_MAX_STEPS, advanced=True),
                field(Plan, "batch_size"),
                field(Plan, "accumulate"),
                seed(RUN_SEED),
                field(Plan, "precision", advanced=True),
                field(Plan, "checkpointing", advanced=True),
                field(Plan, "max_grad_norm", max=1000.0, step=0.1, advanced=True),
                text("name", LORA_NAME, "graft"),
                *sockets(*LATER, optional=True),
                field(Plan, "validate_every", max=1_000_000, optional=True, advanced=True),
                field(Plan, "patience", max=1_000_000, optional=True, advanced=True),
                field(
                    Plan,
                    "stop_when_diverging",
                    max=1000.0,
                    step=0.5,
                    optional=True,
                    advanced=True,
                ),
                *keeping(
                    "autosave_minutes",
                    "autosave_every",
                    "keep_states",
                    "save_every",
                    "memory_limit",
                ),
                *sockets(*STARTS, optional=True),
                field(Plan, "offload", optional=True, advanced=True),
                *sockets(*TEXTS, optional=True),
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
        dataset: Any,
        steps: int,
        total_steps: int,
        batch_size: int,
        accumulate: int,
        seed: int,
        precision: str,
        checkpointing: str,
        max_grad_norm: float,
        name: str,
        vae: Any = None,
        clip: Any = None,
        network: Any = None,
        objective: Any = None,
        optimizer: Any = None,
        preview: Any = None,
        sampler: Any = None,
        sigmas: Any = None,
        state: Any = None,
        validation: Any = None,
        validate_every: int = 50,
        patience: int = 0,
        stop_when_diverging: float = 5.0,
        when_found: str = CONTINUE,
        autosave_minutes: float = 10.0,
        autosave_every: int = 0,
        keep_states: int = 2,
        save_every: int = 0,
        memory_limit: int = 0,
        start_from: Any = None,
        offload: str = AUTO,
        tokens: Any = None,
        text_network: Any = None,
    ) -> io.NodeOutput:
        return train(
            cls,
            locals(),
            network=network or LoRA(),
            objective=objective or Objective(),
            optimizer=optimizer or Optimizer(),
        )


NODES = [Train]
