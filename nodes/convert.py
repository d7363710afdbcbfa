# SPDX-License-Identifier: Apache-2.0
"""An adapter in another dialect or rank, and one from the difference of two models."""

from typing import Any

from comfy_api.latest import io

from ..host import graph
from ..host.files import conversion, extraction, lora_files, paths
from ..loaders.writing.changes import Wish
from ..loaders.writing.dialects import DIALECTS
from .engine import check_name
from .schema import (
    GraftAdapter,
    choice,
    number,
    one_of,
    output,
    schema,
    socket,
    switch,
    text,
    whole,
)

_BY = ("keep", "rank", "energy")


class ConvertLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftConvertLora",
            display_name="Convert LoRA",
            category="graft/loaders",
            description=(
                "Saves a LoRA in the dialect that another program reads, in other numbers or with another rank, and "
                "reads it back. What a dialect cannot hold is refused by name."
            ),
            search_aliases=["resize lora", "convert lora", "kohya", "diffusers", "peft", "svd"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=[
                choice(
                    "file",
                    "A .safetensors file of ComfyUI's loras folders, or an example. Not read where something is "
                    "connected to adapter.",
                    lora_files.names(),
                ),
                choice("dialect", "Whose names of layers and tensors the file has.", DIALECTS),
                choice(
                    "dtype",
                    "The kind of its numbers; keep leaves them bit for bit.",
                    list(conversion.DTYPES),
                ),
                choice(
                    "resize",
                    "keep leaves the ranks. rank gives every layer the nearest LoRA of that rank; energy the least "
                    "rank that keeps this share of the squared change.",
                    _BY,
                ),
                whole("rank", "Where resize is rank: the rank of every layer.", 8, min=1, max=4096),
                number(
                    "energy",
                    "Where resize is energy: the share of every layer's squared change that is kept.",
                    0.99,
                    min=0.01,
                    max=1.0,
                ),
                text(
                    "filename",
                    "Name of the file, without folders; empty takes the LoRA's with the dialect behind it. A file that "
                    "is there is not replaced: a number is added.",
                ),
                switch(
                    "embed_workflow",
                    "Keep this workflow in the file, unless ComfyUI forbids metadata.",
                    True,
                ),
                socket(
                    GraftAdapter,
                    "adapter",
                    "The ADAPTER of a training node, in the place of a file.",
                    optional=True,
                ),
                socket(
                    io.Model,
                    "model",
                    "The model that it was trained on: to check the file with, and for the magnitudes of a DoRA.",
                    optional=True,
                ),
            ],
            outputs=[
                output(io.String, "path", "The file as Load LoRA lists it."),
                output(
                    GraftAdapter, "ADAPTER", "What is in the file, under ComfyUI's generic names."
                ),
                output(io.String, "report", "What was made of it, and how much was kept."),
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None, filename: str | None = None) -> bool | str:
        try:
            if file is not None:
                lora_files.path(file)
        except ValueError as error:
            return str(error)
        return check_name(filename) if filename else True

    @classmethod
    def fingerprint_inputs(
        cls,
        file: str | None,
        dialect: str | None = None,
        dtype: str | None = None,
        resize: str | None = None,
        rank: int | None = None,
        energy: float | None = None,
        filename: str | None = None,
        embed_workflow: bool | None = None,
        adapter: Any = None,
        model: Any = None,
    ) -> str:
        return "" if file is None else lora_files.fingerprint(file)

    @classmethod
    def execute(
        cls,
        file: str,
        dialect: str,
        dtype: str,
        resize: str,
        rank: int,
        energy: float,
        filename: str,
        embed_workflow: bool,
        adapter: Any = None,
        model: Any = None,
    ) -> io.NodeOutput:
        given = lora_files.load_any(file) if adapter is None else adapter
        made = conversion.convert(given, dialect, dtype, _wish(resize, rank, energy), model)
        workflow = {"prompt": cls.hidden.prompt, "extra_pnginfo": cls.hidden.extra_pnginfo}
        saved, checked = conversion.save(
            made, filename, dialect, model, **(workflow if embed_workflow else {})
        )
        listed = str(saved.relative_to(paths.loras_folder()))
        report = "\n".join([f"Saved as {listed} in output/loras", *made.notes, checked])
        graph.show_text(cls.hidden.unique_id, report)
        return io.NodeOutput(listed, made.adapter, report, ui={"text": [report]})


class ExtractLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftExtractLora",
            display_name="Extract LoRA",
            category="graft/loaders",
            description=(
                "Makes a LoRA of the difference of two models of one kind: a checkpoint that was trained whole, or a "
                "model with any patches. Every layer is the nearest one of its rank."
            ),
            search_aliases=["extract lora", "difference", "svd", "checkpoint to lora"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                socket(io.Model, "base", "The model that the LoRA is for; its patches count."),
                socket(
                    io.Model, "tuned", "What base with the LoRA should be; its patches count, too."
                ),
                choice(
                    "by",
                    "rank gives every layer this rank; energy the least rank that keeps this share of the squared "
                    "change.",
                    _BY[1:],
                ),
                whole("rank", "Where by is rank: the rank of every layer.", 32, min=1, max=4096),
                number(
                    "energy",
                    "Where by is energy: the share of every layer's squared change that is kept.",
                    0.95,
                    min=0.01,
                    max=1.0,
                ),
                switch(
                    "rest",
                    "Biases, norms and other vectors as full differences; without it they are left out.",
                    True,
                ),
                text("name", "What the ADAPTER is called.", "extracted"),
            ],
            outputs=[
                output(
                    GraftAdapter,
                    "ADAPTER",
                    "The LoRA, for Save LoRA, Convert LoRA and Load Adapter.",
                ),
                output(io.String, "report", "How much of the difference it is."),
            ],
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        return check_name(name)

    @classmethod
    def execute(
        cls, base: Any, tuned: Any, by: str, rank: int, energy: float, rest: bool, name: str
    ) -> io.NodeOutput:
        wish = _wish(by, rank, energy) or Wish()
        made, report = extraction.extract(base, tuned, wish, rest, name, cls.hidden.unique_id)
        graph.show_text(cls.hidden.unique_id, report)
        return io.NodeOutput(made, report, ui={"text": [report]})


def _wish(by: str, rank: int, energy: float) -> Wish | None:
    wishes = {"keep": None, "rank": Wish(rank=rank), "energy": Wish(energy=energy)}
    return wishes[one_of("by", by, wishes)]


NODES = [ConvertLora, ExtractLora]
