# SPDX-License-Identifier: Apache-2.0
"""Looking into what a training did to a model."""

from typing import Any

from comfy_api.latest import io

from ..host import studies
from .schema import output, schema, seed, socket, whole


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
        image, text = studies.compare_blocks(*wires, levels, seed, cls.hidden.unique_id)
        return io.NodeOutput(image, text, ui={"text": [text]})


NODES = [CompareBlocks]
