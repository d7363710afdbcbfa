# SPDX-License-Identifier: Apache-2.0
"""Training states to files and back."""

from typing import Any

from comfy_api.latest import io

from ..host import graph
from ..host.files import paths, states
from .schema import GraftState, choice, output, schema, socket, text


class SaveState(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftSaveState",
            display_name="Save Training State",
            category="graft/training",
            description=(
                "Saves where a training stands into output/graft/states: weights, optimizer, averages, step and seed. "
                "Load Training State gives it back, bit for bit, to go on from there."
            ),
            search_aliases=["checkpoint training", "save optimizer", "resume", "pause training"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                socket(GraftState, "state", "The STATE of a training node."),
                text(
                    "filename",
                    "Name of the file, without folders; the step is added. A file that is there is not replaced: a "
                    "number is added.",
                    "graft",
                ),
            ],
            outputs=[
                output(GraftState, "STATE", "The state that came in."),
                output(io.String, "file", "The file as Load Training State lists it."),
            ],
        )

    @classmethod
    def validate_inputs(cls, filename: str | None = None) -> bool | str:
        try:
            if filename is not None:
                paths.lora_name(filename)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, state: Any, filename: str) -> io.NodeOutput:
        name = f"{paths.lora_name(filename)}_step{state.step:06}"
        saved = states.save(states.states_folder(), name, state)
        size = saved.stat().st_size / 2**20
        report = (
            f"Saved as output/{paths.relative_to_output(saved)} ({size:.1f} MiB)\n{_about(state)}"
        )
        graph.show_text(cls.hidden.unique_id, report)
        return io.NodeOutput(state, states.name_of(saved), ui={"text": [report]})


class LoadState(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftLoadState",
            display_name="Load Training State",
            category="graft/training",
            description=(
                "Loads where a training stood. Wire it to the state of a training node with the model, the pictures "
                "and the settings of then, and it goes on from there."
            ),
            search_aliases=["resume training", "continue training", "training checkpoint"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                choice(
                    "state",
                    "Of Save Training State, or what a run that was cut off left in its own folder.",
                    states.names(),
                ),
            ],
            outputs=[
                output(GraftState, "STATE", "For the state socket of a training node."),
                output(io.Int, "step", "Steps that were trained."),
            ],
        )

    @classmethod
    def validate_inputs(cls, state: str | None = None) -> bool | str:
        try:
            if state is not None:
                states.find(state)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, state: str) -> Any:
        try:
            status = states.find(state).stat()
        except (OSError, ValueError):
            return state
        return f"{state} {status.st_size} {status.st_mtime_ns}"

    @classmethod
    def execute(cls, state: str) -> io.NodeOutput:
        loaded = states.load(states.find(state))
        report = _about(loaded)
        graph.show_text(cls.hidden.unique_id, report)
        return io.NodeOutput(loaded, loaded.step, ui={"text": [report]})


def _about(state: Any) -> str:
    averaged = ", averaged" if state.ema else ""
    return (
        f"after step {state.step} of {state.total_steps}, seed {state.seed}: {len(state.adapter)} tensors{averaged}\n"
        f"{state.settings}"
    )


NODES = [SaveState, LoadState]
