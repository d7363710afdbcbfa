# SPDX-License-Identifier: Apache-2.0
"""What a training begins with."""

import dataclasses
from typing import Any

from comfy_api.latest import io

from ..host import graph
from ..host.files import lora_files, start
from .schema import GraftAdapter, choice, output, schema, socket, switch


class LoadLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftLoadLora",
            display_name="Load LoRA To Train On",
            category="graft/training",
            description=(
                "Reads a LoRA file, so that a training goes on with it: wire ADAPTER to start_from. It takes files of "
                "this pack, ComfyUI's trainer, kohya, diffusers and PEFT. To use a LoRA, take Load LoRA instead."
            ),
            search_aliases=[
                "continue lora",
                "resume lora",
                "load lora",
                "start from lora",
                "finetune lora",
            ],
            hidden=[io.Hidden.unique_id],
            inputs=[
                choice(
                    "lora",
                    "A .safetensors file of ComfyUI's loras folders, or an example. Press R for new files.",
                    lora_files.names(),
                ),
                switch(
                    "leave_out",
                    "What to do with parts of the file that the training cannot go on with: other blocks, biases. "
                    "Off: it refuses to begin and names them. On: they are left out of the result, and named.",
                    False,
                ),
                socket(
                    io.Model,
                    "model",
                    "The model that will be trained, to see at once how much of the file fits it.",
                    optional=True,
                ),
            ],
            outputs=[
                output(
                    GraftAdapter,
                    "ADAPTER",
                    "The LoRA of the file, for start_from of a training node.",
                ),
                output(io.String, "report", "Layers, rank and alpha, and what does not fit."),
            ],
        )

    @classmethod
    def validate_inputs(cls, lora: str | None = None) -> bool | str:
        if lora is None:  # it comes over a link and is not known yet
            return True
        try:
            lora_files.path(lora)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(
        cls, lora: str | None, leave_out: bool | None = False, model: Any = None
    ) -> str:
        if lora is None:  # it comes over a link, and changes with what is behind that
            return ""
        return lora_files.fingerprint(lora)

    @classmethod
    def execute(cls, lora: str, leave_out: bool, model: Any = None) -> io.NodeOutput:
        file = dataclasses.replace(lora_files.load(lora), leave_out=leave_out)
        report = start.describe(file, model)
        graph.show_text(cls.hidden.unique_id, report)
        return io.NodeOutput(file, report)


NODES = [LoadLora]
