# SPDX-License-Identifier: Apache-2.0
"""Training nodes for a new word: textual inversion, and pivotal tuning, which trains a LoRA with it."""

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..adapters.lora import LoRA
from ..adapters.targets import NONE
from ..adapters.tokens import Concept, Tokens
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
from .recipes import EPOCHS, PER_IMAGE, STEPS, plan_for
from .schema import GraftTokens, choice, field, number, schema, seed, socket, text, whole

_UNITS = (
    "steps: optimizer steps. steps per image: times the number of pictures. epochs: passes over all pictures, at the "
    "batch size."
)
_MORE = "More concepts that are learned along, from Concept Token."
_SCHEDULE = "The course of the learning rates."
_WEIGHT = "How much each noise level counts; one is the model's plain loss."


class TrainTextualInversion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftTrainTextualInversion",
            display_name="Train Textual Inversion",
            category="graft/training",
            description=(
                "Teaches the text encoders a new word for what is in some pictures; the model stays as it is. The file "
                "is a few KiB and works in any prompt. It can find only what the model can draw already: train a LoRA "
                "or use Train Pivotal for what it cannot."
            ),
            search_aliases=["textual inversion", "embedding", "train token", "concept"],
            is_output_node=True,
            hidden=list(HIDDEN),
            inputs=[
                *sockets(*WIRES),
                *sockets(*EXTRAS, optional=True),
                whole("steps", "How long it trains, in the unit below.", 1000, min=1, max=10**7),
                choice("steps_unit", _UNITS, (STEPS, PER_IMAGE, EPOCHS)),
                field(Concept, "name", "token"),
                field(Concept, "vectors"),
                field(Concept, "init"),
                number(
                    "learning_rate",
                    "Peak learning rate of the word.",
                    5e-3,
                    min=0.0,
                    max=10.0,
                    step=1e-5,
                ),
                choice("schedule", _SCHEDULE, SCHEDULES.names(), "constant"),
                field(Plan, "batch_size"),
                field(Plan, "accumulate", advanced=True),
                seed(RUN_SEED),
                choice("weight", _WEIGHT, WEIGHTS.names(), "one", advanced=True),
                field(Plan, "precision", advanced=True),
                field(Plan, "checkpointing", advanced=True),
                text("name", LORA_NAME, "graft"),
                *sockets(*LATER, optional=True),
                *keeping("autosave_minutes", "save_every", "memory_limit", "offload"),
                socket(GraftTokens, "tokens", _MORE, optional=True),
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
        token: str,
        vectors: int,
        init: str,
        learning_rate: float,
        schedule: str,
        batch_size: int,
        accumulate: int,
        seed: int,
        weight: str,
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
        offload: str = AUTO,
        tokens: Any = None,
    ) -> io.NodeOutput:
        chosen = {
            "network": LoRA(blocks=NONE),
            # What a word cannot change needs no preserving.
            "objective": Objective(weight=WEIGHTS.get(weight)(), preserve=0.0),
            "optimizer": _optimizer(learning_rate, schedule),
            "validation": validation,
            "tokens": _together(token, vectors, init, tokens),
        }
        wires, extras = (model, clip, vae, dataset), (preview, sampler, sigmas, state)
        return train(cls, wires, extras, **chosen, plan=plan_for(locals()), name=name)


class TrainPivotal(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftTrainPivotal",
            display_name="Train Pivotal",
            category="graft/training",
            description=(
                "Teaches a new word and trains a LoRA with it: first both, then, from the pivot on, the LoRA alone. "
                "The word takes what the LoRA would otherwise have to change in the model's own words."
            ),
            search_aliases=[
                "pivotal tuning",
                "pti",
                "textual inversion",
                "dreambooth lora",
                "face",
            ],
            is_output_node=True,
            hidden=list(HIDDEN),
            inputs=[
                *sockets(*WIRES),
                *sockets(*EXTRAS, optional=True),
                whole("steps", "How long it trains, in the unit below.", 500, min=1, max=10**7),
                choice("steps_unit", _UNITS, (STEPS, PER_IMAGE, EPOCHS)),
                field(Concept, "name", "token"),
                field(Concept, "vectors"),
                field(Concept, "init"),
                number(
                    "token_learning_rate",
                    "Peak learning rate of the word, higher than the LoRA's as a rule.",
                    3e-4,
                    min=0.0,
                    max=10.0,
                    step=1e-5,
                ),
                number(
                    "pivot",
                    "Fraction of the steps after which the word stays as it is.",
                    0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                ),
                field(LoRA, "rank", max=4096),
                field(LoRA, "alpha", max=4096.0, step=0.5, advanced=True),
                field(AdamW, "lr", "learning_rate", max=10.0, step=1e-6),
                choice("schedule", _SCHEDULE, SCHEDULES.names(), "constant"),
                field(Plan, "batch_size"),
                field(Plan, "accumulate", advanced=True),
                seed(RUN_SEED),
                field(LoRA, "blocks"),
                choice("weight", _WEIGHT, WEIGHTS.names(), "one", advanced=True),
                field(Objective, "preserve", max=100.0, step=0.05),
                field(Plan, "precision", advanced=True),
                field(Plan, "checkpointing", advanced=True),
                text("name", LORA_NAME, "graft"),
                text("preserve_prompts", PRESERVE_PROMPTS, multiline=True, advanced=True),
                *sockets(*LATER, optional=True),
                *keeping("autosave_minutes", "save_every", "memory_limit", "offload"),
                *sockets(*STARTS, optional=True),
                socket(GraftTokens, "tokens", _MORE, optional=True),
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
        token: str,
        vectors: int,
        init: str,
        token_learning_rate: float,
        pivot: float,
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
        offload: str = AUTO,
        start_from: Any = None,
        tokens: Any = None,
    ) -> io.NodeOutput:
        chosen = {
            "network": LoRA(rank, alpha, blocks),
            "objective": _objective(weight, preserve, preserve_prompts),
            "optimizer": _optimizer(learning_rate, schedule, token_learning_rate, pivot),
            "validation": validation,
            "start_from": start_from,
            "tokens": _together(token, vectors, init, tokens),
        }
        wires, extras = (model, clip, vae, dataset), (preview, sampler, sigmas, state)
        return train(cls, wires, extras, **chosen, plan=plan_for(locals()), name=name)


def _objective(weight: str, preserve: float, prompts: str) -> Objective:
    return Objective(
        weight=WEIGHTS.get(weight)(), preserve=preserve, preserve_prompts=lines(prompts)
    )


def _optimizer(rate: float, schedule: str, of_words: float = 0.0, stop: float = 1.0) -> Optimizer:
    """AdamW, with the words' own rate (0 is the model's) and the fraction of the plan after which they stay."""
    return Optimizer(
        AdamW(rate),
        SCHEDULES.get(schedule)(),
        embedding_lr=of_words,
        embedding_stop=stop,
        embedding_weight_decay=0.0,
    )


def _together(name: str, vectors: int, init: str, more: Tokens | None) -> Tokens:
    """The concept of a node, and those that are connected to it."""
    concept = Concept(name.strip(), vectors, init.strip())
    return replace(more, concepts=(*more.concepts, concept)) if more else Tokens((concept,))


NODES = [TrainTextualInversion, TrainPivotal]
