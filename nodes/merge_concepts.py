# SPDX-License-Identifier: Apache-2.0
"""Several concepts of Custom Diffusion in one model."""

from typing import Any

from comfy_api.latest import io

from ..host import graph
from ..host.merging import concepts as host
from .config import lines
from .engine import check_name
from .schema import GraftAdapter, output, schema, socket, text

_ADAPTER = "The ADAPTER of {} training of Train Custom Diffusion, or of Load LoRA To Train On."


class MergeConcepts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftMergeConcepts",
            display_name="Merge Concepts",
            category="graft/training",
            description=(
                "Puts two to four trainings of Train Custom Diffusion into one model without training: each concept's "
                "prompt gets the keys and values that its own training gave it, and all else changes as little as can "
                "be."
            ),
            search_aliases=["custom diffusion", "merge concepts", "multi concept", "compose"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                socket(io.Model, "model", "The model that all concepts were trained on."),
                socket(io.Clip, "clip", "The CLIP of the model."),
                socket(GraftAdapter, "adapter_1", _ADAPTER.format("one")),
                socket(GraftAdapter, "adapter_2", _ADAPTER.format("another")),
                socket(GraftAdapter, "adapter_3", _ADAPTER.format("a third"), optional=True),
                socket(GraftAdapter, "adapter_4", _ADAPTER.format("a fourth"), optional=True),
                text(
                    "prompts",
                    "What each concept is called in prompts, one a line, in the order of the adapters: TOK dog. Empty: "
                    "a photo of its word.",
                    multiline=True,
                ),
                text(
                    "captions",
                    "Texts whose keys and values are to stay as they are, one a line, 200 and more. Empty: 200 "
                    "captions of all sorts of things.",
                    multiline=True,
                ),
                text("name", "What the merged ADAPTER is called.", "merged"),
            ],
            outputs=[
                output(io.Model, "MODEL", "The model with all concepts."),
                output(io.Clip, "CLIP", "The CLIP with all words."),
                output(GraftAdapter, "ADAPTER", "The merged change with all words, for Save LoRA."),
                output(io.String, "report", "How near each concept is to its own training."),
            ],
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        return check_name(name)

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        adapter_1: Any,
        adapter_2: Any,
        prompts: str,
        captions: str,
        name: str,
        adapter_3: Any = None,
        adapter_4: Any = None,
    ) -> io.NodeOutput:
        given = (adapter_1, adapter_2, adapter_3, adapter_4)
        adapters = [adapter for adapter in given if adapter is not None]
        made = host.merge(
            model, clip, adapters, lines(prompts), lines(captions), name, cls.hidden.unique_id
        )
        graph.show_text(cls.hidden.unique_id, made.report)
        return io.NodeOutput(
            made.model, made.clip, made.adapter, made.report, ui={"text": [made.report]}
        )


NODES = [MergeConcepts]
