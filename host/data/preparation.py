# SPDX-License-Identifier: Apache-2.0
"""What a run trains on, made ready: pictures and texts encoded or found, and what keeps the model as it was."""

import contextlib
import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

from ...trainers.data import notes
from ...trainers.data.cache import Cache
from ...trainers.objectives import INSTANCES
from ..files import paths
from ..model.trainee import Trainee
from ..preview import sampled as preview
from ..request import Request
from ..runs import identity
from ..text.conditioning import Conditioner, family_check
from ..text.live_texts import LiveTexts
from ..text.texts import EncodedTexts, prompts
from .picture_index import Digests
from .pictures import EncodedPictures
from .priors import BaseText, PriorPictures, prior_list, prior_prompts
from .training_data import Held, Prior, TrainingData

Stage = Callable[[str, int], Callable[..., None]]


class Preparation:
    """The data of one run.

    Args:
        request: What was asked for.
        digests: Of pictures and masks.
        stage: Told of a work and how many it has; what it returns is called before each.
        warn: Told what the user should know.
        poll: Called now and then; may raise to interrupt.

    Attributes:
        pictures: The dataset's pictures.
        classes: The class images, None where there are none.
        held_out: The validation pictures, None where there are none.
        texts: The texts of all, and of the priors.
    """

    def __init__(
        self,
        request: Request,
        digests: Digests,
        stage: Stage,
        warn: Callable[[str], None],
        poll: Callable[[], None] = lambda: None,
    ) -> None:
        self.request, self._stage, self._poll = request, stage, poll
        self._digests, self._warn = digests, warn
        dataset, wires = request.dataset, (request.vae, request.model)
        folder = paths.cache_folder()
        latents = Cache(folder / "latents", warn)
        self.pictures = EncodedPictures(dataset, *wires, latents, digests)
        self.classes: EncodedPictures | None = None
        if dataset.classes is not None and dataset.class_weight > 0:
            self.classes = EncodedPictures(dataset.classes, *wires, latents, digests)
        self.held_out: EncodedPictures | None = None
        if request.validation is not None:
            self.held_out = EncodedPictures(request.validation, *wires, latents, digests)
        self.texts = EncodedTexts(request.clip, Cache(folder / "texts", warn))
        self._drawn = self._prior_texts()
        base = (identity.model_digest(request.model), identity.clip_digest(request.clip))
        self._prior_pictures = PriorPictures(Cache(folder / "priors", warn), *base)
        self._base_text = None
        if self._on_instances:
            self._base_text = BaseText(dataset, request.objective, self._words)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels of the largest bucket."""
        return Counter(self.pictures.sizes).most_common(1)[0][0]

    @property
    def facts(self) -> dict[str, Any]:
        """What a user may want to know."""
        sizes = Counter(f"{width}x{height}" for width, height in self.pictures.sizes)
        facts: dict[str, Any] = {"pictures": len(self.pictures.sizes), "buckets": dict(sizes)}
        if self.classes is not None:
            facts["class images"] = len(self.classes.sizes)
        return facts

    def encode(self) -> None:
        """Encode what the cache has not.

        Raises:
            ImageError: A file cannot be read.
            ValueError: The VAE or the CLIP is of another family.
        """
        self.pictures.prepare(lambda total: self._stage("encoding pictures", total), self._poll)
        self._note()
        if self.classes is not None:
            self.classes.prepare(lambda n: self._stage("encoding class images", n), self._poll)
        if self.held_out is not None:
            name = "encoding validation pictures"
            self.held_out.prepare(lambda total: self._stage(name, total), self._poll)
        try:
            self._digests.save()
        except OSError as error:
            self._warn(f"Which pictures are known could not be kept ({error}): all are read again.")
        words = self.request.tokens
        kept = set(self._drawn)
        texts = [t for t in self._texts() if words is None or t in kept or not words.found(t)]
        self.texts.prepare(texts, lambda total: self._stage("encoding captions", total))
        any_text = self.texts[texts[0]] if texts else None
        family_check(self.request.model, self.request.clip, any_text)

    def data(self, trained: Trainee, live: LiveTexts | None = None) -> TrainingData:
        """What the loop trains on.

        Args:
            trained: The trainee, without an adapter.
            live: Encodes the texts that change while they are trained.
        """
        request, dataset = self.request, self.request.dataset
        preserve = request.objective.preserve
        self._keep_out_of_its_way(trained)
        priors = []
        if self.classes is not None:
            priors.append(Prior(dataset.class_weight, classes=self.classes))
        if self._drawn:
            stage = functools.partial(
                self._stage, "sampling pictures to stay close to", len(self._drawn)
            )
            given = (request.vae, self.size, request.plan.seed, stage)
            drawn = self._prior_pictures.draw(trained, self._drawn, self.texts, *given)
            priors.append(Prior(preserve, drawn=Held(drawn)))
        if self._base_text is not None:
            priors.append(Prior(preserve, base_text=self._base_text))
        conditioner = Conditioner(trained.patcher, trained.device)
        return TrainingData(self.pictures, priors, self.texts, conditioner, trained.device, live)

    def held_out_data(self, trained: Trainee, live: LiveTexts | None = None) -> TrainingData | None:
        """What a validation looks at, without priors; None without validation pictures.

        Args:
            trained: The trainee.
            live: Encodes the texts that change while they are trained.
        """
        if self.held_out is None:
            return None
        conditioner = Conditioner(trained.patcher, trained.device)
        return TrainingData(self.held_out, [], self.texts, conditioner, trained.device, live)

    def _note(self) -> None:
        """Say what of the data is hardly meant so."""
        dataset, batch = self.request.dataset, self.request.plan.effective_batch
        for text in notes(dataset, batch):
            self._warn(text)
        if dataset.classes is not None and self.classes is not None:
            for text in notes(dataset.classes, batch):
                self._warn(f"Class images: {text}")

    @property
    def _words(self) -> tuple[str, ...]:
        return self.request.tokens.names if self.request.tokens else ()

    @property
    def _on_instances(self) -> bool:
        objective = self.request.objective
        return objective.preserve > 0 and objective.preserve_on == INSTANCES

    def _prior_texts(self) -> tuple[str, ...]:
        objective, dataset = self.request.objective, self.request.dataset
        if objective.preserve == 0 or self._on_instances:
            return ()
        priors = prior_prompts(dataset, objective.preserve_prompts, self._words)
        trained = [text for text in objective.preserve_prompts if text and text not in priors]
        if trained:
            self._warn(
                f"preserve leaves out {len(trained)} of preserve_prompts that are captions of the dataset, too, and "
                f"would pull against what is learned: {'; '.join(trained[:3])}."
            )
        if not any(priors):
            what = "no other text than the empty one" if priors else "no text"
            self._warn(
                f"preserve has {what} to hold on to: name the trigger in the dataset, or give preserve_prompts; "
                "preserve 0 is faster."
            )
        if self.classes is not None:
            self._warn(
                "Class images and preserve both keep the model as it was: preserve 0 leaves that to the class images, "
                "and is faster."
            )
        return prior_list(priors)

    def _texts(self) -> list[str]:
        """Every text that a step may need, one of the dataset's first."""
        dataset = self.request.dataset
        texts = dict.fromkeys(text for i in range(len(dataset)) for text in prompts(dataset, i))
        if self._base_text is not None:
            texts |= dict.fromkeys(text for t in texts if (text := self._base_text(t)) is not None)
            texts |= {"": None}
        for own, pictures in (
            (dataset.classes, self.classes),
            (self.request.validation, self.held_out),
        ):
            if own is not None and pictures is not None:
                texts |= dict.fromkeys(text for i in range(len(own)) for text in prompts(own, i))
        if self._drawn:
            texts |= dict.fromkeys([*self._drawn, ""])
        return list(texts)

    def _keep_out_of_its_way(self, trained: Trainee) -> None:
        """Should something be encoded in mid run, the training goes on as if it had not been."""

        def guard() -> contextlib.AbstractContextManager[Any]:
            return preview.untouched(trained)

        self.texts.guard = guard
        for pictures in (self.pictures, self.classes, self.held_out):
            if pictures is not None:
                pictures.guard = guard
