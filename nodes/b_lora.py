# SPDX-License-Identifier: Apache-2.0
"""Training node for B-LoRA: content and style of one picture, each in a block of its own."""

from typing import Any

from comfy_api.latest import io

from ..adapters.lora import LoRA
from ..host.model import layouts
from ..trainers.data import with_caption
from ..trainers.objectives import Objective
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
from .recipe_parts import course, how, rate, weighting
from .schema import choice, field, one_of, schema, seed, text, whole

# Frenkel et al. 2024 (arXiv 2403.14572): rank, learning rate, steps, batch and prompt below are theirs.
BLOCKS = {
    "content and style": "b-lora",
    "content": "b-lora content",
    "style": "b-lora style",
}
PROMPT = "A [v]"


class TrainBLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftTrainBLora",
            display_name="Train B-LoRA",
            category="graft/training",
            description=(
                "Trains two blocks of SDXL on one picture: one takes what is to be seen, the other how it looks. Saved "
                "apart, the content of a picture goes with the style of another."
            ),
            search_aliases=["b-lora", "blora", "style and content", "style transfer", "one image"],
            is_output_node=True,
            hidden=list(HIDDEN),
            inputs=[
                *sockets(*WIRES),
                *sockets(*EXTRAS, optional=True),
                whole("steps", "Optimizer steps to train.", 1000, min=1, max=10**7),
                text(
                    "prompt",
                    "What the picture is trained with, in place of the captions of the dataset; empty keeps those. A "
                    "word of its own for each picture, [v] here, is what you call it by.",
                    PROMPT,
                ),
                choice(
                    "blocks",
                    "Which of the two blocks are trained. Save LoRA writes them as one file, or with its own blocks "
                    "b-lora content or b-lora style each as one.",
                    tuple(BLOCKS),
                ),
                field(LoRA, "rank", default=64, max=4096),
                field(LoRA, "alpha", max=4096.0, step=0.5, advanced=True),
                rate("learning_rate", "Peak learning rate.", 5e-5),
                course(),
                field(Plan, "batch_size"),
                field(Plan, "accumulate", advanced=True),
                seed(RUN_SEED),
                weighting(),
                field(Objective, "preserve", default=0.0, max=100.0, step=0.05),
                field(Plan, "precision", advanced=True),
                field(Plan, "checkpointing", advanced=True),
                text("name", LORA_NAME, "graft b-lora"),
                text("preserve_prompts", PRESERVE_PROMPTS, multiline=True, advanced=True),
                *sockets(*LATER, optional=True),
                *keeping("autosave_minutes", "save_every", "memory_limit", "offload"),
                *sockets(*STARTS, optional=True),
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
        prompt: str,
        blocks: str,
        rank: int,
        alpha: float,
        learning_rate: float,
        schedule: str,
        batch_size: int,
        accumulate: int,
        seed: int,
        weight: str,
        preserve: float,
        precision: str,
        checkpointing: str,
        name: str,
        preserve_prompts: str,
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
    ) -> io.NodeOutput:
        inputs = locals()
        layouts.check_b_lora(model)
        said = prompt.strip()
        return train(
            cls,
            inputs,
            dataset=with_caption(dataset, said) if said else dataset,
            network=LoRA(rank, alpha, BLOCKS[one_of("blocks", blocks, BLOCKS)]),
            **how(inputs),
        )


NODES = [TrainBLora]
