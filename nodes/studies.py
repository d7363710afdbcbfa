# SPDX-License-Identifier: Apache-2.0
"""Looking into what a training did to a model."""

from typing import Any

from comfy_api.latest import io

from ..host.request import Request
from ..host.studies import blocks as studies
from ..host.studies.positions import ALL, LOSS, SCORER, Measured, run
from ..trainers.objectives import Objective
from ..trainers.optimizers import Optimizer
from ..trainers.plan import Plan
from .engine import HIDDEN, WIRES, sockets
from .schema import (
    GraftObjectiveType,
    GraftOptimizerType,
    choice,
    field,
    output,
    schema,
    seed,
    socket,
    text,
    whole,
)


class CompareBlocks(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftCompareBlocks",
            display_name="Compare Blocks",
            category="graft/training/reports",
            description=(
                "Shows which blocks training changed: how alike what each puts out is before and after, by linear CKA "
                "at several noise levels. 1 is the same up to a rotation."
            ),
            search_aliases=["cka", "similarity", "heat map", "block analysis", "hidden states"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                socket(io.Model, "model", "The model before training."),
                socket(io.Model, "trained", "The same model after it."),
                socket(
                    io.Conditioning,
                    "positive",
                    "A prompt; one that names what was learned shows most.",
                ),
                socket(
                    io.Latent,
                    "latent",
                    "Pictures that are noised, from VAE Encode: more of them make the numbers steadier.",
                ),
                whole("levels", "How many noise levels are looked at.", 5, min=1, max=50),
                seed("Seed of the noise."),
            ],
            outputs=[
                output(io.Image, "IMAGE", "Blocks down, noise levels across."),
                output(io.String, "TEXT", "The same in words: the blocks that changed most."),
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, trained: Any, positive: Any, latent: Any, levels: int, seed: int
    ) -> io.NodeOutput:
        wires = (model, trained, positive, latent["samples"])
        image, said = studies.compare_blocks(*wires, levels, seed, cls.hidden.unique_id)
        return io.NodeOutput(image, said, ui={"text": [said]})


class PositionStudy(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftPositionStudy",
            display_name="Study Adapter Positions",
            category="graft/training/reports",
            description=(
                "Trains a bottleneck adapter at every position in the model's blocks, one after the other, and says "
                "which learns best and whether input or output matters. Takes as long as all these trainings; after "
                "Cancel it goes on where it was."
            ),
            search_aliases=["bottleneck", "anova", "heat map", "adapter position", "ablation"],
            is_output_node=True,
            hidden=list(HIDDEN),
            inputs=[
                *sockets(*WIRES),
                *sockets("validation", "preview", optional=True),
                socket(
                    GraftObjectiveType,
                    "objective",
                    "What is minimized; without it, the model's own loss.",
                    optional=True,
                ),
                socket(
                    GraftOptimizerType,
                    "optimizer",
                    "How it is stepped; without it, AdamW at a constant rate.",
                    optional=True,
                ),
                text(
                    "positions",
                    "all, or pairs of an input and an output, with semicolons between them: attn2o-ffni; ffni-transo.",
                    ALL,
                ),
                whole("rank", "Inner dimension of the adapters.", 16, min=1, max=4096),
                whole("steps", "Optimizer steps of each training.", 300, min=1, max=10**7),
                field(Plan, "batch_size"),
                whole(
                    "seeds",
                    "Trainings of each position, each from another seed.",
                    1,
                    min=1,
                    max=100,
                ),
                seed("The first seed."),
                choice(
                    "score",
                    "validation loss: that of the validation pictures after the last step; less is better. scorer of "
                    "graft-mini: how surely the preview's last pictures show what is to be seen.",
                    (LOSS, SCORER),
                ),
                text(
                    "shows",
                    "What the scorer looks for: shape=arrow is the example's dax.",
                    "shape=arrow",
                ),
            ],
            outputs=[
                output(io.Image, "IMAGE", "Scores: outputs down, inputs across."),
                output(io.String, "TEXT", "The best positions, and the analyses of variance."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        dataset: Any,
        positions: str,
        rank: int,
        steps: int,
        batch_size: int,
        seeds: int,
        seed: int,
        score: str,
        shows: str,
        validation: Any = None,
        preview: Any = None,
        objective: Any = None,
        optimizer: Any = None,
    ) -> io.NodeOutput:
        request = Request(
            model=model,
            dataset=dataset,
            vae=vae,
            clip=clip,
            objective=objective or Objective(preserve=0.0),
            optimizer=optimizer or Optimizer(),
            plan=Plan(steps, batch_size=batch_size, seed=seed),
            preview=preview,
            validation=validation,
            name="positions",
            node_id=cls.hidden.unique_id,
        )
        image, said = run(request, positions, rank, seeds, Measured(score, shows))
        return io.NodeOutput(image, said, ui={"text": [said]})


NODES = [CompareBlocks, PositionStudy]
