# SPDX-License-Identifier: Apache-2.0
"""Comparing: the LoRA files of several steps, and the losses of several runs."""

from typing import Any

from comfy_api.latest import io

from ..host import graph
from ..host.drawing.run_plot import COLORS, Limits, run_plot
from ..host.files import lora_list
from ..host.runs import curves as run_curves
from .schema import GraftAdapter, field, output, schema, socket, text, whole

SOCKETS = ("loss_1", "loss_2", "loss_3", "loss_4")
_NOT_WIRED = object()


class ListLoras(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftListLoras",
            display_name="List LoRA Steps",
            category="graft/training",
            description=(
                "Lists the LoRA files that a training wrote every n steps. Wire NAME to lora_name of Load LoRA: what "
                "follows runs once for each, so that one prompt samples a picture of every step."
            ),
            search_aliases=["compare loras", "xy plot", "lora grid", "checkpoints", "epochs"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                text(
                    "name",
                    "Name of the LoRA without the step, as the training node has it; * stands for any text. Empty "
                    "takes that of adapter.",
                ),
                socket(
                    GraftAdapter,
                    "adapter",
                    "The ADAPTER of a training node: the list is made when its training is done, and has only its "
                    "files.",
                    optional=True,
                ),
            ],
            outputs=[
                output(
                    io.AnyType,
                    "NAME",
                    "The files as Load LoRA lists them, by step. Wire it to lora_name.",
                    is_output_list=True,
                ),
                output(io.Int, "STEP", "The step of each file.", is_output_list=True),
                output(
                    io.String,
                    "LABEL",
                    "The name of each file without folder and extension, for filename_prefix of Save Image say.",
                    is_output_list=True,
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str | None = "", adapter: Any = _NOT_WIRED) -> Any:
        # A wired adapter says what is listed; the files are written only after this is asked.
        return lora_list.fingerprint(name or "") if adapter is _NOT_WIRED else ()

    @classmethod
    def execute(cls, name: str, adapter: Any = None) -> io.NodeOutput:
        if adapter is None:
            found = lora_list.find(name)
        else:
            found = lora_list.find(name.strip() or adapter.name, adapter.metadata)
        count = "1 file" if len(found) == 1 else f"{len(found)} files"
        said = "\n".join([count, *(one.file for one in found)])
        graph.show_text(cls.hidden.unique_id, said)
        return io.NodeOutput(
            [one.file for one in found],
            [one.step for one in found],
            [one.label for one in found],
            ui={"text": [said]},
        )


class CompareRuns(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        tooltip = "LOSS_MAP of a training node."
        return schema(
            node_id="GraftCompareRuns",
            display_name="Compare Runs",
            category="graft/training/reports",
            description=(
                "Draws the losses of several trainings on one axis: runs of this graph by their LOSS_MAP, earlier ones "
                "by name. With the limits set, two pictures have the same axis."
            ),
            search_aliases=["loss graph", "plot loss", "compare loss", "loss curve", "tensorboard"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                *(socket(io.LossMap, name, tooltip, optional=True) for name in SOCKETS),
                text(
                    "runs",
                    "Earlier runs, one a line: names of LoRAs (the newest run of each), or ids of runs, which are the "
                    "folders in output/graft.",
                    multiline=True,
                ),
                text(
                    "names",
                    "What the legend says, one a line: first the sockets, then the runs. Empty lines change nothing.",
                    multiline=True,
                ),
                field(Limits, "lowest"),
                field(Limits, "highest"),
                field(Limits, "first_step"),
                field(Limits, "last_step"),
                whole(
                    "smoothing",
                    "Steps that the lines are smoothed over, the same for all; 0 takes a twentieth of the longest run.",
                    0,
                    min=0,
                    max=100_000,
                ),
            ],
            outputs=[
                output(io.Image, "IMAGE", "The runs, each in a color of its own."),
                output(io.String, "TEXT", "The same in words."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, runs: str | None = "", **others: Any) -> Any:
        return run_curves.fingerprint(_lines(runs))

    @classmethod
    def execute(
        cls,
        runs: str,
        names: str,
        lowest: float,
        highest: float,
        first_step: int,
        last_step: int,
        smoothing: int,
        loss_1: Any = None,
        loss_2: Any = None,
        loss_3: Any = None,
        loss_4: Any = None,
    ) -> io.NodeOutput:
        limits = Limits(lowest, highest, first_step, last_step)
        wired = dict(zip(SOCKETS, (loss_1, loss_2, loss_3, loss_4), strict=True))
        curves = run_curves.gather(wired, _lines(runs), names.splitlines(), len(COLORS))
        window = smoothing or run_curves.window(curves)
        said = run_curves.describe(curves, window)
        graph.show_text(cls.hidden.unique_id, said)
        return io.NodeOutput(run_plot(curves, limits, window), said, ui={"text": [said]})


def _lines(text: str | None) -> list[str]:
    return [line.strip() for line in (text or "").splitlines() if line.strip()]


NODES = [ListLoras, CompareRuns]
