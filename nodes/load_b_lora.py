# SPDX-License-Identifier: Apache-2.0
"""Content of one B-LoRA and style of another, onto a MODEL."""

from typing import Any

from comfy_api.latest import io

from ..host import graph
from ..host.files import loading, lora_files
from ..host.files.strengths import MOST
from ..loaders.source import Source, in_memory
from .schema import GraftAdapter, choice, number, output, schema, socket

NONE = "none"
ONCE, SQUARED = "once", "squared (as the reference)"


class LoadBLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        limits = {"min": -MOST, "max": MOST, "step": 0.05}
        files = [NONE, *lora_files.names()]
        about = (
            "A LoRA of SDXL in any dialect: no more of it is read than {}. Press R for new files. Not read where "
            "something is connected to {}."
        )
        return schema(
            node_id="GraftLoadBLora",
            display_name="Load B-LoRA",
            category="graft/loaders",
            description=(
                "Puts what is to be seen of one picture and how it looks of another onto an SDXL model. Of each file "
                "only the block of its part is read and used, whatever else it holds."
            ),
            search_aliases=["b-lora", "blora", "content", "style", "style transfer", "load lora"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                socket(
                    io.Model,
                    "model",
                    "An SDXL model. Several of these nodes may follow each other.",
                ),
                choice(
                    "content", about.format("output_blocks.0.1", "content_adapter"), files, NONE
                ),
                number("content_strength", "How strongly the content acts.", 1.0, **limits),
                choice("style", about.format("output_blocks.1.1", "style_adapter"), files, NONE),
                number("style_strength", "How strongly the style acts.", 1.0, **limits),
                choice(
                    "strength_mode",
                    "once: the change of the weights is multiplied by the strength, as everywhere. squared: by its "
                    "square, as the reference does, which multiplies both halves of a LoRA: its 1.1 is 1.21 here.",
                    [ONCE, SQUARED],
                    ONCE,
                    advanced=True,
                ),
                socket(
                    GraftAdapter,
                    "content_adapter",
                    "The ADAPTER of a training node, in the place of the file content.",
                    optional=True,
                ),
                socket(
                    GraftAdapter,
                    "style_adapter",
                    "The ADAPTER of a training node, in the place of the file style.",
                    optional=True,
                ),
            ],
            outputs=[
                output(io.Model, "MODEL", "The model with them."),
                output(io.String, "report", "How much of each takes effect, and what does not."),
            ],
        )

    @classmethod
    def validate_inputs(cls, content: str | None = None, style: str | None = None) -> bool | str:
        try:
            for file in (content, style):
                if file not in (None, NONE):  # None comes over a link and is not known yet
                    lora_files.path(str(file))
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(
        cls,
        content: str | None = None,
        style: str | None = None,
        model: Any = None,
        content_strength: float | None = None,
        style_strength: float | None = None,
        strength_mode: str | None = None,
        content_adapter: Any = None,
        style_adapter: Any = None,
    ) -> str:
        files = [str(file) for file in (content, style) if file not in (None, NONE)]
        return " ".join(lora_files.fingerprint(file) for file in files)

    @classmethod
    def execute(
        cls,
        model: Any,
        content: str,
        content_strength: float,
        style: str,
        style_strength: float,
        strength_mode: str,
        content_adapter: Any = None,
        style_adapter: Any = None,
    ) -> io.NodeOutput:
        wanted = {
            "content": (_source(content, content_adapter), content_strength),
            "style": (_source(style, style_adapter), style_strength),
        }
        model, report = loading.b_loras(model, wanted, strength_mode == SQUARED)
        graph.show_text(cls.hidden.unique_id, report)
        return io.NodeOutput(model, report)


def _source(file: str, adapter: Any) -> Source | None:
    if adapter is not None:
        return in_memory(adapter)
    return None if file == NONE else lora_files.opened(file)


NODES = [LoadBLora]
