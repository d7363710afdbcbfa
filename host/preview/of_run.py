# SPDX-License-Identifier: Apache-2.0
"""The previews of one run: what the trainee draws between steps, and how near MODEL out comes to it."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from ...trainers.events import Sample, Sink, Warned
from ...trainers.preview import Preview
from ..data.training_data import TrainingData
from ..model.trainee import Trainee
from ..request import Request
from ..runs.stopping import is_interrupt
from ..text.live_texts import LiveTexts
from . import comparison
from . import rows as picture_rows
from . import sampled as preview

_log = logging.getLogger(__name__)


class Previews:
    """Draws the request's preview; a picture that fails is told, and training goes on.

    Args:
        request: With the prompts, the sampler and the VAE.
        run: Id of the run, in whose folder the pictures are kept.
        sink: Hears of pictures and failures.

    Attributes:
        images: IMAGE of the last preview; None before the first.
    """

    def __init__(self, request: Request, run: str, sink: Sink) -> None:
        self._request, self._run, self._sink = request, run, sink
        settings = request.preview
        self._prompts = preview.encode_prompts(request.clip, settings) if settings else None
        self.images: torch.Tensor | None = None
        self._shown: comparison.Shown | None = None

    def is_due(self, step: int, end: int) -> bool:
        """Whether pictures are wanted after ``step`` of a run to ``end``."""
        settings = self._request.preview
        return settings is not None and settings.due(step, end)

    def draw(
        self,
        step: int,
        averaged: Callable[[], AbstractContextManager[None]],
        trained: Trainee,
        data: TrainingData,
        size: tuple[int, int],
        live: LiveTexts | None = None,
    ) -> None:
        """Draw after ``step``.

        Args:
            step: Steps done.
            averaged: The weights of MODEL out are in place inside of it.
            trained: The trainee with its adapters.
            data: What it is trained on, for the rows of training pictures.
            size: Width and height in pixels where the settings have 0.
            live: Encodes the prompts that name what is trained.

        Raises:
            TraineeLost: The trainee is not as it was.
        """
        request, settings = self._request, self._request.preview
        if settings is None or self._prompts is None:
            return
        given = {"size": size, "sampler": request.sampler, "sigmas": request.sigmas}
        try:
            with averaged():
                prompts = _now(self._prompts, settings, live)
                images = preview.sample(trained, prompts, settings, request.vae, **given)
                self._shown = comparison.Shown(step, prompts, settings, given, images[0])
                if settings.rows == "all":
                    rows = picture_rows.rows(trained, data, request.vae, request.plan.seed)
                    images = picture_rows.sheet(rows, picture_rows.levels(trained.denoiser), images)
            self.images = images
            self._save(step, images)
        except Exception as error:
            if is_interrupt(error) or isinstance(error, preview.TraineeLost):
                raise
            _log.exception("The preview after step %d failed", step)
            text = f"The preview after step {step} failed ({error}); training goes on."
            self._sink(Warned(text))
        if live is not None:
            live.reload()

    def _save(self, step: int, images: torch.Tensor) -> None:
        try:
            made = preview.save_samples(images, self._run, step)
        except (OSError, ValueError) as error:
            text = f"The pictures after step {step} could not be saved ({error}); training goes on."
            self._sink(Warned(text))
            return
        settings = self._request.preview
        prompts = settings.prompts if settings and len(settings.prompts) == len(made) else ()
        self._sink(Sample(step, made, tuple(prompts)))

    def compare(self, model: Any, step: int) -> list[str]:
        """How near MODEL out comes to what the trainee drew after its last ``step``, as a line for the report."""
        if self._shown is None or self._shown.step != step:
            return []
        try:
            off = comparison.difference(model, self._shown, self._request.vae)
        except Exception as error:
            if is_interrupt(error):
                raise
            _log.exception("MODEL out could not be compared with the last preview")
            text = f"MODEL out could not be compared with the last preview: {error}"
            self._sink(Warned(text))
            return []
        return [f"MODEL out gives the last preview's first picture within {off:.1g} of its range"]


def _now(prompts: preview.Prompts, settings: Preview, live: LiveTexts | None) -> preview.Prompts:
    """The prompts, those that name what is trained encoded as it is now."""
    if live is None:
        return prompts

    def now(text: str, encoded: list[Any]) -> list[Any]:
        return live.encode([text])[text].conditioning() if live.is_live(text) else encoded

    with torch.no_grad():
        pairs = zip(settings.prompts, prompts.positive, strict=True)
        positive = tuple(now(*pair) for pair in pairs)
        return preview.Prompts(positive, now(settings.negative, prompts.negative))
