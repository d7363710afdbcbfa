# SPDX-License-Identifier: Apache-2.0
"""What all training nodes share: wires, the seven outputs in this order for ever, and the call of the engine."""

from typing import Any

from comfy_api.latest import io

from ..host import engine
from ..host.files import paths
from ..trainers.plan import Plan
from .length import plan_for
from .schema import (
    GraftAdapter,
    GraftDataset,
    GraftNetworkType,
    GraftPreviewType,
    GraftState,
    GraftTokens,
    field,
    output,
    socket,
)

HIDDEN = (io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo)
LORA_NAME = "What the LoRA is called, and the name of its file in output/loras. No folders."
RUN_SEED = "Seed of everything drawn in the run. Keep it fixed: the same graph and seed give the same LoRA."
# Kind and tooltip by the id, which is the name in the engine's request, too.
WIRES: dict[str, tuple[Any, str]] = {
    "model": (io.Model, "The model to train. It is not changed: the result is a new one."),
    "clip": (io.Clip, "Encodes the captions. Take the one of the model."),
    "vae": (io.Vae, "Encodes the pictures. Take the one of the model."),
    "dataset": (GraftDataset, "Pictures with captions, from Load Images For Training."),
}
EXTRAS: dict[str, tuple[Any, str]] = {
    "preview": (GraftPreviewType, "Samples pictures while it trains."),
    "sampler": (
        io.Sampler,
        "Samples the previews with this sampler instead of the preview's own.",
    ),
    "sigmas": (
        io.Sigmas,
        "Samples the previews over these noise levels instead of the preview's own.",
    ),
    "state": (
        GraftState,
        "Goes on from where another training node stopped, with the same settings.",
    ),
}
LATER: dict[str, tuple[Any, str]] = {  # last among the inputs
    "validation": (
        GraftDataset,
        "Pictures that are not trained on: their loss, always with the same noise, says whether the model gets better "
        "or learns the training pictures by heart.",
    ),
}
STARTS: dict[str, tuple[Any, str]] = {  # after all widgets
    "start_from": (
        GraftAdapter,
        "Trains this LoRA further instead of a fresh one: from Load LoRA To Train On, or the ADAPTER of a training "
        "node. The MODEL must not have it in it already.",
    ),
}
TEXTS: dict[str, tuple[Any, str]] = {  # after those
    "tokens": (
        GraftTokens,
        "New words that the text encoders learn, from Concept Token. With blocks none, only these are trained.",
    ),
    "text_network": (
        GraftNetworkType,
        "What is trained of the text encoders, from Network; blocks are theirs, attention or all. Without it they stay "
        "as they are. The Optimizer has a rate of its own for them, text_lr.",
    ),
}


SOCKETS = WIRES | EXTRAS | LATER | STARTS | TEXTS


def outputs() -> list[Any]:
    """The outputs of a training node. Links are saved by index: append only."""
    return [
        output(io.Model, "MODEL", "The model that came in, with the trained LoRA applied."),
        output(io.Clip, "CLIP", "The CLIP that came in, with what was trained of it applied."),
        output(
            io.LoraModel,
            "LORA_MODEL",
            "The LoRA as ComfyUI's own nodes take it (Load LoRA Model, Save LoRA).",
        ),
        output(
            GraftState,
            "STATE",
            "Where the training stands; put it into a training node to go on from there.",
        ),
        output(io.LossMap, "LOSS_MAP", "The loss of every step, for Plot Loss Graph."),
        output(
            io.Image,
            "IMAGE",
            "The last preview's pictures, or a plot of the loss where there is no preview.",
        ),
        output(GraftAdapter, "ADAPTER", "The LoRA with all that belongs to it, for Save LoRA."),
    ]


def sockets(*names: str, optional: bool = False) -> list[Any]:
    """Sockets of ``SOCKETS``, in the order of ``names``."""
    return [socket(SOCKETS[n][0], n, SOCKETS[n][1], optional=optional) for n in names]


def keeping(*names: str) -> list[Any]:
    """Widgets of what is kept while a run goes on: ``when_found``, then others of the plan's fields."""
    more = [field(Plan, name, optional=True, advanced=True) for name in names]
    return [field(Plan, "when_found", optional=True), *more]


def check_name(name: str | None) -> bool | str:
    """True when ``name`` can be a LoRA's name or is not known yet, else what is wrong with it."""
    try:
        if name is not None:
            paths.lora_name(name)
    except ValueError as error:
        return str(error)
    return True


def train(node: Any, inputs: dict[str, Any], note: str = "", **parts: Any) -> io.NodeOutput:
    """Run the engine for a node, and hand over what came of it.

    Args:
        node: The node's class, which holds the hidden inputs.
        inputs: The arguments of its ``execute``: what came over sockets, the name, and how long and how it trains.
        note: A line below the report.
        parts: Fields of the engine's request that the node makes itself.
    """
    hidden = node.hidden
    extra = hidden.extra_pnginfo if isinstance(hidden.extra_pnginfo, dict) else {}
    workflow = extra.get("workflow")
    asked: dict[str, Any] = {name: inputs.get(name) for name in SOCKETS} | {
        "plan": plan_for(inputs),
        "name": inputs["name"],
        "node_id": hidden.unique_id,
        "workflow_id": workflow.get("id") if isinstance(workflow, dict) else None,
    }
    made = engine.train(engine.Request(**asked | parts))
    return io.NodeOutput(
        made.model,
        made.clip,
        made.lora_model,
        made.state,
        made.loss_map,
        made.images,
        made.adapter,
        ui={"text": ["\n".join(filter(None, [made.report, note]))]},
    )
