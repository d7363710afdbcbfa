# SPDX-License-Identifier: Apache-2.0
"""Saving what was trained."""

import dataclasses
from typing import Any

from comfy_api.latest import io

from ..host import graph
from ..host.files import paths, result
from ..loaders.selection import select
from .schema import GraftAdapter, output, schema, socket, switch, text

_TRIGGER_KEY = "modelspec.trigger_phrase"


class SaveLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftSaveLora",
            display_name="Save LoRA",
            category="graft/training",
            description=(
                "Saves a trained LoRA with its metadata into output/loras, where Load LoRA finds it at once, reads the "
                "file again as Load LoRA does, and says how much of it takes effect."
            ),
            search_aliases=["save lora", "export lora", "safetensors"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=[
                socket(GraftAdapter, "adapter", "The ADAPTER of a training node."),
                socket(
                    io.Model,
                    "model",
                    "A model of the kind it was trained on, to check the saved file with.",
                    optional=True,
                ),
                socket(
                    io.Clip,
                    "clip",
                    "A CLIP of the kind it was trained on; needed for the check only where text was trained.",
                    optional=True,
                ),
                text(
                    "filename",
                    "Name of the file, without folders; empty takes the name that the training node gave. A file that "
                    "is there is not replaced: a number is added.",
                ),
                text(
                    "trigger",
                    "The word or words that call what was learned; empty keeps the dataset's.",
                ),
                switch(
                    "embed_workflow",
                    "Keep this workflow in the file, unless ComfyUI forbids metadata.",
                    True,
                ),
                text(
                    "blocks",
                    "Only these layers go into the file: b-lora content, b-lora style, or any presets and patterns. "
                    "Empty: all that was trained, new words and text encoders too.",
                    optional=True,
                ),
            ],
            outputs=[
                output(io.String, "path", "The file as Load LoRA lists it."),
                output(
                    io.LoraModel,
                    "LORA_MODEL",
                    "What is in the file, for Load LoRA Model in the same graph.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, filename: str | None = None) -> bool | str:
        try:
            if filename:
                paths.safe_name(_stem(filename), "filename")
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        adapter: Any,
        filename: str,
        trigger: str,
        embed_workflow: bool,
        model: Any = None,
        clip: Any = None,
        blocks: str = "",
    ) -> io.NodeOutput:
        adapter = select(adapter, blocks)
        name = paths.safe_name(_stem(filename) or adapter.name, "filename")
        metadata = dict(adapter.metadata)
        if trigger.strip():
            metadata[_TRIGGER_KEY] = trigger.strip()
        workflow = {"prompt": cls.hidden.prompt, "extra_pnginfo": cls.hidden.extra_pnginfo}
        saved = result.save_lora(
            paths.loras_folder() / f"{name}.safetensors",
            dataclasses.replace(adapter, metadata=metadata),
            **(workflow if embed_workflow else {}),
        )
        listed = saved.relative_to(paths.loras_folder())
        said = [f"Saved as {listed} in output/loras"]
        if blocks.strip():
            said.append(f"Layers of {blocks.strip()}: {len(adapter.tensors)} tensors")
        if metadata.get(_TRIGGER_KEY):
            said.append(f"Trigger: {metadata[_TRIGGER_KEY]}")
        if model is None:
            said.append(
                f"{len(adapter.tensors)} tensors; connect a model to have the file checked."
            )
        else:
            said.append(result.self_check(saved, model, clip).text)
        report = "\n".join(said)
        graph.show_text(cls.hidden.unique_id, report)
        kept = result.lora_state_dict(adapter)
        return io.NodeOutput(str(listed), kept, ui={"text": [report]})


def _stem(filename: str) -> str:
    name = filename.strip()
    return name[: -len(".safetensors")] if name.lower().endswith(".safetensors") else name


NODES = [SaveLora]
