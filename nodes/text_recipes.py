# SPDX-License-Identifier: Apache-2.0
"""Training nodes for a new word: textual inversion, and pivotal tuning, which trains a LoRA with it."""

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..adapters.lora import LoRA
from ..adapters.targets import NONE
from ..adapters.tokens import Concept, Tokens
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
from .recipe_parts import course, how, rate, weighting
from .schema import GraftTokens, field, number, schema, seed, socket, text

_MORE = "More concepts that are learned along, from Concept Token."


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
                *length(1000),
                field(Concept, "name", "token"),
                field(Concept, "vectors"),
                field(Concept, "init"),
                rate("learning_rate", "Peak learning rate of the word.", 5e-3),
                course(),
                field(Plan, "batch_size"),
                field(Plan, "accumulate", advanced=True),
                seed(RUN_SEED),
                weighting(),
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
        inputs = locals()
        return train(
            cls,
            inputs,
            network=LoRA(blocks=NONE),
            **how(inputs, embedding_weight_decay=0.0),
            tokens=_together(token, vectors, init, tokens),
        )


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
                *length(500),
                field(Concept, "name", "token"),
                field(Concept, "vectors"),
                field(Concept, "init"),
                rate(
                    "token_learning_rate",
                    "Peak learning rate of the word, higher than the LoRA's as a rule.",
                    3e-4,
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
        inputs = locals()
        of_words = {"embedding_lr": token_learning_rate, "embedding_stop": pivot}
        return train(
            cls,
            inputs,
            network=LoRA(rank, alpha, blocks),
            **how(inputs, **of_words, embedding_weight_decay=0.0),
            tokens=_together(token, vectors, init, tokens),
        )


def _together(name: str, vectors: int, init: str, more: Tokens | None) -> Tokens:
    """The concept of a node, and those that are connected to it."""
    concept = Concept(name.strip(), vectors, init.strip())
    return replace(more, concepts=(*more.concepts, concept)) if more else Tokens((concept,))


NODES = [TrainTextualInversion, TrainPivotal]
