# SPDX-License-Identifier: Apache-2.0
"""Custom Diffusion: a new word, and the weights with which the model reads the text."""

from typing import Any

from comfy_api.latest import io

from ..adapters.full import Full
from ..adapters.tokens import Concept, Tokens
from ..trainers.plan import AUTO, CONTINUE, Plan
from .dreambooth import prior_inputs, prior_socket, with_prior
from .engine import (
    EXTRAS,
    HIDDEN,
    LATER,
    LORA_NAME,
    RUN_SEED,
    WIRES,
    check_name,
    keeping,
    outputs,
    sockets,
    train,
)
from .length import length
from .recipe_parts import course, how, rate, weighting
from .schema import field, schema, seed, text

BLOCKS = "cross-attention kv"
RATE = 1e-5
RARE = "ktn"  # a token of CLIP that hardly any text has
NOTE = "Several concepts in one model: wire the ADAPTERs of their trainings into Merge Concepts."


class TrainCustomDiffusion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftTrainCustomDiffusion",
            display_name="Train Custom Diffusion",
            category="graft/training",
            description=(
                "Teaches a new word and trains only the weights with which the model reads the text, the keys and "
                "values of cross-attention. Merge Concepts puts several such trainings into one model. For SD 1.x, "
                "SD 2.x and SDXL."
            ),
            search_aliases=["custom diffusion", "multi concept", "kumari", "cross attention"],
            is_output_node=True,
            hidden=list(HIDDEN),
            inputs=[
                *sockets(*WIRES),
                *sockets(*EXTRAS, optional=True),
                *length(250),
                field(Concept, "name", "token"),
                field(Concept, "vectors", default=1),
                field(
                    Concept,
                    "init",
                    default=RARE,
                    tooltip="Words that it begins with. A rare one means little, so that nothing has to be unlearned. "
                    "Empty: noise of the size of the other words.",
                ),
                rate(
                    "learning_rate",
                    "Peak learning rate. 0 takes 1e-5, and 2e-5 with class images.",
                    0.0,
                ),
                rate("token_learning_rate", "That of the word; 0 is the same.", 0.0),
                course(),
                field(Plan, "batch_size"),
                field(Plan, "accumulate", advanced=True),
                seed(RUN_SEED),
                *prior_inputs(200),
                weighting(),
                field(Plan, "precision", advanced=True),
                field(Plan, "checkpointing", advanced=True),
                text("name", LORA_NAME, "graft"),
                *sockets(*LATER, optional=True),
                *keeping("autosave_minutes", "save_every", "memory_limit", "offload"),
                prior_socket(),
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
        token_learning_rate: float,
        schedule: str,
        batch_size: int,
        accumulate: int,
        seed: int,
        class_prompt: str,
        class_images: int,
        prior_weight: float,
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
        class_dataset: Any = None,
    ) -> io.NodeOutput:
        inputs, concept = locals(), Concept(token.strip(), vectors, init.strip())
        data = with_prior(cls, inputs)
        usual = RATE if data.classes is None else 2 * RATE
        of_words = {"embedding_lr": token_learning_rate, "embedding_weight_decay": 0.0}
        return train(
            cls,
            inputs,
            NOTE,
            dataset=data,
            network=Full(BLOCKS, norms=False, detach_first=True),
            tokens=Tokens((concept,), retraction=0.0),
            **how(inputs, usual, **of_words),
        )


NODES = [TrainCustomDiffusion]
