# SPDX-License-Identifier: Apache-2.0
"""Using what a training made."""

from typing import Any

from comfy_api.latest import io

from ..host import graph
from ..host.files import loading, lora_files, parts
from ..host.files.strengths import MOST, Strengths
from ..host.model.limits import Limits
from .schema import GraftAdapter, choice, number, output, schema, socket, text


class LoadAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        limits = {"min": -MOST, "max": MOST, "step": 0.05}
        return schema(
            node_id="GraftLoadAdapter",
            display_name="Load Adapter",
            category="graft/loaders",
            description=(
                "Loads any file that this pack saves onto a MODEL and a CLIP: LoRAs and their kin as ComfyUI's own "
                "Load LoRA does it, and bottleneck adapters and new words, which that does not know. Strengths may "
                "differ from block to block."
            ),
            search_aliases=["load lora", "bottleneck", "apply adapter", "block weight", "b-lora"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                socket(io.Model, "model", "The model that it was trained on, or one of its kind."),
                choice(
                    "file",
                    "A .safetensors file of ComfyUI's loras folders, or an example. Press R for new files. Not read "
                    "where something is connected to adapter.",
                    lora_files.names(),
                ),
                number("strength_model", "How strongly the model is changed.", 1.0, **limits),
                number(
                    "strength_clip", "How strongly the text encoders are changed.", 1.0, **limits
                ),
                text(
                    "strengths",
                    "Strengths of some blocks, as pattern=strength with semicolons between them: output_blocks.0.1=1; "
                    "output_blocks.1.1=0.5. Each multiplies strength_model there; the last one that a layer matches "
                    "counts.",
                    advanced=True,
                ),
                socket(
                    io.Clip,
                    "clip",
                    "The CLIP that goes with the model, for text encoders and new words.",
                    optional=True,
                ),
                socket(
                    GraftAdapter,
                    "adapter",
                    "The ADAPTER of a training node, in the place of a file.",
                    optional=True,
                ),
                number(
                    "start_percent",
                    "Share of the sampling before which the model is as it was. With a range or a mask the adapter is "
                    "not merged, and every step takes a little longer.",
                    0.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    optional=True,
                    advanced=True,
                ),
                number(
                    "end_percent",
                    "Share of the sampling after which the model is as it was.",
                    1.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    optional=True,
                    advanced=True,
                ),
                socket(
                    io.Mask,
                    "mask",
                    "The adapter acts where this is white; for Stable Diffusion 1.5, 2 and XL. Of any size; one mask, "
                    "or one for each picture of a batch.",
                    optional=True,
                ),
            ],
            outputs=[
                output(io.Model, "MODEL", "The model with it."),
                output(io.Clip, "CLIP", "The CLIP with it, where one is connected."),
                output(
                    io.String, "report", "How much of it takes effect, and what does not and why."
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        file: str | None = None,
        strengths: str | None = None,
        start_percent: float | None = None,
        end_percent: float | None = None,
    ) -> bool | str:
        try:
            if start_percent is not None and end_percent is not None:
                Limits(start_percent, end_percent)
            Strengths(blocks=strengths or "")
            if file is not None:  # else it comes over a link and is not known yet
                lora_files.path(file)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(
        cls,
        file: str | None,
        strength_model: float | None = None,
        strength_clip: float | None = None,
        strengths: str | None = None,
        model: Any = None,
        clip: Any = None,
        adapter: Any = None,
        start_percent: float | None = None,
        end_percent: float | None = None,
        mask: Any = None,
    ) -> str:
        return "" if file is None else lora_files.fingerprint(file)

    @classmethod
    def execute(
        cls,
        model: Any,
        file: str,
        strength_model: float,
        strength_clip: float,
        strengths: str,
        clip: Any = None,
        adapter: Any = None,
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        mask: Any = None,
    ) -> io.NodeOutput:
        limits = Limits(start_percent, end_percent, mask)
        given = adapter or parts.placed(lora_files.opened(file), model, clip)
        how = Strengths(strength_model, strength_clip, strengths)
        model, clip, report = loading.load(model, clip, given, how, limits=limits)
        graph.show_text(cls.hidden.unique_id, report)
        return io.NodeOutput(model, clip, report)


NODES = [LoadAdapter]
