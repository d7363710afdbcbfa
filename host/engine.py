# SPDX-License-Identifier: Apache-2.0
"""One training run on the MODEL on the wire: check, encode, train, apply, save, report.

Everything that can be wrong with the input is found before training starts; whatever ends the run,
what was learned so far is on disk and the host is as it was.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..adapters import NETWORKS, Network
from ..adapters.attach import Attached
from ..adapters.file import AdapterFile
from ..adapters.targets import targets
from ..trainers.data import Dataset
from ..trainers.events import Ended, Sample, Saved, Started, Warned
from ..trainers.loop import Diverged, Loop
from ..trainers.objectives import Objective
from ..trainers.optimizers import Optimizer
from ..trainers.plan import Plan
from ..trainers.preview import Preview
from ..trainers.state import State
from . import autoencoder, identity, paths, plots, preview, result, runs
from .conditioning import Conditioner, Texts, family_check
from .progress import RunSink
from .trainee import Trainee, refuse_untrainable, trainee
from .training_data import Picture, TrainingData, encode_pictures, prior_prompts

LARGE_MODEL = 500_000_000  # parameters from which "auto" checkpoints on a GPU
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Request:
    """What a training node asks for: values from its sockets and widgets."""

    model: Any
    dataset: Dataset
    vae: Any = None
    clip: Any = None
    network: Network = field(default_factory=NETWORKS.get("lora"))
    objective: Objective = field(default_factory=Objective)
    optimizer: Optimizer = field(default_factory=Optimizer)
    plan: Plan = field(default_factory=Plan)
    preview: Preview | None = None
    sampler: Any = None
    sigmas: Any = None
    state: State | None = None
    name: str = "graft"
    node_id: str | None = None
    prompt_id: str | None = None
    workflow_id: str | None = None
    extra_pnginfo: Any = None


@dataclass(frozen=True, eq=False)
class Outcome:
    """The seven outputs of a training node, and what to tell the user."""

    model: Any
    clip: Any
    lora_model: dict[str, torch.Tensor]
    state: State
    loss_map: dict[str, list[float]]
    images: torch.Tensor
    adapter: AdapterFile
    report: str
    run: str


def train(request: Request) -> Outcome:
    """Train a network on the MODEL on the wire.

    Raises:
        ValueError: Something in the input cannot be trained; says what came and what to do.
        RuntimeError: The training diverged or the host could not load the model.
    """
    with torch.inference_mode(False):
        return _Run(request).go()


class _Run:
    """One call of the engine."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.name = paths.safe_name(request.name, "name of the LoRA")
        _check(request)
        self.run = _run_id(request)
        paths.check_writable(paths.loras_folder())
        paths.check_writable(paths.run_folder(self.run))
        done = request.state.step if request.state else 0
        self.sink = RunSink(
            self.run,
            request.node_id,
            done + request.plan.steps,
            prompt_id=request.prompt_id,
            workflow_id=request.workflow_id,
        )
        self.images: torch.Tensor | None = None
        self.loop: Loop
        self.is_ready = False
        self.facts: dict[str, Any] = {"run": self.run, "name": self.name}

    def go(self) -> Outcome:
        """Train, then make the outputs; keep the work whatever happens."""
        try:
            is_whole = self._train()
            outcome = self._deliver()
        except BaseException as error:
            self._keep(error)
            raise
        self.sink(Ended("done" if is_whole else "finished", outcome.report))
        return outcome

    def _train(self) -> bool:
        request = self.request
        pictures = encode_pictures(request.dataset, request.vae, request.model, _interrupt)
        captions = [item.caption for item in request.dataset.items]
        preserve = request.objective.preserve > 0
        priors = (
            prior_prompts(request.dataset, request.objective.preserve_prompts) if preserve else ()
        )
        texts = Texts().encode(request.clip, [*captions, *priors])
        family_check(request.model, request.clip, texts[captions[0]])
        prompts = preview.encode_prompts(request.clip, request.preview) if request.preview else None
        self.facts["free memory before (GiB)"] = free_memory()
        with trainee(request.model, precision=request.plan.precision) as trained:
            conditioner = Conditioner(trained.patcher, trained.device)
            data = TrainingData(pictures, captions, texts, priors, conditioner, trained.device)
            attached = Attached(
                trained.diffusion_model, request.network, request.plan.seed, trained.device
            )
            try:
                is_checkpointed = _checkpoints(request.plan, trained)
                trained.checkpointing(is_checkpointed)
                self.facts["gradient checkpointing"] = is_checkpointed
                loop = self.loop = self._new_loop(trained, data, attached)
                self.is_ready = True
                loop.after = self._after(trained, prompts, commonest_size(pictures))
                self._announce(trained, attached, pictures)
                return loop.run()
            finally:
                attached.remove()
                self.facts["free memory after (GiB)"] = free_memory()

    def _new_loop(self, trained: Trainee, data: TrainingData, attached: Attached) -> Loop:
        request = self.request
        loop = Loop(
            trained.denoiser,
            data,
            attached,
            request.objective,
            request.optimizer,
            request.plan,
            sink=self.sink,
            poll=self._poll,
        )
        if request.state is not None:
            loop.resume(request.state)
        return loop

    def _announce(self, trained: Trainee, attached: Attached, pictures: Sequence[Picture]) -> None:
        loop = self.loop
        self.facts |= {
            "pictures": len(pictures),
            "buckets": dict(Counter(f"{w}x{h}" for w, h in (picture.size for picture in pictures))),
            "layers": len(attached.layers),
            "trained parameters": sum(p.numel() for p in attached.parameters().values()),
            "precision": str(trained.compute_dtype).removeprefix("torch."),
            "device": str(trained.device),
        }
        self.sink(Started(loop.end, loop.step, dict(self.facts)))
        for text in self.request.dataset.warnings:
            self.sink(Warned(text))
        if loop.end > loop.total:
            text = f"The plan ends at step {loop.total}; the last learning rate holds after it."
            self.sink(Warned(text))

    def _poll(self) -> bool:
        _interrupt()
        return runs.wants_finish(self.run)

    def _after(
        self, trained: Trainee, prompts: Any, size: tuple[int, int]
    ) -> Callable[[int], None]:
        """What happens between steps: previews, and a file when the user asks for one."""
        settings = self.request.preview

        def after(step: int) -> None:
            if runs.wants_save(self.run):
                self._save_so_far(f"{self.name}_step{step:06}")
            if settings is not None and settings.due(step, self.loop.end):
                self._preview(step, trained, prompts, settings, size)

        return after

    def _preview(
        self, step: int, trained: Trainee, prompts: Any, settings: Preview, size: tuple[int, int]
    ) -> None:
        request = self.request
        given = {"size": size, "sampler": request.sampler, "sigmas": request.sigmas}
        try:
            self.images = preview.sample(trained, prompts, settings, request.vae, **given)
            self.sink(Sample(step, preview.save_samples(self.images, self.run, step)))
        except Exception as error:
            if is_interrupt(error):
                raise
            _log.exception("The preview after step %d failed", step)
            text = f"The preview after step {step} failed ({error}); training goes on."
            self.sink(Warned(text))

    def _adapter(self, name: str) -> AdapterFile:
        """What is trained so far, as a value: no clock, path or counter is in it."""
        request, tensors = self.request, self.loop.network.tensors()
        facts = {
            "steps": self.loop.step,
            "seed": request.plan.seed,
            "effective_batch": request.plan.effective_batch,
            "network": repr(request.network),
            "objective": repr(request.objective),
            "optimizer": repr(request.optimizer),
            "dataset": request.dataset.digest(),
            "pictures": len(request.dataset.items),
        }
        metadata = result.lora_metadata(
            tensors,
            request.model,
            title=self.name,
            trigger=request.dataset.trigger,
            resolution=request.dataset.resolution,
            facts=facts,
        )
        return AdapterFile(tensors, metadata, name)

    def _save_so_far(self, name: str) -> str:
        path = result.save_lora(paths.loras_folder() / f"{name}.safetensors", self._adapter(name))
        where = paths.relative_to_output(path)
        self.sink(Saved(self.loop.step, where))
        return where

    def _deliver(self) -> Outcome:
        loop, request = self.loop, self.request
        adapter = self._adapter(self.name)
        path = result.save_lora(paths.run_folder(self.run) / f"{self.name}.safetensors", adapter)
        self.sink(Saved(loop.step, paths.relative_to_output(path)))
        check = result.self_check(path, request.model)
        if not check.complete:
            self.sink(Warned(f"The LoRA would not load whole: {check.text}"))
        model, _ = result.apply(request.model, adapter.tensors)
        images = self.images if self.images is not None else plots.loss_plot(loop.losses)
        return Outcome(
            model=model,
            clip=request.clip,
            lora_model=result.lora_state_dict(adapter),
            state=loop.state(),
            loss_map={"loss": list(loop.losses)},
            images=images,
            adapter=adapter,
            report=self._report(check.text, paths.relative_to_output(path)),
            run=self.run,
        )

    def _report(self, check: str, where: str) -> str:
        losses, facts = self.loop.losses, self.facts
        smooth = plots.smoothed(losses)
        return "\n".join(
            [
                f"{self.name}: {self.loop.step} steps, loss {smooth[min(19, len(smooth) - 1)]:.4f} -> {smooth[-1]:.4f}",
                f"{facts['layers']} layers, {facts['trained parameters']:,} parameters in {facts['precision']}",
                check,
                f"free memory {facts['free memory before (GiB)']} -> {facts['free memory after (GiB)']} GiB",
                f"kept in output/{where}",
            ]
        )

    def _keep(self, error: BaseException) -> None:
        """Save what was learned before the run ended badly, and say so."""
        state, text = "interrupted" if is_interrupt(error) else "error", str(error)
        begun = self.request.state.step if self.request.state else 0
        if self.is_ready and self.loop.step > begun:
            try:
                where = self._save_so_far(f"{self.name}_step{self.loop.step:06}")
                text = f"{text} The LoRA after {self.loop.step} steps is kept in output/{where}.".strip()
            except Exception:  # noqa: BLE001 - must not hide what ended the run
                _log.exception("The LoRA after %d steps could not be saved", self.loop.step)
        self.sink(Ended(state, text))
        if isinstance(error, Diverged):
            raise Diverged(text) from error


def _check(request: Request) -> None:
    """Find what is wrong with the input before anything is loaded or written."""
    for kind in ("clip", "vae"):
        if getattr(request, kind) is None:
            raise ValueError(f"No {kind.upper()} is connected; training needs that of the model.")
    count, batch = len(request.dataset.items), request.plan.batch_size
    if batch > count:
        raise ValueError(
            f"batch_size is {batch} but the dataset has {count} pictures; lower batch_size or add pictures."
        )
    refuse_untrainable(request.model)
    autoencoder.check_family(request.vae, request.model)
    targets(request.model.model.diffusion_model, request.network.blocks)
    if request.preview is not None:
        preview.check(request.preview)
    if request.state is not None and request.state.seed != request.plan.seed:
        raise ValueError(
            f"The state was trained with seed {request.state.seed}, not {request.plan.seed}; use the same seed."
        )


def _run_id(request: Request) -> str:
    state = request.state and (request.state.step, request.state.total_steps)
    settings = (request.network, request.objective, request.optimizer, request.plan, state)
    return identity.run_id(request.model, request.dataset.digest(), *settings)


def _checkpoints(plan: Plan, trained: Trainee) -> bool:
    if plan.checkpointing != "auto":
        return plan.checkpointing == "on"
    is_large = sum(p.numel() for p in trained.diffusion_model.parameters()) >= LARGE_MODEL
    return is_large and trained.device.type != "cpu"


def commonest_size(pictures: Sequence[Picture]) -> tuple[int, int]:
    """Width and height in pixels of the largest bucket."""
    return Counter(picture.size for picture in pictures).most_common(1)[0][0]


def free_memory() -> float:
    """Free memory of the host's device in GiB, with two decimals."""
    import comfy.model_management

    device = comfy.model_management.get_torch_device()
    return round(comfy.model_management.get_free_memory(device) / 2**30, 2)


def is_interrupt(error: BaseException) -> bool:
    """Whether the user cancelled, as against a failure."""
    import comfy.model_management

    return isinstance(
        error, comfy.model_management.InterruptProcessingException | KeyboardInterrupt
    )


def _interrupt() -> None:
    import comfy.model_management

    comfy.model_management.throw_exception_if_processing_interrupted()
