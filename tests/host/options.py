# SPDX-License-Identifier: Apache-2.0
"""Runs of tiny models that have every registered option between them, and data that vary in every way.

Import this module anywhere: it imports the host inside its functions only.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from . import tiny

STEPS = 3
MODELS = ("sdxl", "sdxl_v", "sdxl_edm", "sd3")  # eps, v, EDM and flow
# What is in no registry, of objective and optimizer, in turn.
OTHERS = (
    ({"stratified": True}, {}),
    ({"input_perturbation": 0.1}, {"ema_decay": 0.9}),
    ({"preserve": 0.7, "preserve_on": "instances", "class_word": "dog"}, {}),
    ({"mask_normalize": False}, {"loraplus_ratio": 4.0}),
    ({"sigma_min": 0.2, "sigma_max": 0.9, "preserve": 0.5, "preserve_prompts": ("a dog",)}, {}),
)


def varied(count: int = 4, **settings):
    """Pictures with masks, weights, repeats, two captions each, flips, crops, shuffled tags and caption dropout."""
    from graft.trainers.data import Captioning, Dataset, Framing, Item

    generator = torch.Generator().manual_seed(0)
    items = []
    for i in range(count):
        size = (64, 96) if i % 2 else (64, 64)
        pixels, mask = (
            torch.rand(*size, 3, generator=generator),
            torch.rand(*size, generator=generator),
        )
        captions = (f"a zork, thing {i}, red, blue", f"the zork, {i}, green")
        item = Item(captions, pixels=pixels, weight=1 + i / 4, repeats=1 + i % 2)
        items.append(dataclasses.replace(item, mask=mask) if i < 2 else item)
    how = Captioning(shuffle=True, dropout=0.3, tag_dropout=0.2, variants=4)
    return Dataset(
        tuple(items),
        trigger="zork",
        resolution=96,
        crops=2,
        captioning=how,
        framing=Framing(flip=True),
        **settings,
    )


def class_pictures(count: int = 3, size: int = 64):
    """Class images for `varied`."""
    from graft.trainers.data import Dataset, Item

    generator = torch.Generator().manual_seed(9)
    items = [
        Item(("a thing",), pixels=torch.rand(size, size, 3, generator=generator))
        for _ in range(count)
    ]
    return Dataset(tuple(items), resolution=96)


@dataclasses.dataclass(frozen=True)
class Choice:
    """A model, and the settings of a run that go together."""

    family: str
    objective: Any
    optimizer: Any
    has_classes: bool
    network: Any

    def __str__(self) -> str:
        objective, optimizer = self.objective, self.optimizer
        parts = (objective.noise, objective.weight, objective.metric, objective.noising)
        parts += (optimizer.algorithm, optimizer.schedule, self.network)
        return " ".join([self.family, *(part.name for part in parts)])


def choices() -> Iterator[Choice]:
    """Few choices that have every registered part in one of them, and each of ``OTHERS``.

    A part that goes with none of the models, or is not installed, is left out.
    """
    from graft.host.model.sampling import of_model
    from graft.trainers.objectives import METRICS, NOISE, NOISINGS, WEIGHTS
    from graft.trainers.optimizers import OPTIMIZERS, SCHEDULES

    registries = {
        "noise": NOISE,
        "weight": WEIGHTS,
        "metric": METRICS,
        "noising": NOISINGS,
        "algorithm": OPTIMIZERS,
        "schedule": SCHEDULES,
    }
    left = {
        kind: [registry.get(n) for n in registry.names()] for kind, registry in registries.items()
    }
    number = 0
    for family in MODELS:
        model = of_model(tiny.model(family))
        new = {kind: [p for p in parts if _fits(kind, p, model)] for kind, parts in left.items()}
        for turn in range(max(1, *map(len, new.values()))):
            parts = {kind: of[turn % len(of)]() for kind, of in new.items() if of}
            yield _choice(family, parts, number)
            number += 1
        left = {kind: [p for p in parts if p not in new[kind]] for kind, parts in left.items()}


def _fits(kind: str, part: type, model: Any) -> bool:
    from graft.trainers.objectives import Objective
    from graft.trainers.objectives.check import check
    from graft.trainers.optimizers import Optimizer

    try:
        if kind == "algorithm":
            Optimizer(part()).check(torch.device("cpu"))
        elif kind != "schedule":
            check(Objective(**{kind: part()}), model)
    except ValueError:
        return False
    return True


def _choice(family: str, parts: dict[str, Any], number: int) -> Choice:
    from graft.trainers.objectives import Objective
    from graft.trainers.optimizers import Optimizer

    objective, optimizer = ({**values} for values in OTHERS[number % len(OTHERS)])
    algorithm = parts.pop("algorithm", None) or Optimizer().algorithm
    schedule = parts.pop("schedule", None) or Optimizer().schedule
    if getattr(algorithm, "averages", False) or getattr(algorithm, "one_lr", False):
        optimizer = {}
    objective = {"preserve": 0.0, **parts, **objective, "zero_terminal": family == "sdxl_v"}
    objective["learn_log_variance"] = getattr(parts.get("weight"), "name", "") == "one"
    settings = Optimizer(algorithm, schedule, **optimizer)
    # That option is for LoRAs.
    network = _network(0 if "loraplus_ratio" in optimizer else number, family)
    return Choice(family, Objective(**objective), settings, number % 2 == 1, network)


def _network(number: int, family: str) -> Any:
    """The networks in turn that the family takes, with dropout; small, and of a LoRA's size for those with a rank."""
    from graft.adapters import NETWORKS

    wished = {"rank": 2, "blocks": "attention", "dropout": 0.1, "module_dropout": 0.1}
    root, able = tiny.model(family).model.diffusion_model, []
    for kind in map(NETWORKS.get, NETWORKS.names()):
        made = kind(**{k: v for k, v in wished.items() if k in kind.__dataclass_fields__})
        with contextlib.suppress(ValueError):  # the model has no such layers
            made.targets(root)
            able.append(made)
    return able[number % len(able)]


def train(choice: Choice, batch_size: int = 4, accumulate: int = 1, steps: int = STEPS):
    """A run of a choice on data that vary; the batch of a step may be cut into parts."""
    from graft.host import engine
    from graft.trainers.plan import Plan

    family = choice.family
    with torch.inference_mode():
        vae = tiny.vae(family) if family == "sd3" else tiny.kl_vae()
        model, clip = tiny.model(family), tiny.clip(family)
        request = engine.Request(
            model,
            varied(classes=class_pictures() if choice.has_classes else None, class_weight=0.5),
            vae,
            clip,
            network=choice.network,
            objective=choice.objective,
            optimizer=choice.optimizer,
            plan=Plan(steps, batch_size=batch_size, accumulate=accumulate),
        )
        return engine.train(request)


def gap(one: Any, other: Any) -> float:
    """The largest relative difference between the losses of two runs."""
    pairs = zip(one.loss_map["loss"], other.loss_map["loss"], strict=True)
    return max(abs(a - b) / abs(a) for a, b in pairs)


def same(one: Any, other: Any) -> bool:
    """Whether two runs have the same losses and weights, bit for bit."""
    ours, others = one.lora_model, other.lora_model
    return one.loss_map == other.loss_map and all(
        torch.equal(v, others[k]) for k, v in ours.items()
    )
