# SPDX-License-Identifier: Apache-2.0
"""The trainers that are compared: each trains a LoRA on every linear and convolution layer, fp32, AdamW.

A contender is a function ``(subject, model, pictures, steps, checkpointing) -> marks``; a mark is the clock at the
end of a step, so the time of a step is the difference of two marks, with all that goes on between two steps.
"""

import gc
import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .subjects import Pictures, Subject

RANK = 8
ALL, ATTENTION = "all", "attention"  # coverages, in our block language
LEARNING_RATE = 1e-4
Contender = Callable[[Subject, Any, Pictures, int, bool], list[float]]


def graft(
    subject: Subject,
    model: Any,
    pictures: Pictures,
    steps: int,
    checkpointing: bool,
    blocks: str = ALL,
) -> list[float]:
    """Our trainer: the engine's trainee, adapters, loop and event sink; no preservation, which core has not."""
    from graft.adapters import NETWORKS
    from graft.host.files import paths
    from graft.host.runs.progress import RunSink
    from graft.trainers.events import Ended, Progress, Started
    from graft.trainers.plan import Plan

    marks: list[float] = []
    paths.run_folder("be" * 8)
    sink = RunSink("be" * 8, None, steps)

    def record(event: Any) -> None:
        sink(event)
        if isinstance(event, Progress):
            marks.append(time.perf_counter())

    plan = Plan(steps=steps, batch_size=subject.batch, precision="fp32")
    network = NETWORKS.get("lora")(rank=RANK, blocks=blocks)
    with training(subject, model, pictures, plan, record, network) as (trained, loop):
        trained.checkpointing(checkpointing)
        record(Started(steps, 0, {}))
        loop.run()
        record(Ended("done", ""))
    return marks


@contextmanager
def training(
    subject: Subject,
    model: Any,
    pictures: Pictures,
    plan: Any,
    sink: Callable[[Any], None],
    network: Any = None,
) -> Iterator[tuple[Any, Any]]:
    """Our trainer, ready for its first step: the trainee and the loop; with another network where one is given."""
    import comfy.model_management as mm

    from graft.adapters import NETWORKS
    from graft.adapters.attach import Attached
    from graft.host.data.training_data import Held, Picture, TrainingData
    from graft.host.model import layer_weights
    from graft.host.model.trainee import trainee
    from graft.host.text.conditioning import Conditioner, Encoded
    from graft.trainers.loop import Loop
    from graft.trainers.objectives import Objective
    from graft.trainers.optimizers import OPTIMIZERS, Optimizer

    count = len(pictures.latents)
    size = (subject.latent[1] * 8, subject.latent[0] * 8)
    captions = [f"picture {i}" for i in range(count)]
    texts = {
        caption: Encoded(pictures.text[i : i + 1], {"pooled_output": pictures.pooled[i : i + 1]})
        for i, caption in enumerate(captions)
    }
    encoded = [
        Picture(model.model.process_latent_in(latent[None]), size, size[::-1], ((0, 0),))
        for latent in pictures.latents
    ]

    def poll() -> bool:
        mm.throw_exception_if_processing_interrupted()
        return False

    network = network or NETWORKS.get("lora")(rank=RANK, blocks="all")
    optimizer = Optimizer(OPTIMIZERS.get("adamw")(lr=LEARNING_RATE))
    with torch.inference_mode(False), trainee(model, precision="fp32") as trained:
        conditioner = Conditioner(trained.patcher, trained.device)
        held = Held(list(zip(encoded, captions, strict=True)))
        data = TrainingData(held, (), texts, conditioner, trained.device)
        where = (plan.seed, trained.device, layer_weights.fetch)
        attached = Attached(trained.diffusion_model, network, *where)
        try:
            objective = Objective(preserve=0.0)
            parts = (trained.denoiser, data, attached, objective, optimizer)
            yield trained, Loop(*parts, plan, sink=sink, poll=poll)
        finally:
            attached.remove()


def core(
    subject: Subject, model: Any, pictures: Pictures, steps: int, checkpointing: bool
) -> list[float]:
    """ComfyUI's TrainLoraNode through its own `execute`; it trains biases and norms, too."""
    import comfy.model_management as mm
    from comfy_extras import nodes_train

    marks: list[float] = []

    class Bar(nodes_train.ProgressBar):  # type: ignore[misc, name-defined]
        """The bar that the node moves at the end of every step."""

        def update(self, value: int) -> None:
            super().update(value)
            marks.append(time.perf_counter())

    conditionings = [
        [[pictures.text[i : i + 1], {"pooled_output": pictures.pooled[i : i + 1]}]]
        for i in range(len(pictures.latents))
    ]
    values = {
        "batch_size": subject.batch,
        "grad_accumulation_steps": 1,
        "steps": steps,
        "learning_rate": LEARNING_RATE,
        "rank": RANK,
        "optimizer": "AdamW",
        "loss_function": "MSE",
        "seed": 0,
        "training_dtype": "fp32",
        "lora_dtype": "fp32",
        "algorithm": "LoRA",
        "gradient_checkpointing": checkpointing,
        "existing_lora": "[None]",
        # Since 0.7 or later:
        "quantized_backward": False,
        "checkpoint_depth": 1,
        "offloading": False,
        "bucket_mode": False,
        "bypass_mode": False,
    }
    execute = nodes_train.TrainLoraNode.execute
    known = inspect.signature(execute).parameters
    inputs = {name: [value] for name, value in values.items() if name in known}
    original, nodes_train.ProgressBar = nodes_train.ProgressBar, Bar
    try:
        with torch.inference_mode():
            execute(
                model=[model],
                latents=[{"samples": latent[None]} for latent in pictures.latents],
                positive=conditionings,
                **inputs,
            )
    finally:
        nodes_train.ProgressBar = original
        mm.unload_all_models()
        gc.collect()
    return marks


CONTENDERS: dict[str, Contender] = {"graft": graft, "core": core}
