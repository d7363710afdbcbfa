# SPDX-License-Identifier: Apache-2.0
"""What is attached, what is minimized, and how it is stepped: values for the sockets of Train."""

from typing import Any

from comfy_api.latest import io

from ..adapters import NETWORKS
from ..adapters.lora import LoRA
from ..registry import Registry, options_of, parse_options, unknown
from ..trainers.objectives import METRICS, NOISE, NOISINGS, SAMPLES, WEIGHTS, Objective
from ..trainers.optimizers import OPTIMIZERS, SCHEDULES, Optimizer
from ..trainers.optimizers.adamw import AdamW
from ..trainers.optimizers.schedules.constant import Constant
from .schema import (
    GraftNetworkType,
    GraftObjectiveType,
    GraftOptimizerType,
    choice,
    field,
    output,
    schema,
    text,
)

PRESERVE_PROMPTS = (
    "Prompts whose pictures are to stay as they are, one a line. Empty: the captions without the "
    "trigger."
)
_OPTIONS = "Further settings as name=value, with commas between them. A wrong name is answered with the known ones."
_DECAY_MAX = 100.0
_OWN_LR = ", ".join(f"{OPTIMIZERS.get(name)().lr:g} for {name}" for name in OPTIMIZERS.names())
_LEARNING_RATE = f"Peak learning rate. 0 takes the optimizer's own: {_OWN_LR}."
Parts = dict[str, tuple[Registry[Any], str]]


class Network(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftNetwork",
            display_name="Network",
            category="graft/training/parts",
            description="What is attached to the model and trained, and to which of its layers.",
            search_aliases=["lora settings", "rank", "adapter", "blocks", "dim"],
            inputs=[
                choice(
                    "network",
                    "The kind of adapter. lora: the usual one. dora: learns direction and size apart, well at small "
                    "ranks. loha: rank squared in a file of twice a LoRA's size. lokr: the smallest files for their "
                    "rank. oft and boft: turn what is there and never stretch it. ia3: a few numbers a layer. "
                    "full: the weights themselves, without rank and alpha; set blocks to all. bottleneck: small "
                    "networks beside the blocks of a UNet.",
                    NETWORKS.names(),
                    "lora",
                ),
                field(LoRA, "rank", max=4096),
                field(LoRA, "alpha", max=4096.0, step=0.5),
                field(LoRA, "blocks"),
                text("options", _OPTIONS, advanced=True),
            ],
            outputs=[output(GraftNetworkType, "NETWORK", "For the network socket of Train.")],
        )

    @classmethod
    def execute(
        cls, network: str, rank: int, alpha: float, blocks: str, options: str
    ) -> io.NodeOutput:
        return io.NodeOutput(
            NETWORKS.parse(network, options, rank=rank, alpha=alpha, blocks=blocks)
        )


class ObjectiveNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftObjective",
            display_name="Objective",
            category="graft/training/parts",
            description=(
                "What is minimized: how noise levels are drawn, how much each counts, how an error is measured, and "
                "how much the model has to stay as it was."
            ),
            search_aliases=[
                "loss",
                "noise schedule",
                "min snr",
                "prior preservation",
                "timestep sampling",
            ],
            inputs=[
                choice(
                    "noise",
                    "How noise levels are drawn. model: from the model's own table. uniform, logit-normal, shifted: "
                    "for flow models, such as SD3 and Flux. log-normal, karras: for all others, such as SDXL and "
                    "EDM models.",
                    NOISE.names(),
                    "model",
                ),
                choice(
                    "weight",
                    "How much each noise level counts. one: the plain loss. min-snr, soft-min-snr: less where little "
                    "noise is left, which teaches texture. debiased: more where there is much noise, which decides "
                    "what is to be seen. p2: less for fine details. The help page has the others.",
                    WEIGHTS.names(),
                    "one",
                ),
                choice(
                    "metric",
                    "How the error is measured. l2: the mean square. huber: large errors pull less. l1: the absolute "
                    "error. smooth-l1: the same with a round bottom.",
                    METRICS.names(),
                    "l2",
                ),
                field(Objective, "preserve", max=100.0, step=0.05),
                text(
                    "preserve_prompts",
                    PRESERVE_PROMPTS,
                    multiline=True,
                ),
                text(
                    "options",
                    _OPTIONS
                    + " Where two parts have the same name, put noise., weight., metric. or noising. before it.",
                    advanced=True,
                ),
                choice(
                    "noising",
                    "What noise is added. gaussian: the model's own. offset: also moves whole channels, for dark and "
                    "bright pictures. pyramid: also noises large shapes.",
                    NOISINGS.names(),
                    "gaussian",
                    optional=True,
                    advanced=True,
                ),
                field(Objective, "preserve_on", optional=True),
                field(Objective, "class_word", optional=True),
            ],
            outputs=[output(GraftObjectiveType, "OBJECTIVE", "For the objective socket of Train.")],
        )

    @classmethod
    def execute(
        cls,
        noise: str,
        weight: str,
        metric: str,
        preserve: float,
        preserve_prompts: str,
        options: str,
        noising: str = "gaussian",
        preserve_on: str = SAMPLES,
        class_word: str = "",
    ) -> io.NodeOutput:
        parts: Parts = {
            "noise": (NOISE, noise),
            "weight": (WEIGHTS, weight),
            "metric": (METRICS, metric),
            "noising": (NOISINGS, noising),
        }
        built = parse_parts(parts, options, Objective)
        stay = {"preserve": preserve, "preserve_on": preserve_on, "class_word": class_word}
        prompts = lines(preserve_prompts)
        own = built.pop("settings")
        return io.NodeOutput(Objective(**(built | stay | own), preserve_prompts=prompts))


class OptimizerNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftOptimizer",
            display_name="Optimizer",
            category="graft/training/parts",
            description="How the weights are stepped, and how the learning rate runs over the plan.",
            search_aliases=["learning rate", "scheduler", "adamw", "warmup", "lr"],
            inputs=[
                choice(
                    "optimizer",
                    "The algorithm. adamw: for everything. adamw-8bit: a quarter of its memory, with a GPU and "
                    "bitsandbytes. adafactor: hardly any memory. lion: little memory and a smaller rate. prodigy: "
                    "finds the rate itself. schedule-free-adamw: needs no schedule.",
                    OPTIMIZERS.names(),
                    "adamw",
                ),
                field(AdamW, "lr", "learning_rate", max=10.0, step=1e-6, tooltip=_LEARNING_RATE),
                choice(
                    "schedule",
                    "The course of the learning rate. constant: as it is. cosine, linear, polynomial: down to 0 at the "
                    "last step. cosine-restarts: down to 0 and up again, several times.",
                    SCHEDULES.names(),
                    "constant",
                ),
                field(Constant, "warmup", max=1_000_000),
                field(AdamW, "weight_decay", max=_DECAY_MAX, step=0.001),
                text(
                    "options",
                    _OPTIONS
                    + " Where two parts have the same name, put optimizer. or schedule. before it.",
                    advanced=True,
                ),
                field(Optimizer, "ema_decay", step=0.001, optional=True, advanced=True),
            ],
            outputs=[output(GraftOptimizerType, "OPTIMIZER", "For the optimizer socket of Train.")],
        )

    @classmethod
    def execute(
        cls,
        optimizer: str,
        learning_rate: float,
        schedule: str,
        warmup: int,
        weight_decay: float,
        options: str,
        ema_decay: float = 0.0,
    ) -> io.NodeOutput:
        parts: Parts = {"optimizer": (OPTIMIZERS, optimizer), "schedule": (SCHEDULES, schedule)}
        widgets = {"warmup": warmup, "weight_decay": weight_decay}
        if learning_rate:
            widgets["lr"] = learning_rate
        built = parse_parts(parts, options, Optimizer, **widgets)
        algorithm, course, own = built["optimizer"], built["schedule"], built["settings"]
        return io.NodeOutput(Optimizer(algorithm, course, **{"ema_decay": ema_decay, **own}))


def lines(prompts: str) -> tuple[str, ...]:
    """The lines of a text that are not empty."""
    return tuple(line.strip() for line in prompts.splitlines() if line.strip())


def parse_parts(
    parts: Parts, options: str, settings: type | None = None, **values: Any
) -> dict[str, Any]:
    """Build several parts from one string of options; each option goes to the part that has it.

    Args:
        parts: Registry and name of every part, by its prefix.
        options: ``name=value`` pairs; ``prefix.name=value`` where several parts have the name.
        settings: What holds the parts, where it has options of its own: they come back as
            ``settings``, values by field.
        values: Values for the fields of that name, where a part has it.

    Raises:
        ValueError: No part has an option, or several have it.
    """
    fields = {
        prefix: set(options_of(registry.get(name))) for prefix, (registry, name) in parts.items()
    }
    if settings is not None:
        fields["settings"] = set(options_of(settings))
    shares: dict[str, list[str]] = {prefix: [] for prefix in fields}
    for option in filter(None, (part.strip() for part in options.replace("\n", ",").split(","))):
        key, _, value = (piece.strip() for piece in option.partition("="))
        prefix, _, short = key.rpartition(".")
        owners = [owner for owner in fields if short in fields[owner] and prefix in ("", owner)]
        if not owners:
            raise ValueError(
                unknown("option", key, {name for names in fields.values() for name in names})
            )
        if len(owners) > 1:
            clear = " or ".join(f"{owner}.{short}" for owner in owners)
            raise ValueError(f"Several parts have an option '{short}': write {clear}.")
        shares[owners[0]].append(f"{short}={value}" if "=" in option else short)
    built: dict[str, Any] = {
        prefix: registry.parse(name, ",".join(shares[prefix]), **values)
        for prefix, (registry, name) in parts.items()
    }
    if settings is not None:
        built["settings"] = parse_options(settings, settings.__name__, ",".join(shares["settings"]))
    return built


NODES = [Network, ObjectiveNode, OptimizerNode]
