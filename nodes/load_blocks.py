# SPDX-License-Identifier: Apache-2.0
"""Some blocks of a LoRA, each with its own strength."""

from typing import Any

from comfy_api.latest import io

from ..host import graph
from ..host.files import loading, lora_files, result
from ..host.files.strengths import MOST, Strengths
from ..loaders.source import in_memory
from .schema import GraftAdapter, choice, number, output, schema, socket, text


class LoadLoraBlocks(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        limits = {"min": -MOST, "max": MOST, "step": 0.05}
        return schema(
            node_id="GraftLoadLoraBlocks",
            display_name="Load LoRA Blocks",
            category="graft/loaders",
            description=(
                "Loads chosen blocks of a LoRA of any dialect, and nothing else of it is read. What was chosen also "
                "comes out as an adapter, for Save LoRA."
            ),
            search_aliases=[
                "block weight",
                "lora block",
                "lbw",
                "filter lora",
                "load lora",
                "b-lora",
            ],
            hidden=[io.Hidden.unique_id],
            inputs=[
                socket(io.Model, "model", "The model that it was made for, or one of its kind."),
                choice(
                    "file",
                    "A .safetensors file of ComfyUI's loras folders, or an example. Press R for new files. Not read "
                    "where something is connected to adapter.",
                    lora_files.names(),
                ),
                text(
                    "blocks",
                    "Which layers of the model are loaded: presets such as attention, cross-attention or b-lora style, "
                    "and patterns such as output_blocks.*.attn2 or -middle_block, with commas between them. Names of "
                    "diffusers and kohya are understood. Empty: all.",
                ),
                text(
                    "strengths",
                    "Strengths of some of these, as pattern=strength with semicolons between them: output_blocks=1; "
                    "middle_block=0.5. Each multiplies strength_model there; the last one that a layer matches counts.",
                ),
                number("strength_model", "How strongly the model is changed.", 1.0, **limits),
                number(
                    "strength_clip",
                    "How strongly the text encoders are changed, where a clip is connected; 0 leaves them out. Blocks "
                    "do not choose among their layers.",
                    1.0,
                    **limits,
                ),
                socket(io.Clip, "clip", "The CLIP that goes with the model.", optional=True),
                socket(
                    GraftAdapter,
                    "adapter",
                    "The ADAPTER of a training node, in the place of a file.",
                    optional=True,
                ),
            ],
            outputs=[
                output(io.Model, "MODEL", "The model with it."),
                output(io.Clip, "CLIP", "The CLIP with it, where one is connected."),
                output(io.LoraModel, "LORA_MODEL", "The chosen layers, for ComfyUI's own nodes."),
                output(
                    GraftAdapter,
                    "ADAPTER",
                    "The chosen layers as they are in the file, for Save LoRA; strengths are not in it.",
                ),
                output(io.String, "report", "How much of it takes effect, and what does not."),
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None, strengths: str | None = None) -> bool | str:
        try:
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
        blocks: str | None = None,
        strengths: str | None = None,
        strength_model: float | None = None,
        strength_clip: float | None = None,
        model: Any = None,
        clip: Any = None,
        adapter: Any = None,
    ) -> str:
        return "" if file is None else lora_files.fingerprint(file)

    @classmethod
    def execute(
        cls,
        model: Any,
        file: str,
        blocks: str,
        strengths: str,
        strength_model: float,
        strength_clip: float,
        clip: Any = None,
        adapter: Any = None,
    ) -> io.NodeOutput:
        source = lora_files.opened(file) if adapter is None else in_memory(adapter)
        how = Strengths(strength_model, strength_clip, strengths)
        model, clip, chosen, report = loading.blocks(model, clip, source, blocks, how)
        graph.show_text(cls.hidden.unique_id, report)
        return io.NodeOutput(model, clip, result.lora_state_dict(chosen), chosen, report)


NODES = [LoadLoraBlocks]
