# SPDX-License-Identifier: Apache-2.0
"""What is sampled while a run trains."""

from comfy_api.latest import io

from ..host import graph
from ..trainers.preview import Preview
from .config import lines
from .schema import GraftPreviewType, choice, field, number, output, schema, switch, text, whole


class PreviewNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftPreview",
            display_name="Training Preview",
            category="graft/training/parts",
            description=(
                "Samples pictures with ComfyUI's own sampler while a model trains, always from the same prompts and "
                "seeds, so that you see what changes."
            ),
            search_aliases=["sample during training", "validation prompts", "training samples"],
            inputs=[
                text(
                    "prompts",
                    "One prompt a line; one picture is made of each. Use the trigger in some and leave it out in "
                    "others.",
                    multiline=True,
                ),
                text("negative", "What the pictures should not be.", multiline=True),
                whole(
                    "width",
                    "Width in pixels; 0 is that of the training pictures.",
                    0,
                    min=0,
                    max=16384,
                    step=8,
                ),
                whole(
                    "height",
                    "Height in pixels; 0 is that of the training pictures.",
                    0,
                    min=0,
                    max=16384,
                    step=8,
                ),
                whole("steps", "Sampling steps.", 20, min=1, max=1000),
                number(
                    "cfg",
                    "Guidance: how closely the prompt is followed.",
                    7.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                ),
                choice("sampler_name", "The sampler.", graph.sampler_names(), "euler"),
                choice(
                    "scheduler",
                    "The course of the noise levels.",
                    graph.scheduler_names(),
                    "normal",
                ),
                whole(
                    "seed",
                    "Seed of the first picture; the others count on from it. Every preview has the same.",
                    0,
                    min=0,
                    max=2**64 - 1,
                    # A changing preview would train the model again on every run.
                    control_after_generate=False,
                ),
                whole("every", "Training steps between two previews.", 100, min=1, max=1_000_000),
                switch("at_start", "Also sample before the first step.", True),
                field(Preview, "rows", optional=True),
            ],
            outputs=[
                output(GraftPreviewType, "PREVIEW", "For the preview socket of a training node.")
            ],
        )

    @classmethod
    def execute(
        cls,
        prompts: str,
        negative: str,
        width: int,
        height: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        seed: int,
        every: int,
        at_start: bool,
        rows: str = "samples",
    ) -> io.NodeOutput:
        names = (sampler_name, scheduler)
        sampling = (width, height, steps, cfg, *names, seed)
        return io.NodeOutput(Preview(lines(prompts), negative, *sampling, every, at_start, rows))


NODES = [PreviewNode]
