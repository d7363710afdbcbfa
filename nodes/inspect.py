# SPDX-License-Identifier: Apache-2.0
"""What is in an adapter's file, and how two of them differ."""

from typing import Any

from comfy_api.latest import io

from ..host import graph
from ..host.files import inspection, lora_comparison, lora_files
from .schema import GraftAdapter, choice, output, schema, socket

_FILE = "A .safetensors file of ComfyUI's loras folders, or an example. Not read where something is connected to {}."
_WIRE = "The ADAPTER of a training node, in the place of {}."


class InspectLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftInspectLora",
            display_name="Inspect LoRA",
            category="graft/loaders",
            description=(
                "Shows what is in a LoRA file: dialect, kind of model, kinds of layers, ranks, how much each block is "
                "changed, how it was trained, and what is wrong with it. It works without a model."
            ),
            search_aliases=["lora info", "lora metadata", "lora rank", "trigger words"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                choice("file", _FILE.format("adapter"), lora_files.names()),
                socket(GraftAdapter, "adapter", _WIRE.format("the file"), optional=True),
                socket(
                    io.Model,
                    "model",
                    "The model to use it with: for changes relative to the weights, and how much of it fits.",
                    optional=True,
                ),
            ],
            outputs=[
                output(
                    io.Image,
                    "IMAGE",
                    "A map of the model: how much each block and kind of layer is changed.",
                ),
                output(io.String, "TEXT", "The report."),
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        return _check(file)

    @classmethod
    def fingerprint_inputs(cls, file: str | None, adapter: Any = None, model: Any = None) -> str:
        return "" if file is None else lora_files.fingerprint(file)

    @classmethod
    def execute(cls, file: str, adapter: Any = None, model: Any = None) -> io.NodeOutput:
        image, report = inspection.inspect(_given(file, adapter), model)
        graph.show_text(cls.hidden.unique_id, report)
        return io.NodeOutput(image, report, ui={"text": [report]})


class CompareLoras(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftCompareLoras",
            display_name="Compare LoRAs",
            category="graft/loaders",
            description=(
                "Compares two LoRAs of any dialects and ranks by what they change: layers in one of them only, and by "
                "block how far apart the changes are and whether they point the same way."
            ),
            search_aliases=["lora difference", "cosine similarity", "diff lora"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                choice("file_1", _FILE.format("adapter_1"), lora_files.names()),
                choice("file_2", _FILE.format("adapter_2"), lora_files.names()),
                socket(GraftAdapter, "adapter_1", _WIRE.format("the first file"), optional=True),
                socket(GraftAdapter, "adapter_2", _WIRE.format("the second file"), optional=True),
                socket(
                    io.Model,
                    "model",
                    "A model that they are for, where its layers have names of their own; its weights are not read.",
                    optional=True,
                ),
            ],
            outputs=[
                output(
                    io.Image, "IMAGE", "The cosine of the two changes by block and kind of layer."
                ),
                output(io.String, "TEXT", "The report."),
            ],
        )

    @classmethod
    def validate_inputs(cls, file_1: str | None = None, file_2: str | None = None) -> bool | str:
        first = _check(file_1)
        return first if first is not True else _check(file_2)

    @classmethod
    def fingerprint_inputs(
        cls,
        file_1: str | None,
        file_2: str | None,
        adapter_1: Any = None,
        adapter_2: Any = None,
        model: Any = None,
    ) -> str:
        return " ".join(lora_files.fingerprint(f) for f in (file_1, file_2) if f is not None)

    @classmethod
    def execute(
        cls,
        file_1: str,
        file_2: str,
        adapter_1: Any = None,
        adapter_2: Any = None,
        model: Any = None,
    ) -> io.NodeOutput:
        one, other = _given(file_1, adapter_1), _given(file_2, adapter_2)
        image, report = lora_comparison.compare(one, other, model)
        graph.show_text(cls.hidden.unique_id, report)
        return io.NodeOutput(image, report, ui={"text": [report]})


def _check(file: str | None) -> bool | str:
    try:
        if file is not None:
            lora_files.path(file)
    except ValueError as error:
        return str(error)
    return True


def _given(file: str, adapter: Any) -> Any:
    """A wire, or a file as it is, with all that is wrong with it."""
    return lora_files.load_as_is(file) if adapter is None else adapter


NODES = [InspectLora, CompareLoras]
