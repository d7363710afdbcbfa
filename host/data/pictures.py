# SPDX-License-Identifier: Apache-2.0
"""The pictures of a dataset, encoded: each view once, kept by content, settings and VAE, and read back at its use."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from ...trainers.data import Dataset
from ...trainers.data.cache import Cache, key_of
from ...trainers.data.tensor_files import Entry
from ..model import latents
from ..runs import identity
from ..text.texts import choose_prompt
from . import autoencoder
from .picture_index import Digests
from .training_data import View

POLL_EVERY = 64  # pictures that are looked up
_VERSION = "graft latents 1"


class EncodedPictures:
    """Implements `training_data.Source` for a dataset.

    Args:
        dataset: The pictures.
        vae: The VAE on the wire.
        model: The MODEL on the wire, whose latent format counts.
        cache: Where the latents are kept.
        digests: Of pictures and masks.

    Attributes:
        shapes: Shape of the latents of each picture; known after ``prepare``.
        order: The pictures of one epoch before they are shuffled.
        sizes: Width and height in pixels that each picture is trained at.
        encoded: How many pictures were encoded, and not found in the cache.
        guard: Entered around an encoding in mid run, where a file of the cache was lost.
    """

    def __init__(
        self, dataset: Dataset, vae: Any, model: Any, cache: Cache, digests: Digests
    ) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.sizes: list[tuple[int, int]] = []
        self.order = dataset.order_items()
        self.encoded = 0
        self.guard: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
        self._dataset, self._vae, self._model = dataset, vae, model
        self._cache, self._digests = cache, digests
        self._keys: list[tuple[str, ...]] = []
        self._base = key_of(_VERSION, identity.vae_digest(vae, model))
        self._format = latents.form_of(model)

    def prepare(
        self,
        stage: Callable[[int], Callable[[], None]],
        poll: Callable[[], None] = lambda: None,
    ) -> None:
        """Look every view up, and encode those that are not there.

        Args:
            stage: Told how many pictures are to be encoded; what it returns is called before each, and may raise.
            poll: Called now and then; may raise to interrupt.

        Raises:
            ImageError: A file cannot be read.
            ValueError: The VAE is of another family.
        """
        missing: dict[int, list[int]] = {}
        known: dict[tuple[int, ...], tuple[int, ...]] = {}  # one tuple for all that are equal
        sizes: dict[tuple[int, int], tuple[int, int]] = {}
        for index in range(len(self._dataset)):
            if index % POLL_EVERY == POLL_EVERY - 1:
                poll()
            size = self._dataset.size(index)
            self.sizes.append(sizes.setdefault(size, size))
            self._keys.append(self._keys_of(index))
            shapes = [self._shape(index, key) for key in self._keys[index]]
            lost = [view for view, shape in enumerate(shapes) if shape is None]
            if lost:
                missing[index] = lost
            shape = shapes[0] or ()
            self.shapes.append(known.setdefault(shape, shape))
        if missing:
            begin = stage(len(missing))
            for index, lost in missing.items():
                begin()
                shape = self._encode(index, lost)
                self.shapes[index] = known.setdefault(shape, shape)
        self.encoded = len(missing)

    def view(self, index: int, u: float) -> View:
        """The view of a picture for a uniform draw; encoded again where the cache has lost it."""
        number = int(u * len(self._keys[index]))
        entry = self._cache.get(self._keys[index][number])
        if entry is None or tuple(entry.tensors["mean"].shape) != self.shapes[index]:
            with self.guard():
                self._encode(index, [number])
            entry = self._cache.get(self._keys[index][number])
        if entry is None:
            raise RuntimeError(
                f"picture {index + 1} of the dataset was encoded, and is not in the cache"
            )
        (height, width), (top, left) = entry.facts["original"], entry.facts["crop"]
        return View(
            entry.tensors["mean"],
            self.sizes[index],
            (height, width),
            (top, left),
            entry.tensors.get("spread"),
            entry.tensors.get("mask"),
        )

    def text(self, index: int, u: float) -> str:
        """The text of a picture for a uniform draw."""
        return choose_prompt(self._dataset, index, u)

    def weight(self, index: int) -> float:
        """The factor of a picture's loss."""
        return self._dataset.items[index].weight

    def _keys_of(self, index: int) -> tuple[str, ...]:
        item = self._dataset.items[index]
        content = (self._base, self._digests.picture(item), self._digests.mask(item))
        views = range(self._dataset.views(index))
        return tuple(key_of(*content, self._dataset.view_key(index, view)) for view in views)

    def _shape(self, index: int, key: str) -> tuple[int, ...] | None:
        """Shape of the latents of an entry; None where there is none, or it cannot be of this picture."""
        facts = self._cache.facts(key)
        if facts is None:
            return None
        shapes = facts.get("shapes", {})
        shape = shapes.get("mean", ())
        is_whole = {"original", "crop"} <= facts.keys() and shapes.get("spread", shape) == shape
        if is_whole and self._fits(shape, self.sizes[index]):
            return shape
        self._cache.spoil(key, f"{key} holds latents of another shape, {list(shape)}")
        return None

    def _fits(self, shape: tuple[int, ...], size: tuple[int, int]) -> bool:
        if len(shape) < 3 or shape[0] != self._format.latent_channels:
            return False
        ratio = getattr(self._vae, "spacial_compression_encode", None)
        if ratio is None:
            return True
        factor = ratio()
        return shape[-2:] == (size[1] // factor, size[0] // factor)

    def _encode(self, index: int, views: list[int]) -> tuple[int, ...]:
        """Encode views of a picture; returns the shape of their latents."""
        shape: tuple[int, ...] = ()
        for number, fitted in zip(views, self._dataset.some_views(index, views), strict=True):
            found = autoencoder.posterior(self._vae, self._model, fitted.pixels[None])
            if not torch.isfinite(found.mean).all():
                name = self._dataset.items[index].name or f"picture {index + 1}"
                raise ValueError(
                    f"the VAE makes numbers of {name} that are not finite: start ComfyUI with --fp32-vae, or "
                    "use another VAE (for SDXL one that is made for fp16)"
                )
            shape = tuple(found.mean.shape[1:])
            tensors = {"mean": found.mean[0]}
            if found.spread is not None:
                tensors["spread"] = found.spread[0]
            if fitted.mask is not None:
                tensors["mask"] = _smaller(fitted.mask, shape[-2:])
            facts = {"original": list(fitted.original), "crop": list(fitted.crop)}
            self._cache.put(self._keys[index][number], Entry(tensors, facts))
        return shape


@torch.inference_mode(False)
@torch.no_grad()
def _smaller(mask: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """A mask ``[H, W]`` as the latents see it, ``[1, h, w]``: each place is the mean of its pixels."""
    return F.interpolate(mask.detach().clone().float()[None, None], size=size, mode="area")[0]
