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
from ..adapters.learned import Learned
from ..trainers.epochs import describe
from ..trainers.events import Ended, Started, Warned
from ..trainers.loop import Diverged, Loop
from ..trainers.monitor import Monitor, NothingLearned
from ..trainers.plan import CONTINUE, FRESH, OFF
from ..trainers.state import State
from . import graph
from .data.picture_index import Digests
from .data.preparation import Preparation
from .data.training_data import TrainingData
from .drawing import plots
from .files import paths, result, start
from .memory import answer as memory
from .memory import plan as memory_plan
from .model import layer_weights, sampling
from .model.trainee import Trainee, trainee
from .preview.of_run import Previews
from .request import Request, check, check_state
from .runs import health, identity
from .runs import history as runs
from .runs.autosave import Autosave
from .runs.keeper import Keeper
from .runs.progress import RunSink
from .runs.stopping import interrupt as _interrupt
from .runs.stopping import is_interrupt
from .text import labels
from .text.live_texts import live_texts
from .text.words import with_words

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
        self.name = paths.lora_name(request.name)
        request = self.request = labels.prepared(request)
        check(request)
        if request.objective.zero_terminal:  # trained with, and part of MODEL out
            request = self.request = replace(request, model=sampling.zero_terminal(request.model))
        self.model = identity.model_digest(request.model)
        self.digests = Digests(paths.cache_folder() / "files")
        self.notes = list(request.dataset.warnings)
        self.start = start.prepare(request)
        self.dataset, self.run = self._identify()
        paths.check_writable(paths.loras_folder())
        folder = paths.check_writable(paths.run_folder(self.run))
        self.first_step = request.state.step if request.state else 0
        self.end = self.first_step + request.plan.steps
        self.autosave = Autosave(folder, request.plan)
        self.is_same_run = self._continue()
        request = self.request
        self.sink = RunSink(self.run, request.node_id, self.end, workflow_id=request.workflow_id)
        known = (self.name, self.run, self.model, self.dataset, self.sink)
        self.keeper = Keeper(request, *known, self.start.digest if self.start else "")
        self.loop: Loop
        self.monitor: Monitor
        self.is_ready = self.is_announced = self.is_kept = False
        self.begins_with = ""
        self.facts: dict[str, Any] = {"run": self.run, "name": self.name}

    def _identify(self) -> tuple[str, str]:
        """The digest of the dataset and the id of the run."""
        request = self.request
        contents = (self.digests.picture, self.digests.mask)  # what an unchanged file is known by
        dataset = request.dataset.digest(*contents)
        settings: tuple[Any, ...] = (request.settings, request.plan, identity.begun(request.state))
        if request.state is not None:
            self.notes += check_state(request.state, request, self.model)
        if request.validation is not None:
            held_out = request.validation
            settings += (held_out.digest(*contents),)
            self.notes += health.notes(request.dataset, held_out, request.plan, contents[0])
        if self.start is not None:
            settings += (("start_from", self.start.digest),)
            self.notes += self.start.notes
        encoders = (
            identity.clip_digest(request.clip),
            identity.vae_digest(request.vae, request.model),
        )
        return dataset, identity.run_id(self.model, dataset, *settings, *encoders)

    def _continue(self) -> bool:
        """Go on where this very run was cut off, if it was and the user has not chosen otherwise."""
        if self.request.plan.when_found == FRESH:
            self.autosave.forget()
        found = self.autosave.found(self.notes.append)
        if found is None:
            return False
        self.request = replace(self.request, state=found)
        self.notes.append(
            f"This run was cut off after step {found.step} and goes on from there; to begin anew, set when_found to "
            f"'{FRESH}'."
        )
        return True

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
        if self.is_kept:  # else the states are all that is on disk
            self.autosave.forget()
        self.sink(Ended("done" if is_whole else "finished", outcome.report))
        return outcome

    def _train(self) -> bool:
        request = self.request
        prepared = Preparation(request, self.digests, self._stage, self._warn, _interrupt)
        prepared.encode()
        self.previews = Previews(request, self.run, self.sink)
        self._tell("loading the model")
        self.facts["free memory before (GiB)"] = free_memory()
        with (
            trainee(request.model, **memory_plan.loading(request.plan)) as trained,
            live_texts(
                request.clip, request.text_network, request.tokens, request.plan.seed, trained
            ) as live,
        ):
            data = prepared.data(trained, live)
            where = (request.plan.seed, trained.device, layer_weights.fetch)
            attached = Attached(trained.diffusion_model, request.network, *where)
            learned = Learned(attached, *((live.network, live.vectors) if live else ()))
            try:
                self._begin(learned)
                loop = self.loop = self._new_loop(trained, data, learned)
                given = (_interrupt, self._tell, self._warn)
                self.facts |= memory_plan.plan(loop, trained, *given)
                watched = (trained, learned, request.plan, self.sink)
                held_out = prepared.held_out_data(trained, live)
                monitor = self.monitor = health.watch(*watched, held_out, _interrupt, loop.memory)
                if request.optimizer.averages:
                    monitor.readings["averaged"] = loop.averaged
                self.is_ready = True
                loop.monitor = monitor
                draw = self._drawing(trained, data, prepared.size, live)
                loop.after = self._after(draw)
                self._announce(trained, learned, prepared.facts)
                monitor.begin(request.state, is_same_run=self.is_same_run)
                if (
                    loop.step == loop.end
                ):  # cut off after its last step: the last pictures are an output
                    draw(loop.step)
                is_whole = loop.run()
                monitor.finish(loop.step)
                return is_whole
            finally:
                attached.remove()

    def _begin(self, learned: Learned) -> None:
        """Put what the run begins with into the layers; a state brings its own."""
        state = self.request.state
        if state is not None and state.settings == self.request.settings:
            # Those of the file that the state's run began with, if it did.
            learned.take_alphas(state.adapter)
        if self.start is not None:
            begun = self.start.begin(learned)
            self.begins_with, self.facts["begins with"] = begun.text, begun.text
            self.notes += begun.warnings
            self._tell(begun.text)
            self.start = None  # the layers have it now, in copies

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

    def _new_loop(self, trained: Trainee, data: TrainingData, learned: Learned) -> Loop:
        request = self.request
        loop = Loop(
            trained.denoiser,
            data,
            learned,
            request.objective,
            request.optimizer,
            request.plan,
            sink=self.sink,
            poll=self._poll,
            memory=memory.memory(trained, self.sink, may_offload=request.plan.may_offload != OFF),
        )
        if request.state is not None:
            loop.resume(request.state, self.end if self.is_same_run else None)
        return loop

    def _announce(self, trained: Trainee, learned: Learned, facts: dict[str, Any]) -> None:
        loop = self.loop
        self.facts |= facts | {
            **({"new words": str(learned.tokens)} if learned.tokens else {}),
            "layers": len(learned.layers),
            "trained parameters": sum(p.numel() for p in learned.parameters().values()),
            "precision": str(trained.compute_dtype).removeprefix("torch."),
            "device": str(trained.device),
            "steps per epoch": loop.order.steps_per_epoch,
        }
        self.sink(Started(loop.end, loop.step, dict(self.facts)))
        self.is_announced = True
        settings = loop.optimizer
        lengths = settings.notes_on_length(loop.end, loop.total)
        for text in [*self.notes, *settings.notes(loop.parameters), *lengths]:
            self.sink(Warned(text))

    def _poll(self) -> bool:
        _interrupt()
        return runs.wants_finish(self.run)

    def _drawing(self, *given: Any) -> Callable[[int], None]:
        """What draws the preview that is due after a step."""

        def draw(step: int) -> None:
            if self.previews.is_due(step, self.loop.end):
                self.previews.draw(step, self.loop.averaged, *given)

        return draw

    def _after(self, draw: Callable[[int], None]) -> Callable[[int], None]:
        """What happens between steps: states, previews, and a file when the user asks for one."""

        def after(step: int) -> None:
            if self.autosave.is_due(step):
                self._save_state()
            if runs.wants_save(self.run):
                self.keeper.save_on_request(self.loop)
            self.keeper.save_every(self.loop)
            draw(step)

        return after

    def _deliver(self, is_whole: bool) -> Outcome:
        loop, request, monitor = self.loop, self.request, self.monitor
        self.facts["free memory after (GiB)"] = free_memory()
        best = monitor.better() if monitor.stopped else None
        adapter = self.keeper.adapter(loop, self.name, best)
        report, where = self.keeper.save_result(loop, adapter)
        self.is_kept = report is not None
        where += self.keeper.save_raw(loop)
        clip = request.clip if request.text_network else None
        model, clip, applied = result.apply_both(request.model, clip, adapter.tensors)
        clip = clip or labels.wire(request.clip)
        report = report or applied
        if not report.complete:
            self.sink(Warned(f"The LoRA would not load whole: {report.text}"))
        compared = self.previews.compare(model, loop.step) if best is None else []
        told = describe(loop.losses, loop.order.steps_per_epoch)
        told += [*health.lines(monitor), *health.kept(monitor, self.keeper, loop)]
        if not is_whole and not monitor.stopped:
            where += "\nfinished early on request: change a widget to train again"
        images, rows = self.previews.images, tuple(monitor.rows)
        return Outcome(
            model=model,
            clip=clip and with_words(clip, adapter.tensors),
            lora_model=result.lora_state_dict(adapter),
            state=self._state(),
            loss_map=health.loss_map(loop.losses, rows) | loop.record.columns(),
            images=plots.loss_plot(loop.losses, validation=rows) if images is None else images,
            adapter=adapter,
            report=self._report([report.text, *compared, *told], where),
            run=self.run,
        )

    def _state(self) -> State:
        """Where the run stands, as a value."""
        own: dict[str, Any] = {"model": self.model, "settings": self.request.settings}
        return replace(self.loop.state(), **self.monitor.state(), **own)

    def _report(self, checks: Sequence[str], where: str) -> str:
        losses, facts = self.loop.losses, self.facts
        smooth = plots.smoothed(losses)
        return "\n".join(
            [
                f"{self.name}: {self.loop.step} steps, loss {smooth[min(19, len(smooth) - 1)]:.4f} -> {smooth[-1]:.4f}",
                f"{facts['layers']} layers, {facts['trained parameters']:,} parameters in {facts['precision']}",
                *filter(None, [self.begins_with, facts.get("new words"), *checks]),
                *self.loop.memory.told,
                f"free memory {facts['free memory before (GiB)']} -> {facts['free memory after (GiB)']} GiB",
                where,
            ]
        )

    def _save_state(self) -> str:
        """Write where the run stands; empty when that fails, which ends nothing and hides nothing."""
        try:
            return self.autosave.save(self._state(), self.sink)
        except Exception as error:
            if is_interrupt(error):
                raise
            _log.exception("The state after step %d could not be made", self.loop.step)
            text = f"The state after step {self.loop.step} could not be saved: {error}"
            self.sink(Warned(text))
            return ""

    def _keep(self, error: BaseException) -> None:
        """Save what was learned before the run ended badly, and say so."""
        text = str(error)
        if self.is_ready and self.loop.step > self.first_step:
            kept = self._rescued(error)
            text = f"{text} {kept}".strip()
            if len(error.args) == 1 and isinstance(error.args[0], str):
                error.args = (text,)  # the type stays: the host looks at it
            elif isinstance(error, OSError):
                error.strerror = f"{error.strerror}. {kept}"
        self.sink(Ended("interrupted" if is_interrupt(error) else "error", text))

    def _rescued(self, error: BaseException) -> str:
        """Save what was learned; what was kept where, and how to go on from it."""
        best = self.monitor.worth_keeping(self.loop.step, isinstance(error, Diverged))
        text, where = self.keeper.rescue(self.loop, best), self._save_state()
        if not where:
            return text
        if isinstance(error, Diverged | NothingLearned):
            how = f"Load Training State has the state, {where}, to go on with other settings."
        elif self.request.plan.when_found == FRESH:
            how = f"With when_found '{CONTINUE}' the same run goes on from there."
        else:
            how = "Run it again unchanged, and it goes on from there."
        return f"{text} {how}"


def free_memory() -> float:
    """Free memory of the host's device in GiB, with two decimals."""
    import comfy.model_management

    device = comfy.model_management.get_torch_device()
    return round(comfy.model_management.get_free_memory(device) / 2**30, 2)
