# SPDX-License-Identifier: Apache-2.0
"""A content LoRA and a style LoRA as one, by learning."""

from typing import Any

from comfy_api.latest import io

from ..host import graph
from ..host.files import result
from ..host.merging.zip_loras import Subject, zip_loras
from ..trainers.data import with_caption
from ..trainers.plan import Plan
from ..trainers.zip_lora import ZipPlan
from .engine import check_name
from .schema import GraftAdapter, GraftDataset, field, output, schema, seed, socket, taken, text


class ZipLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftZipLora",
            display_name="Zip LoRAs",
            category="graft/training",
            description=(
                "ZipLoRA: puts a LoRA of a subject and a LoRA of a style together by learning how much each column of "
                "each counts, so that the merged one makes of each what it makes alone, and the two stay out of each "
                "other's way. The result is an ordinary LoRA."
            ),
            search_aliases=["ziplora", "merge lora", "content and style", "combine"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                socket(io.Model, "model", "The model that both were trained on, without them."),
                socket(io.Clip, "clip", "The CLIP of the model."),
                socket(io.Vae, "vae", "The VAE of the model."),
                socket(
                    GraftAdapter,
                    "content",
                    "The LoRA of what is to be seen: of a training node, or of Load LoRA To Train On.",
                ),
                socket(GraftAdapter, "style", "The LoRA of how it is to look, likewise."),
                socket(GraftDataset, "content_pictures", "Pictures that content was trained on."),
                socket(GraftDataset, "style_pictures", "Pictures that style was trained on."),
                text(
                    "content_prompt",
                    "What the pictures of content are called, in place of their captions; empty keeps those.",
                ),
                text("style_prompt", "What those of style are called, likewise."),
                field(ZipPlan, "steps"),
                field(ZipPlan, "learning_rate", max=10.0, step=1e-5),
                field(ZipPlan, "similarity_weight", step=0.001),
                field(ZipPlan, "similarity", advanced=True),
                field(ZipPlan, "batch_size"),
                seed("Seed of noise levels, noise and the order of pictures."),
                field(Plan, "precision", advanced=True),
                text("name", "What the ADAPTER is called.", "zipped"),
            ],
            outputs=[
                output(io.Model, "MODEL", "The model with both."),
                output(io.Clip, "CLIP", "The CLIP with the words of both."),
                output(GraftAdapter, "ADAPTER", "Both as one LoRA, for Save LoRA."),
                output(io.LoraModel, "LORA_MODEL", "The same for ComfyUI's own nodes."),
                output(io.Image, "IMAGE", "The loss of every step."),
                output(
                    io.String,
                    "report",
                    "How far the merged one is from each alone, before and after.",
                ),
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
        vae: Any,
        content: Any,
        style: Any,
        content_pictures: Any,
        style_pictures: Any,
        content_prompt: str,
        style_prompt: str,
        steps: int,
        learning_rate: float,
        similarity_weight: float,
        similarity: str,
        batch_size: int,
        seed: int,
        precision: str,
        name: str,
    ) -> io.NodeOutput:
        plan = ZipPlan(**taken(ZipPlan, locals()))
        one, other = (
            Subject(file, with_caption(pictures, said.strip()) if said.strip() else pictures)
            for file, pictures, said in (
                (content, content_pictures, content_prompt),
                (style, style_pictures, style_prompt),
            )
        )
        node = cls.hidden.unique_id
        made = zip_loras(
            model, clip, vae, one, other, plan, precision, name.strip() or "zipped", node
        )
        graph.show_text(node, made.report)
        lora = result.lora_state_dict(made.adapter)
        return io.NodeOutput(
            made.model,
            made.clip,
            made.adapter,
            lora,
            made.plot,
            made.report,
            ui={"text": [made.report]},
        )


NODES = [ZipLora]
