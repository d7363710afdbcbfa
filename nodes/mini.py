# SPDX-License-Identifier: Apache-2.0
"""The miniature model that ships with the pack."""

from comfy_api.latest import io

from ..host.model import mini
from .schema import output, schema


class MiniModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftMiniModel",
            display_name="Load Mini Model",
            category="graft/loaders",
            description=(
                "Loads graft-mini, a very small SDXL-family text-to-image model that ships with the pack. It draws "
                "64 x 64 pictures of coloured shapes, so that every template runs before you have a checkpoint, on "
                "any computer. Put Load Checkpoint in its place for real work."
            ),
            search_aliases=["graft-mini", "tiny model", "test checkpoint", "demo model"],
            inputs=[],
            outputs=[
                output(io.Model, "MODEL", "The miniature diffusion model, of the SDXL family."),
                output(io.Clip, "CLIP", "Its two miniature text encoders."),
                output(io.Vae, "VAE", "Its autoencoder."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*mini.load_mini())


NODES = [MiniModel]
