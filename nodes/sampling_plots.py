# SPDX-License-Identifier: Apache-2.0
"""Noise levels and the steps of a sampler as pictures."""

from typing import Any

from comfy_api.latest import io

from ..host import graph
from ..host.sampling import plots, recorder
from .schema import GraftSteps, output, schema, socket, switch, text

SOCKETS = ("sigmas_1", "sigmas_2", "sigmas_3", "sigmas_4", "sigmas_5", "sigmas_6")


class PlotSigmas(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        tooltip = "SIGMAS of any schedule."
        return schema(
            node_id="GraftPlotSigmas",
            display_name="Plot Sigmas",
            category="graft/sampling",
            description="Draws up to six courses of noise levels on one axis.",
            hidden=[io.Hidden.unique_id],
            search_aliases=["sigmas graph", "noise schedule", "scheduler plot", "visualize sigmas"],
            is_output_node=True,
            inputs=[
                *(socket(io.Sigmas, name, tooltip, optional=True) for name in SOCKETS),
                text(
                    "names",
                    "What the legend says, one a line, in the order of the sockets; empty lines change nothing.",
                    multiline=True,
                ),
                switch(
                    "logarithmic",
                    "Draw the levels by their logarithm; the last, 0, is left out then.",
                    True,
                ),
            ],
            outputs=[
                output(
                    io.Image,
                    "IMAGE",
                    "The levels over the steps, each SIGMAS in a color of its own.",
                ),
                output(io.String, "TEXT", "The same in words."),
            ],
        )

    @classmethod
    def execute(
        cls,
        names: str,
        logarithmic: bool,
        sigmas_1: Any = None,
        sigmas_2: Any = None,
        sigmas_3: Any = None,
        sigmas_4: Any = None,
        sigmas_5: Any = None,
        sigmas_6: Any = None,
    ) -> io.NodeOutput:
        wired = (sigmas_1, sigmas_2, sigmas_3, sigmas_4, sigmas_5, sigmas_6)
        given = dict(zip(SOCKETS, wired, strict=True))
        image, said = plots.plot_sigmas(given, names.splitlines(), logarithmic)
        graph.show_text(cls.hidden.unique_id, said)
        return io.NodeOutput(image, said, ui={"text": [said]})


class RecordSteps(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftRecordSteps",
            display_name="Record Steps",
            category="graft/sampling",
            description=(
                "A SAMPLER that samples as the one connected here does, whatever pack it is of, and keeps how large D "
                "was at each step, for Plot Steps."
            ),
            search_aliases=["sampler trace", "denoised norm", "count model calls", "nfe"],
            inputs=[socket(io.Sampler, "sampler", "Any SAMPLER.")],
            outputs=[
                output(io.Sampler, "SAMPLER", "The same SAMPLER, recorded."),
                output(GraftSteps, "STEPS", "The record, for Plot Steps."),
            ],
        )

    @classmethod
    def execute(cls, sampler: Any) -> io.NodeOutput:
        return io.NodeOutput(*recorder.record(sampler))


class PlotSteps(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftPlotSteps",
            display_name="Plot Steps",
            category="graft/sampling",
            description=(
                "Draws how large the denoised latent D was at each step of a sampler, and how much it changed: where a "
                "picture is made, and which steps could be saved. With STEPS of Guide Model, the losses at each call."
            ),
            hidden=[io.Hidden.unique_id],
            search_aliases=["denoised norm", "sampler graph", "sampling trace", "nfe"],
            is_output_node=True,
            inputs=[
                socket(GraftSteps, "steps", "STEPS of Record Steps or Guide Model."),
                socket(
                    io.Latent,
                    "latent",
                    "What the node that sampled put out: its record is drawn, and the drawing waits for it.",
                ),
            ],
            outputs=[
                output(
                    io.Image,
                    "IMAGE",
                    "Root mean square of D and of its change over the steps, or the losses over the calls.",
                ),
                output(
                    io.String, "TEXT", "The same in words, with the evaluations of the model (NFE)."
                ),
            ],
        )

    @classmethod
    def execute(cls, steps: Any, latent: Any) -> io.NodeOutput:
        image, said = plots.plot_steps(steps, latent)
        graph.show_text(cls.hidden.unique_id, said)
        return io.NodeOutput(image, said, ui={"text": [said]})


NODES = [PlotSigmas, RecordSteps, PlotSteps]
