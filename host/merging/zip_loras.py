# SPDX-License-Identifier: Apache-2.0
"""ZipLoRA on the MODEL on the wire: a content LoRA and a style LoRA, each with pictures of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ...adapters.attach import Attached
from ...adapters.file import AdapterFile
from ...adapters.learned import MODEL
from ...adapters.zip import NEITHER, Turn, Zip
from ...loaders import dialects
from ...loaders.merging.cat import joined
from ...trainers.data import Dataset
from ...trainers.objectives import Objective
from ...trainers.plan import Plan
from ...trainers.zip_lora import Reading, Zipping, ZipPlan
from .. import graph
from ..data.picture_index import Digests
from ..data.preparation import Preparation
from ..drawing import plots
from ..files import paths, result
from ..model.trainee import trainee
from ..request import Request, check
from ..runs.stopping import interrupt
from ..text.words import with_words
from .changes import Changes, read
from .loras import _words as words_of


@dataclass(frozen=True, eq=False)
class Subject:
    """A LoRA, and pictures with captions of what it was trained on."""

    file: AdapterFile
    pictures: Dataset


@dataclass(frozen=True, eq=False)
class Zipped:
    """What came of it."""

    model: Any
    clip: Any
    adapter: AdapterFile
    plot: torch.Tensor
    report: str


def zip_loras(
    model: Any,
    clip: Any,
    vae: Any,
    content: Subject,
    style: Subject,
    plan: ZipPlan,
    precision: str = "auto",
    name: str = "zipped",
    node_id: str | None = None,
) -> Zipped:
    """Learn how two LoRAs go together.

    Args:
        model: The MODEL that both were trained on, without them.
        clip: Its CLIP.
        vae: Its VAE.
        content: What is to be seen.
        style: How it is to look.
        plan: Steps, rates, the overlap.
        precision: What is computed in.
        name: Of the result.
        node_id: Where progress is shown.

    Raises:
        ValueError: Something in the input does not go together.
        Diverged: A loss was no finite number.
    """
    with torch.inference_mode(False):
        parts = [read(one.file, model, clip, False) for one in (content, style)]
        words, text = words_of(parts), _text(parts)
        network = Zip(_pairs(parts), Turn())
        knowing = _knowing(model, clip, text, words)
        prepared = [
            _prepared(model, knowing, vae, one, network, plan, node_id) for one in (content, style)
        ]
        tensors, losses, lines = _learned(model, prepared, network, plan, precision, node_id)
        every = tensors | text | words
        facts = {"zipped": [content.file.name, style.file.name], "zip_plan": repr(plan)}
        metadata = result.lora_metadata(every, model, title=name, facts=facts)
        patched, _, report = result.apply_both(model, clip, tensors | text)
    head = f"'{content.file.name}' and '{style.file.name}': {network.shared} of {len(network.pairs)} layers are in both"
    told = "\n".join([head, report.text, *lines, *_notes(parts, text)])
    adapter = AdapterFile(every, metadata, name)
    return Zipped(patched, knowing, adapter, plots.loss_plot(losses), told)


def _knowing(
    model: Any, clip: Any, text: dict[str, torch.Tensor], words: dict[str, torch.Tensor]
) -> Any:
    """The CLIP with the text encoders' layers and words of both."""
    patched = result.apply_both(model, clip, text)[1] if text else clip
    return with_words(patched, words) if words else patched


def _notes(parts: list[Changes], text: dict[str, torch.Tensor]) -> list[str]:
    summed = ["text encoders' layers are summed as they are"] if text else []
    return [*summed, *(note for part in parts for note in part.notes)]


def _pairs(parts: list[Changes]) -> dict[str, Any]:
    """Both changes by the module's name."""
    own = [
        {k.removeprefix(MODEL): p for k, p in part.pairs.items() if k.startswith(MODEL)}
        for part in parts
    ]
    names = dict.fromkeys([*own[0], *own[1]])
    shared = [name for name in names if all(name in one for one in own)]
    if not shared:
        raise ValueError(
            f"'{parts[0].name}' and '{parts[1].name}' change no layer in common, so that there is nothing to learn: "
            "Merge LoRAs with the mode 'sum' puts them together exactly."
        )
    return {name: (own[0].get(name), own[1].get(name)) for name in names}


def _text(parts: list[Changes]) -> dict[str, torch.Tensor]:
    """The text encoders' layers of both, summed."""
    made: dict[str, torch.Tensor] = {}
    layers = [layer for part in parts for layer in part.pairs if dialects.is_text(layer)]
    for layer in dict.fromkeys(layers):
        own = [part.pairs[layer] for part in parts if layer in part.pairs]
        pair = joined(own, [1.0] * len(own))
        made[f"{layer}.lora_up.weight"] = pair.up
        made[f"{layer}.lora_down.weight"] = pair.down
        made[f"{layer}.alpha"] = torch.tensor(pair.alpha)
    return made


def _prepared(
    model: Any,
    clip: Any,
    vae: Any,
    subject: Subject,
    network: Zip,
    plan: ZipPlan,
    node_id: str | None,
) -> Preparation:
    """The pictures and captions of a subject, encoded."""
    request = Request(
        model=model,
        dataset=subject.pictures,
        vae=vae,
        clip=clip,
        network=network,
        objective=Objective(preserve=0.0),
        plan=Plan(batch_size=plan.batch_size, seed=plan.seed),
    )
    check(request)

    def stage(text: str, total: int) -> Callable[..., None]:
        graph.show_text(node_id, f"'{subject.file.name}': {text} ({total})")
        return lambda count=1: interrupt()

    digests = Digests(paths.cache_folder() / "files")
    made = Preparation(request, digests, stage, lambda text: graph.show_text(node_id, text))
    made.encode()
    return made


def _learned(
    model: Any,
    prepared: list[Preparation],
    network: Zip,
    plan: ZipPlan,
    precision: str,
    node_id: str | None,
) -> tuple[dict[str, torch.Tensor], list[float], list[str]]:
    """The tensors of the result, the losses, and what was measured."""
    import comfy.utils

    bar = comfy.utils.ProgressBar(plan.steps)

    def tell(step: int, loss: float) -> None:
        bar.update_absolute(step, plan.steps)
        graph.show_text(node_id, f"step {step} of {plan.steps}, loss {loss:.4g}")

    with trainee(model, precision=precision) as trained:
        content, style = (one.data(trained) for one in prepared)
        attached = Attached(trained.diffusion_model, network, plan.seed, trained.device)
        try:
            run = Zipping(
                trained.denoiser, content, style, attached, network.turn, plan, interrupt, tell
            )
            graph.show_text(node_id, "measuring how far the sum is from each")
            before = run.measure()
            losses = run.run()
            lines = _lines(before, run.measure(), run.measure(NEITHER))
            return attached.tensors(), losses, lines
        finally:
            attached.remove()


def _lines(before: Reading, after: Reading, without: Reading) -> list[str]:
    """What was measured at the same draws before, after, and of the model without the two."""
    return [
        f"distance from the content LoRA alone: {before.content:.3e} as a plain sum, {after.content:.3e} now, "
        f"{without.content:.3e} without both",
        f"distance from the style LoRA alone: {before.style:.3e} as a plain sum, {after.style:.3e} now, "
        f"{without.style:.3e} without both",
        f"overlap of the factors: {before.overlap:.3f} as a plain sum, {after.overlap:.3f} now",
    ]
