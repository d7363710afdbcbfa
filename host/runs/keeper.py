# SPDX-License-Identifier: Apache-2.0
"""The result of a run as values and files: what is trained so far, at the end, and when something fails."""

import contextlib
import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...adapters.file import AdapterFile
from ...trainers.events import Saved, Sink, Warned
from ...trainers.loop import Diverged, Loop
from ...trainers.state import Best
from ..files import paths, result, stock_form
from ..request import Request

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Keeper:
    """Keeps what one run learns.

    Attributes:
        request: What was asked for.
        name: Of the LoRA and its files.
        run: Id of the run, whose folder the result goes to.
        model: Digest of the MODEL on the wire.
        dataset: Digest of the dataset.
        sink: Hears of files and failures.
        start: Digest of the LoRA that the run began with, if it did.
    """

    request: Request
    name: str
    run: str
    model: str
    dataset: str
    sink: Sink
    start: str = ""

    def adapter(
        self, loop: Loop, name: str, best: Best | None = None, is_raw: bool = False
    ) -> AdapterFile:
        """What is trained so far, or the best of it, as a value: no clock, path or counter is in it.

        Args:
            loop: The run.
            name: Of the LoRA.
            best: The best state, when it is that.
            is_raw: The weights as the last step left them, where the result is their average.

        Raises:
            Diverged: The weights are not finite.
        """
        request = self.request
        if best is not None:
            tensors = dict(best.tensors)
        else:
            with contextlib.nullcontext() if is_raw else loop.averaged():
                tensors = dict(loop.network.tensors())
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
            raise Diverged("The trained weights are not finite numbers. Lower the learning rate.")
        tensors = stock_form.exported(request.model, request.clip, tensors)
        metadata = result.lora_metadata(
            tensors,
            request.model,
            title=self.name,
            trigger=request.dataset.trigger,
            resolution=request.dataset.resolution,
            facts=self._facts(loop.step if best is None else best.step, tensors, is_raw),
        )
        return AdapterFile(tensors, metadata, name)

    def _facts(
        self, step: int, tensors: Mapping[str, torch.Tensor], is_raw: bool
    ) -> dict[str, Any]:
        """What a file says of the run that made it."""
        request = self.request
        facts: dict[str, Any] = {
            "steps": step,
            "seed": request.plan.seed,
            "effective_batch": request.plan.effective_batch,
            "network": repr(request.network),
            "objective": repr(request.objective),
            "optimizer": repr(request.optimizer),
            "dataset": self.dataset,
            "model": self.model,
            "pictures": len(request.dataset.items),
        }
        facts |= stock_form.facts(tensors)
        for part in ("tokens", "text_network"):
            if getattr(request, part) is not None:
                facts[part] = repr(getattr(request, part))
        if self.start:
            facts["start"] = self.start
        if request.optimizer.ema_decay:
            weights = "raw" if is_raw else "ema"
            facts |= {"ema_decay": request.optimizer.ema_decay, "weights": weights}
        return facts

    def save_every(self, loop: Loop) -> None:
        """Save what is trained so far after every so many steps, as the plan says."""
        every = self.request.plan.save_every
        if every and loop.step and loop.step % every == 0:
            self.save_on_request(loop)

    def save_on_request(self, loop: Loop) -> None:
        """Save what is trained so far; a failure is told, and training goes on."""
        try:
            self._save_so_far(loop)
        except Exception as error:  # noqa: BLE001 - training goes on
            _log.exception("The LoRA after step %d could not be saved", loop.step)
            self.sink(Warned(f"The LoRA after step {loop.step} could not be saved: {error}"))

    def save_result(self, loop: Loop, adapter: AdapterFile) -> tuple[result.Report | None, str]:
        """Write and check the file, in the run's folder or where else it can be; never fails.

        Returns:
            What the check found, None where no file is there that can be read again; and where it is.
        """
        failed: list[str] = []
        for folder in (functools.partial(paths.run_folder, self.run), paths.loras_folder):
            try:
                path = result.save_lora(folder() / f"{self.name}.safetensors", adapter)
            except (OSError, ValueError) as error:
                failed.append(str(error))
                continue
            where = paths.relative_to_output(path)
            self.sink(Saved(loop.step, where))
            return self._checked(path, where, failed)
        text = (
            f"NOT on disk ({failed[0]}), but still in memory: make room, put Save LoRA behind this node and queue the "
            "same graph again, before ComfyUI is closed; nothing is trained again"
        )
        self.sink(Warned(f"The LoRA is {text}."))
        return None, text

    def _checked(
        self, path: Path, where: str, failed: list[str]
    ) -> tuple[result.Report | None, str]:
        text = f"kept in output/{where}"
        if failed:
            text = f"{text}, as its own folder could not be used: {failed[0]}"
            self.sink(Warned(f"The LoRA is {text}."))
        try:
            clip = self.request.clip if self.request.text_network else None
            return result.self_check(path, self.request.model, clip), text
        except (OSError, ValueError) as error:
            text = f"{text}, but NOT as it should be ({error}): save it with Save LoRA, too"
            self.sink(Warned(f"The LoRA is {text}."))
            return None, text

    def save_raw(self, loop: Loop) -> str:
        """Write the last weights beside the result, where that is their moving average.

        Returns:
            A line for the report that names both, empty without an average.
        """
        decay = self.request.optimizer.ema_decay
        if not decay:
            return ""
        where = self.save_beside(loop, "raw", is_raw=True)
        return f"\nMODEL out and {self.name} are the average of decay {decay:g}; the last weights: {where}"

    def save_beside(
        self, loop: Loop, kind: str, best: Best | None = None, is_raw: bool = False
    ) -> str:
        """Write ``<name>_<kind>.safetensors`` beside the result: the best state, or the last one.

        Returns:
            Where it is, or why it is not there.
        """
        name, step = f"{self.name}_{kind}", loop.step if best is None else best.step
        try:
            adapter = self.adapter(loop, name, best, is_raw)
            path = paths.run_folder(self.run) / f"{name}.safetensors"
            where = paths.relative_to_output(result.save_lora(path, adapter))
        except (OSError, ValueError, Diverged) as error:
            self.sink(Warned(f"{name} could not be saved: {error}"))
            return f"NOT on disk ({error})"
        self.sink(Saved(step, where))
        return f"output/{where}"

    def rescue(self, loop: Loop, best: Best | None = None) -> str:
        """Save what was learned when a run ends badly, and the ``best`` of it; sentences on what became of it."""
        return " ".join(self._rescued(loop, one) for one in ((None, best) if best else (None,)))

    def _rescued(self, loop: Loop, best: Best | None) -> str:
        step = loop.step if best is None else best.step
        what = "LoRA" if best is None else "best LoRA,"
        try:
            where = self._save_so_far(loop, best)
        except Exception as failure:  # noqa: BLE001 - must not hide what ended the run
            _log.exception("The LoRA after %d steps could not be saved", step)
            return f"The {what} after {step} steps could NOT be saved: {failure}"
        return f"The {what} after {step} steps is kept in output/{where}."

    def _save_so_far(self, loop: Loop, best: Best | None = None) -> str:
        step, kind = (loop.step, "") if best is None else (best.step, "_best")
        name = f"{self.name}{kind}_step{step:06}"
        path = paths.loras_folder() / f"{name}.safetensors"
        where = paths.relative_to_output(result.save_lora(path, self.adapter(loop, name, best)))
        self.sink(Saved(step, where))
        return where
