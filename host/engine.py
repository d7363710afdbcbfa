# SPDX-License-Identifier: Apache-2.0
"""One training run on the MODEL on the wire: check, encode, train, apply, save, report.

Everything that can be wrong with the input is found before training starts; whatever ends the run,
what was learned so far is on disk and the host is as it was.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..adapters.attach import Attached
from ..adapters.file import AdapterFile
from ..trainers.events import Ended, Sample, Started, Warned
from ..trainers.loop import Diverged, Loop
from ..trainers.monitor import Monitor
from ..trainers.preview import Preview
from ..trainers.state import State
from . import (
    comparison,
    graph,
    health,
    identity,
    memory,
    memory_plan,
    paths,
    picture_rows,
    plots,
    preview,
    result,
    runs,
    sampling,
)
from .keeper import Keeper
from .picture_index import Digests
from .preparation import Preparation
from .progress import RunSink
from .request import Request, check, check_state
from .trainee import Trainee, trainee
from .training_data import TrainingData

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Outcome:
    """The seven outputs of a training node, and what to tell the user."""

    model: Any
    clip: Any
    lora_model: dict[str, torch.Tensor]
    state: State
    loss_map: dict[str, list[Any]]
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
        self.name = paths.lora_name(request.name)
        check(request)
        if request.objective.zero_terminal:  # trained with, and part of MODEL out
            request = self.request = replace(request, model=sampling.zero_terminal(request.model))
        self.model = identity.model_digest(request.model)
        self.digests = Digests(paths.cache_folder() / "files")
        contents = (self.digests.picture, self.digests.mask)  # what an unchanged file is known by
        self.dataset = request.dataset.digest(*contents)
        self.notes = list(request.dataset.warnings)
        if request.state is not None:
            self.notes += check_state(request.state, request, self.model)
        begun = request.state and (request.state.step, request.state.total_steps)
        settings: tuple[Any, ...] = (request.settings, request.plan, begun)
        if request.validation is not None:
            held_out = request.validation
            settings += (held_out.digest(*contents),)
            self.notes += health.notes(request.dataset, held_out, request.plan, contents[0])
        self.run = identity.run_id(self.model, self.dataset, *settings)
        paths.check_writable(paths.loras_folder())
        paths.check_writable(paths.run_folder(self.run))
        done = request.state.step if request.state else 0
        self.sink = RunSink(
            self.run,
            request.node_id,
            done + request.plan.steps,
            workflow_id=request.workflow_id,
        )
        self.keeper = Keeper(request, self.name, self.run, self.model, self.dataset, self.sink)
        self.images: torch.Tensor | None = None
        self.shown: comparison.Shown | None = None
        self.loop: Loop
        self.monitor: Monitor
        self.is_ready = self.is_announced = False
        self.facts: dict[str, Any] = {"run": self.run, "name": self.name}

    def go(self) -> Outcome:
        """Train, then make the outputs; keep the work whatever happens."""
        try:
            is_whole = self._train()
            outcome = self._deliver(is_whole)
        except BaseException as error:
            self._keep(error)
            raise
        finally:
            if self.is_ready:
                del self.loop  # its callbacks hold this object: a cycle around the trained weights
        self.sink(Ended("done" if is_whole else "finished", outcome.report))
        return outcome

    def _train(self) -> bool:
        request = self.request
        prepared = Preparation(request, self.digests, self._stage, self._warn, _interrupt)
        prepared.encode()
        prompts = preview.encode_prompts(request.clip, request.preview) if request.preview else None
        self._tell("loading the model")
        self.facts["free memory before (GiB)"] = free_memory()
        with trainee(request.model, precision=request.plan.precision) as trained:
            data = prepared.data(trained)
            attached = Attached(
                trained.diffusion_model, request.network, request.plan.seed, trained.device
            )
            try:
                loop = self.loop = self._new_loop(trained, data, attached)
                given = (_interrupt, self._tell, self._warn)
                self.facts |= memory_plan.plan(loop, trained, *given)
                watched = (trained, attached, request.plan, self.sink)
                held_out = prepared.held_out_data(trained)
                monitor = self.monitor = health.watch(*watched, held_out, _interrupt, loop.memory)
                if request.optimizer.averages:
                    monitor.readings["averaged"] = loop.averaged
                self.is_ready = True
                loop.monitor = monitor
                loop.after = self._after(trained, prompts, prepared.size, data)
                self._announce(trained, attached, prepared.facts)
                before = request.state.validation if request.state else ()
                monitor.begin(loop.step, loop.losses, before)
                is_whole = loop.run()
                monitor.finish(loop.step)
                return is_whole
            finally:
                attached.remove()

    def _tell(self, text: str) -> None:
        _log.info("%s: %s", self.name, text)
        graph.show_text(self.request.node_id, text)

    def _stage(self, text: str, total: int) -> Callable[..., None]:
        """Count ``total`` of something in the node; call what is returned before each."""
        _log.info("%s: %s (%d)", self.name, text, total)
        tell = self.sink.stage(text, total)

        def begin(count: int = 1) -> None:
            _interrupt()
            tell(count)

        return begin

    def _warn(self, text: str) -> None:
        """Tell the user now, or with the start."""
        if self.is_announced:
            self.sink(Warned(text))
        else:
            self.notes.append(text)

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
            memory=memory.memory(trained, self.sink),
        )
        if request.state is not None:
            loop.resume(request.state)
        return loop

    def _announce(self, trained: Trainee, attached: Attached, facts: dict[str, Any]) -> None:
        loop = self.loop
        self.facts |= facts | {
            "layers": len(attached.layers),
            "trained parameters": sum(p.numel() for p in attached.parameters().values()),
            "precision": str(trained.compute_dtype).removeprefix("torch."),
            "device": str(trained.device),
        }
        self.sink(Started(loop.end, loop.step, dict(self.facts)))
        self.is_announced = True
        for text in [*self.notes, *loop.optimizer.notes(loop.parameters)]:
            self.sink(Warned(text))
        if loop.end > loop.total:
            text = f"The plan ends at step {loop.total}; the last learning rate holds after it."
            self.sink(Warned(text))

    def _poll(self) -> bool:
        _interrupt()
        return runs.wants_finish(self.run)

    def _after(
        self, trained: Trainee, prompts: Any, size: tuple[int, int], data: TrainingData
    ) -> Callable[[int], None]:
        """What happens between steps: previews, and a file when the user asks for one."""
        settings = self.request.preview

        def after(step: int) -> None:
            if runs.wants_save(self.run):
                self.keeper.save_on_request(self.loop)
            if settings is not None and settings.due(step, self.loop.end):
                self._preview(step, trained, prompts, settings, size, data)

        return after

    def _preview(
        self,
        step: int,
        trained: Trainee,
        prompts: Any,
        settings: Preview,
        size: tuple[int, int],
        data: TrainingData,
    ) -> None:
        request = self.request
        given = {"size": size, "sampler": request.sampler, "sigmas": request.sigmas}
        try:
            with self.loop.averaged():  # as MODEL out will be
                images = preview.sample(trained, prompts, settings, request.vae, **given)
                self.shown = comparison.Shown(step, prompts, settings, given, images[0])
                if settings.rows == "all":
                    rows = picture_rows.rows(trained, data, request.vae, request.plan.seed)
                    images = picture_rows.sheet(rows, picture_rows.levels(trained.denoiser), images)
            self.images = images
            self.sink(Sample(step, preview.save_samples(self.images, self.run, step)))
        except Exception as error:
            if is_interrupt(error) or isinstance(error, preview.TraineeLost):
                raise
            _log.exception("The preview after step %d failed", step)
            text = f"The preview after step {step} failed ({error}); training goes on."
            self.sink(Warned(text))

    def _deliver(self, is_whole: bool) -> Outcome:
        loop, request, monitor = self.loop, self.request, self.monitor
        self.facts["free memory after (GiB)"] = free_memory()
        best = monitor.better() if monitor.stopped else None
        adapter = self.keeper.adapter(loop, self.name, best)
        report, where = self.keeper.save_result(loop, adapter)
        where += self.keeper.save_raw(loop)
        model, applied = result.apply(request.model, adapter.tensors)
        report = report or applied
        if not report.complete:
            self.sink(Warned(f"The LoRA would not load whole: {report.text}"))
        compared = self._compare(model) if best is None else []
        told = [*health.lines(monitor), *health.kept(monitor, self.keeper, loop)]
        if not is_whole and not monitor.stopped:
            where += "\nfinished early on request: change a widget to train again"
        images, rows = self.images, tuple(monitor.rows)
        state = replace(loop.state(), model=self.model, settings=request.settings, validation=rows)
        return Outcome(
            model=model,
            clip=request.clip,
            lora_model=result.lora_state_dict(adapter),
            state=state,
            loss_map=health.loss_map(loop.losses, rows) | loop.record.columns(),
            images=plots.loss_plot(loop.losses, validation=rows) if images is None else images,
            adapter=adapter,
            report=self._report([report.text, *compared, *told], where),
            run=self.run,
        )

    def _compare(self, model: Any) -> list[str]:
        """How near MODEL out comes to what the trainee drew at the end, as a line for the report."""
        if self.shown is None or self.shown.step != self.loop.step:
            return []
        try:
            off = comparison.difference(model, self.shown, self.request.vae)
        except Exception as error:
            if is_interrupt(error):
                raise
            _log.exception("MODEL out could not be compared with the last preview")
            self.sink(Warned(f"MODEL out could not be compared with the last preview: {error}"))
            return []
        return [f"MODEL out gives the last preview's first picture within {off:.1g} of its range"]

    def _report(self, checks: Sequence[str], where: str) -> str:
        losses, facts = self.loop.losses, self.facts
        smooth = plots.smoothed(losses)
        return "\n".join(
            [
                f"{self.name}: {self.loop.step} steps, loss {smooth[min(19, len(smooth) - 1)]:.4f} -> {smooth[-1]:.4f}",
                f"{facts['layers']} layers, {facts['trained parameters']:,} parameters in {facts['precision']}",
                *checks,
                *self.loop.memory.told,
                f"free memory {facts['free memory before (GiB)']} -> {facts['free memory after (GiB)']} GiB",
                where,
            ]
        )

    def _keep(self, error: BaseException) -> None:
        """Save what was learned before the run ended badly, and say so."""
        text = str(error)
        begun = self.request.state.step if self.request.state else 0
        if self.is_ready and self.loop.step > begun:
            best = self.monitor.worth_keeping(self.loop.step, isinstance(error, Diverged))
            text = f"{text} {self.keeper.rescue(self.loop, best)}".strip()
            if len(error.args) == 1 and isinstance(error.args[0], str):
                error.args = (text,)  # the type stays: the host looks at it
        self.sink(Ended("interrupted" if is_interrupt(error) else "error", text))


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
