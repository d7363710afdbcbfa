# SPDX-License-Identifier: Apache-2.0
"""Pictures inverted, gone through again, and edited on the way."""

from typing import Any

from comfy_api.latest import io

from ..host import graph
from ..host.sampling import editing
from ..host.sampling.inversion import invert, replayed
from ..samplers.editing import Edit as Settings
from ..samplers.inversion import INVERSIONS
from ..samplers.inversion.methods.ddim import InvertDDIM
from .schema import (
    GraftEditsType,
    GraftInversionType,
    choice,
    field,
    number,
    output,
    schema,
    seed,
    socket,
    text,
)

_OPTIONS = (
    "Further settings as name=value, commas between them: tolerance=1e-5, guess=latent (ddim, dpmpp-2m, edm-heun), "
    "sweeps=3 (dpmpp-2m), eta=1 (ledits-ddim). A wrong name is answered with the known ones."
)


class Invert(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftInvert",
            display_name="Invert Picture",
            category="graft/sampling",
            description=(
                "Finds the noise that a sampler makes a given picture of, so that the picture can be edited on the way "
                "back: by DDIM or DPM-Solver++ inversion, or as LEDITS++ does it, without error. For Replay Inversion."
            ),
            hidden=[io.Hidden.unique_id],
            search_aliases=[
                "ddim inversion",
                "unsampler",
                "ledits",
                "edit friendly",
                "noise inversion",
                "image editing",
            ],
            inputs=[
                socket(
                    io.Guider,
                    "guider",
                    "The model with the prompt of the picture, or an empty one; a Basic Guider, or a CFG Guider with a "
                    "low cfg.",
                ),
                socket(
                    io.Sigmas,
                    "sigmas",
                    "The levels as a schedule makes them, falling to 0: 20 to 50 steps.",
                ),
                socket(io.Latent, "latent", "The picture, of VAE Encode; any number of them."),
                choice(
                    "method",
                    "ledits-dpmpp, ledits-ddim: noise is drawn for each step, and what the step lacks is kept; exact, "
                    "one evaluation a step, for edits. ddim, dpmpp-2m, edm-heun: the sampler's own way back to one "
                    "noise, which any deterministic sampler can start at.",
                    INVERSIONS.names(),
                    "ledits-dpmpp",
                ),
                seed("Of the noise that ledits-dpmpp and ledits-ddim draw."),
                field(InvertDDIM, "iterations"),
                text("options", _OPTIONS, advanced=True),
            ],
            outputs=[
                output(GraftInversionType, "INVERSION", "For Replay Inversion."),
                output(io.String, "TEXT", "Steps, evaluations of the model, and how exact it is."),
            ],
        )

    @classmethod
    def execute(
        cls,
        guider: Any,
        sigmas: Any,
        latent: Any,
        method: str,
        seed: int,
        iterations: int,
        options: str,
    ) -> io.NodeOutput:
        settings = INVERSIONS.parse(method, options, iterations=iterations)
        made, said = invert(guider, sigmas, latent, settings, seed)
        graph.show_text(cls.hidden.unique_id, said)
        return io.NodeOutput(made, said)


class ReplayInversion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftReplayInversion",
            display_name="Replay Inversion",
            category="graft/sampling",
            description=(
                "The way of an inversion as SAMPLER, SIGMAS and LATENT for SamplerCustomAdvanced: with the GUIDER that "
                "it was made with it leads to the picture, with Edit Guider to the edited one."
            ),
            hidden=[io.Hidden.unique_id],
            search_aliases=["resampler", "ledits", "edit friendly", "ddim inversion"],
            inputs=[
                socket(GraftInversionType, "inversion", "Of Invert Picture."),
                number(
                    "skip",
                    "Share of the steps to leave out, from the noisiest on: more keeps more of the picture. 0.1 to 0.4 "
                    "with ledits; 0 with others.",
                    0.2,
                    min=0.0,
                    max=1.0,
                ),
            ],
            outputs=[
                output(
                    io.Sampler,
                    "SAMPLER",
                    "Begins where the inversion was and keeps to its noise; what comes as noise is not looked at.",
                ),
                output(io.Sigmas, "SIGMAS", "The levels that are left."),
                output(
                    io.Latent,
                    "LATENT",
                    "The noised latent that it begins with, for any sampler with Disable Noise.",
                ),
                output(io.String, "TEXT", "Which steps are gone."),
            ],
        )

    @classmethod
    def execute(cls, inversion: Any, skip: float) -> io.NodeOutput:
        sampler, sigmas, latent, said = replayed(inversion, skip)
        graph.show_text(cls.hidden.unique_id, said)
        return io.NodeOutput(sampler, sigmas, latent, said)


class Edit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftEdit",
            display_name="Edit",
            category="graft/sampling",
            description=(
                "One edit of a picture: what it should get or lose, how strongly, where and when (LEDITS++). For Edit "
                "Guider; any number may be joined."
            ),
            search_aliases=["ledits", "sega", "semantic guidance", "image editing", "concept"],
            inputs=[
                text(
                    "text", "What the picture should get or lose, in a few words.", multiline=True
                ),
                field(Settings, "direction"),
                field(Settings, "scale", step=0.5),
                field(Settings, "threshold"),
                field(Settings, "mask", "where"),
                field(Settings, "start_percent"),
                field(Settings, "end_percent"),
                socket(io.Clip, "clip", "Reads the text: the CLIP of the model.", optional=True),
                socket(
                    io.Conditioning,
                    "conditioning",
                    "In the place of what the CLIP makes of the text; connect both for a mask by the text's words.",
                    optional=True,
                ),
                socket(
                    io.Mask,
                    "mask",
                    "Where the picture may be edited, drawn by hand; white is edited, and other masks act within it.",
                    optional=True,
                ),
                socket(
                    GraftEditsType,
                    "edits",
                    "Other edits that act at the same time.",
                    optional=True,
                ),
            ],
            outputs=[output(GraftEditsType, "EDITS", "For Edit Guider, or another Edit.")],
        )

    @classmethod
    def execute(
        cls,
        text: str,
        direction: str,
        scale: float,
        threshold: float,
        where: str,
        start_percent: float,
        end_percent: float,
        clip: Any = None,
        conditioning: Any = None,
        mask: Any = None,
        edits: Any = (),
    ) -> io.NodeOutput:
        settings = Settings(direction, scale, threshold, where, start_percent, end_percent)
        made = editing.wanted(settings, text, clip, conditioning, mask)
        return io.NodeOutput((*edits, made))


class EditGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftEditGuider",
            display_name="Edit Guider",
            category="graft/sampling",
            description=(
                "A GUIDER that does what the one connected here does, and edits: the picture is drawn to the texts of "
                "the edits, or away from them, where and when they say. With Replay Inversion, or for new pictures."
            ),
            hidden=[io.Hidden.unique_id],
            search_aliases=["ledits", "sega", "semantic guidance", "image editing"],
            inputs=[
                socket(
                    io.Guider,
                    "guider",
                    "The one that the picture was inverted with: without edits the picture comes out as it went in.",
                ),
                socket(GraftEditsType, "edits", "Of Edit.", optional=True),
            ],
            outputs=[
                output(io.Guider, "GUIDER", "For SamplerCustomAdvanced."),
                output(io.String, "TEXT", "The edits in words, and what they cost."),
            ],
        )

    @classmethod
    def execute(cls, guider: Any, edits: Any = ()) -> io.NodeOutput:
        made, said = editing.editing(guider, edits)
        graph.show_text(cls.hidden.unique_id, said)
        return io.NodeOutput(made, said)


NODES = [Invert, ReplayInversion, Edit, EditGuider]
