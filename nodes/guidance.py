# SPDX-License-Identifier: Apache-2.0
"""Guidance by a color, a picture or a text, for whatever samples a MODEL."""

from typing import Any

from comfy_api.latest import io

from ..host.sampling import guidance as host
from ..host.sampling import guidance_targets as targets
from ..host.sampling.guidance_view import DECODERS, VAE
from ..samplers.guidance import COURSES, LOSSES, Term
from ..samplers.guidance.losses.color import Color
from .config import parse_parts
from .schema import GraftGuidanceType, GraftSteps, choice, field, output, schema, socket, text

_OPTIONS = (
    "Further settings as name=value, with commas between them: metric=l2 (color, image), cuts=8, smallest=0.2, turn=0, "
    "flip=no (clip), last=0.2 (the share of the strength at the end of a schedule). A wrong name is answered with the "
    "known ones."
)


class Guidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftGuidance",
            display_name="Guidance",
            category="graft/sampling",
            description=(
                "What pictures should become more like while they are sampled, beside what the prompt says: a color, "
                "another picture, or a text as CLIP understands it. For Guide Model."
            ),
            search_aliases=[
                "clip guidance",
                "color guidance",
                "classifier guidance",
                "loss guidance",
                "universal guidance",
            ],
            inputs=[
                choice(
                    "guidance",
                    "color: all pixels are drawn to a color. image: to the pixels of a picture. perceptual: to what "
                    "the VAE makes of a picture, which is less strict about places. clip: to a text.",
                    LOSSES.names(),
                    "color",
                ),
                field(
                    Term,
                    "strength",
                    step=0.5,
                    tooltip="How strongly the picture is drawn there; begin with 5 to 100. Losses are means over a "
                    "picture, so one of four times as many pixels needs four times the strength. Less than 0 pushes "
                    "away.",
                ),
                field(
                    Color,
                    "color",
                    tooltip="For color: as #1ae680 or as 26 230 128. The others do not look at it.",
                ),
                text("text", "For clip: what the picture should show.", multiline=True),
                choice(
                    "schedule",
                    "The course of the strength between start_percent and end_percent. constant: always the same. "
                    "linear, cosine: falling to 0, or to the option last.",
                    COURSES.names(),
                    "constant",
                ),
                field(Term, "start_percent", step=0.01),
                field(Term, "end_percent", step=0.01),
                text("options", _OPTIONS, advanced=True),
                socket(
                    io.Image,
                    "image",
                    "For image and perceptual: the picture, scaled and cropped to the size of what is sampled. Of "
                    "several the first goes with the first latent of a batch, and so on.",
                    optional=True,
                ),
                socket(io.Clip, "clip", "For clip: the CLIP that reads the text.", optional=True),
                socket(
                    io.ClipVision,
                    "clip_vision",
                    "For clip: the picture half of the same CLIP.",
                    optional=True,
                ),
                socket(
                    GraftGuidanceType,
                    "more",
                    "Another Guidance that acts at the same time; any number may be joined.",
                    optional=True,
                ),
            ],
            outputs=[
                output(GraftGuidanceType, "GUIDANCE", "For Guide Model, or another Guidance.")
            ],
        )

    @classmethod
    def execute(
        cls,
        guidance: str,
        strength: float,
        color: str,
        text: str,
        schedule: str,
        start_percent: float,
        end_percent: float,
        options: str,
        image: Any = None,
        clip: Any = None,
        clip_vision: Any = None,
        more: Any = (),
    ) -> io.NodeOutput:
        parts: dict[str, Any] = {"guidance": (LOSSES, guidance), "schedule": (COURSES, schedule)}
        values: dict[str, Any] = {"color": color} if guidance == "color" else {}
        built = parse_parts(parts, options, None, **values)
        loss = built["guidance"]
        target = targets.of_wires(loss, text, image, clip, clip_vision)
        reach = (strength, start_percent, end_percent)
        return io.NodeOutput((*more, Term(loss, built["schedule"], *reach, target)))


class GuideModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftGuideModel",
            display_name="Guide Model",
            category="graft/sampling",
            description=(
                "A model that is guided wherever it is sampled: by KSampler, or by SamplerCustomAdvanced with any "
                "guider, sampler and sigmas. The model itself is not changed."
            ),
            search_aliases=["clip guidance", "color guidance", "loss guidance", "guider"],
            inputs=[
                socket(io.Model, "model", "The model to be sampled."),
                socket(GraftGuidanceType, "guidance", "What guides it."),
                choice(
                    "method",
                    "denoised: the gradient of the loss at each step's denoised picture; costs little more than "
                    "decoding it. network: the gradient goes on through the model to the noisy picture, which follows "
                    "what the model can draw; a step takes three times as long and the memory of a training step "
                    "without checkpointing.",
                    host.METHODS,
                    host.DENOISED,
                ),
                choice(
                    "decode",
                    "How latents become pixels. vae: exactly; with gradients the VAE of SD and SDXL takes 16 KiB a "
                    "pixel in fp32, which is 4 GiB for 512 x 512 and 16 GiB for 1024 x 1024, half in bf16. fast: by "
                    "the map of ComfyUI's previews at an eighth of the size, next to free. pixels: for a model "
                    "that draws no latents.",
                    DECODERS,
                    VAE,
                ),
                socket(
                    io.Vae, "vae", "The VAE of the model; decode fast needs none.", optional=True
                ),
            ],
            outputs=[
                output(io.Model, "MODEL", "The model, guided."),
                output(
                    GraftSteps,
                    "STEPS",
                    "The losses at each call of the model while it is sampled, for Plot Steps.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, guidance: Any, method: str, decode: str, vae: Any = None
    ) -> io.NodeOutput:
        return io.NodeOutput(*host.guide(model, guidance, method=method, decoder=decode, vae=vae))


NODES = [Guidance, GuideModel]
