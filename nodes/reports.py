# SPDX-License-Identifier: Apache-2.0
"""What an objective does to a model's noise levels, and how the loss of a run depends on them."""

from typing import Any

from comfy_api.latest import io

from ..host.studies import reports
from .schema import GraftObjectiveType, output, schema, socket, whole


class ObjectiveReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftObjectiveReport",
            display_name="Objective Report",
            category="graft/training/reports",
            description=(
                "Draws which noise levels an objective trains a model at, and how much each counts, before anything "
                "is trained. An objective that does not go with the model is refused as Train would."
            ),
            search_aliases=[
                "noise schedule",
                "timestep histogram",
                "loss weight",
                "sigma histogram",
            ],
            is_output_node=True,
            inputs=[
                socket(io.Model, "model", "The model to be trained; it is not loaded."),
                socket(GraftObjectiveType, "objective", "What is to be minimized."),
            ],
            outputs=[
                output(io.Image, "IMAGE", "Bars: how often levels are drawn. Curve: the weight."),
                output(io.String, "TEXT", "The same in words."),
            ],
        )

    @classmethod
    def execute(cls, model: Any, objective: Any) -> io.NodeOutput:
        image, text = reports.objective_report(model, objective)
        return io.NodeOutput(image, text, ui={"text": [text]})


class LossReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftLossReport",
            display_name="Loss Report",
            category="graft/training/reports",
            description=(
                "Draws the loss of a training over the noise level: where the model errs, and where it learned. The "
                "loss over the steps alone mostly shows which levels were drawn."
            ),
            search_aliases=["loss graph", "loss per timestep", "loss by sigma", "plot loss"],
            is_output_node=True,
            inputs=[
                socket(io.LossMap, "loss_map", "The LOSS_MAP of one of Graft's training nodes."),
                whole("bins", "How many ranges of the noise level there are.", 16, min=1, max=100),
            ],
            outputs=[
                output(
                    io.Image,
                    "IMAGE",
                    "Bars: mean loss, with the number of pictures. Curve: the second half of the run.",
                ),
                output(io.String, "TEXT", "The same in words."),
            ],
        )

    @classmethod
    def execute(cls, loss_map: Any, bins: int) -> io.NodeOutput:
        image, text = reports.loss_report(loss_map, bins)
        return io.NodeOutput(image, text, ui={"text": [text]})


NODES = [ObjectiveReport, LossReport]
