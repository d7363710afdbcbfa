# SPDX-License-Identifier: Apache-2.0
"""What the losses of guidance see of a latent, differentiable: pixels by the VAE or by the linear map that previews
use, features of the VAE's decoder, and embeddings by a CLIP_VISION.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ...keyed import generator
from ...samplers.guidance import Seen, Step, Term, cuts
from ..data import autoencoder
from ..memory.residence import own_weights
from ..model.denoiser import differentiable_rope
from ..model.lending import forwards_of, is_dynamic, on_exit, replace
from ..text.text_trainee import out_of_place

VAE, FAST, PIXELS = "vae", "fast", "pixels"
DECODERS = (VAE, FAST, PIXELS)
_PROBE = (-1.0, 0.0, 1.0)
_BLOCKS = {"ResnetBlock", "AttnBlock", "Upsample", "Block"}  # of the host's AutoencoderKL and TAESD


class GuidanceView:
    """Shows latents of one MODEL to the terms of a guidance.

    Args:
        model: A ModelPatcher.
        terms: What guides.
        decoder: How latents become pixels.
        vae: A VAE, where one is needed.

    Attributes:
        patchers: The models that have to be loaded beside the MODEL.

    Raises:
        ValueError: Latents of this MODEL cannot be shown so; says why and what to do.
    """

    def __init__(self, model: Any, terms: Sequence[Term], decoder: str, vae: Any):
        self._terms, self._decoder, self._vae = terms, decoder, vae
        self._format = model.get_model_object("latent_format")
        check(self._format, terms, decoder, vae, model)
        self._visions: dict[int, Any] = {}
        self.patchers: list[Any] = []
        if decoder == VAE:
            self._autoencoder: Any = self._borrow(vae.patcher)
            self._is_centered = _is_centered(vae)
        for term in terms:
            vision = term.target.vision
            if vision is not None and id(vision) not in self._visions:
                self._visions[id(vision)] = self._borrow(vision.patcher)
        self._fitted: dict[tuple[int, ...], torch.Tensor] = {}
        self._features: dict[tuple[int, ...], tuple[torch.Tensor, ...]] = {}

    def prepare(self, model: Any, shape: Sequence[int]) -> None:
        """Look at the targets, before the MODEL is loaded.

        Args:
            model: The ModelPatcher.
            shape: Of the latents, ``[B, C, h, w]``.
        """
        for place, term in enumerate(self._terms):
            if "features" not in term.loss.needs or term.target.images is None:
                continue
            ratio = self._vae.spacial_compression_encode()
            size = [ratio * side for side in shape[2:]]
            for index in range(min(shape[0], len(term.target.images))):
                picture = self._target(place, term, index, *size)
                pixels = (picture.movedim(1, -1) + 1) / 2
                encoded = autoencoder.encode(self._vae, model, pixels.clamp(0, 1))
                latent = model.model.process_latent_out(encoded)
                with self.differentiable(), torch.no_grad():
                    # The VAE has just been used, and is loaded.
                    self._features[place, index] = self._through_vae(latent, True)[1]

    def at(
        self, step: Step, seed: int
    ) -> Callable[[torch.Tensor, int, Sequence[Term]], list[Seen]]:
        """What the terms see at a step; the seed is for what is cut at random."""

        def view(x: torch.Tensor, index: int, terms: Sequence[Term]) -> list[Seen]:
            has_features = any("features" in term.loss.needs for term in terms)
            picture, features = self._decode(x, has_features)
            return [self._seen(term, picture, features, index, step, seed) for term in terms]

        return view

    @contextmanager
    def differentiable(self) -> Iterator[None]:
        """The VAE and the CLIP_VISIONs take gradients meanwhile; afterwards all is as it was."""
        import comfy.model_management as mm

        with ExitStack() as stack:
            replace(stack, mm, "in_training", True)
            if hasattr(mm, "NUM_STREAMS"):
                replace(stack, mm, "NUM_STREAMS", 0)  # streams hand out views of reused buffers
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(differentiable_rope())
            for patcher in self.patchers:
                on_exit(stack, _flags_of(patcher.model))
                own_weights(patcher)
                patcher.model.requires_grad_(False)
                on_exit(stack, forwards_of(patcher.model))
                out_of_place(patcher.model)
                recompute(patcher.model)
            yield

    def _borrow(self, patcher: Any) -> nn.Module:
        if is_dynamic(patcher):
            try:
                patcher = patcher.clone(disable_dynamic=True, force_deepcopy=True)
            except (RuntimeError, TypeError) as error:
                raise ValueError(
                    f"the loader of this {type(patcher.model).__name__} cannot make the copy that guidance needs under "
                    f"dynamic VRAM ({error}): start ComfyUI with --disable-dynamic-vram, or use a core loader"
                ) from error
        self.patchers.append(patcher)
        return patcher.model

    def _decode(
        self, x: torch.Tensor, has_features: bool
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        if self._decoder == PIXELS:
            return x, ()
        if self._decoder == FAST:
            return _linear(self._format, x), ()
        return self._through_vae(_process_out(self._format, x), has_features)

    def _through_vae(
        self, latent: torch.Tensor, has_features: bool
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """The picture and its features, of a latent in the VAE's units."""
        latent = latent.to(self._vae.device, self._vae.vae_dtype)
        found: dict[tuple[int, ...], torch.Tensor] = {}
        with _watched(self._autoencoder, found if has_features else None):
            out = self._autoencoder.decode(latent)[:, :3].float()
        if not self._is_centered:
            out = out * 2 - 1
        return out, tuple(found.values())

    def _seen(
        self,
        term: Term,
        picture: torch.Tensor,
        features: tuple[torch.Tensor, ...],
        index: int,
        step: Step,
        seed: int,
    ) -> Seen:
        place = next(i for i, known in enumerate(self._terms) if known is term)
        target = term.target
        draws = generator(seed, "guidance", place, step.index, index)
        seen = Seen(picture, text=target.text, generator=draws)
        if target.images is not None:
            number = index % len(target.images)
            fitted = self._target(place, term, number, *picture.shape[2:])
            seen = dataclasses.replace(seen, target=fitted.to(picture))
            if "features" in term.loss.needs:
                kept = self._features[place, number]
                seen = dataclasses.replace(seen, features=features, target_features=kept)
        if target.vision is not None:
            vision = target.vision
            embed = _embed(vision, self._visions[id(vision)])
            seen = dataclasses.replace(seen, side=_side(vision), embed=embed)
        return seen

    def _target(self, place: int, term: Term, index: int, height: int, width: int) -> torch.Tensor:
        key = place, index, height, width
        if key not in self._fitted and term.target.images is not None:
            picture = term.target.images[index : index + 1]
            self._fitted[key] = cuts.fitted(picture, height, width)
        return self._fitted[key]


def check(latent_format: Any, terms: Sequence[Term], decoder: str, vae: Any, model: Any) -> None:
    """Raise where latents cannot be shown to the terms.

    Args:
        latent_format: Of the MODEL.
        terms: What guides.
        decoder: How latents become pixels.
        vae: A VAE, or None.
        model: The MODEL.

    Raises:
        ValueError: Says why and what to do.
    """
    name = type(latent_format).__name__
    if getattr(latent_format, "latent_dimensions", 2) != 2:
        raise ValueError(
            f"guidance looks at pictures, and latents of this MODEL ({name}) are of video or sound"
        )
    for term in terms:
        if "features" in term.loss.needs and decoder != VAE:
            raise ValueError(
                f"perceptual guidance compares features of a VAE, which decode {decoder} does not use: set decode to "
                f"{VAE} and connect the VAE"
            )
    if decoder == VAE:
        if vae is None:
            raise ValueError(
                f"guidance looks at pixels, and no VAE is connected: connect the one of the MODEL, or set decode to "
                f"{FAST}, which needs none"
            )
        autoencoder.check_family(vae, model)
    elif decoder == FAST and latent_format.latent_rgb_factors is None:
        raise ValueError(
            f"ComfyUI knows no linear map from latents to pixels for this MODEL ({name}): set decode to {VAE}"
        )
    elif decoder == PIXELS and latent_format.latent_channels != 3:
        raise ValueError(
            f"decode {PIXELS} is for models that draw pixels, and this MODEL ({name}) draws latents of "
            f"{latent_format.latent_channels} channels: set decode to {VAE} or {FAST}"
        )


def _linear(latent_format: Any, x: torch.Tensor) -> torch.Tensor:
    """The picture ``[1, 3, h, w]`` that the host's previews show."""
    reshape = getattr(latent_format, "latent_rgb_factors_reshape", None)
    x = x if reshape is None else reshape(x)
    factors = x.new_tensor(latent_format.latent_rgb_factors)
    picture = torch.einsum("bchw,cr->brhw", x, factors)
    bias = getattr(latent_format, "latent_rgb_factors_bias", None)
    return picture if bias is None else picture + x.new_tensor(bias).view(1, 3, 1, 1)


def _process_out(latent_format: Any, x: torch.Tensor) -> torch.Tensor:
    """As the latent format does it, which is affine, but may hold tensors that autograd refuses."""
    with torch.no_grad():
        zero = torch.zeros_like(x[:1])
        offset = latent_format.process_out(zero).clone()
        scale = (latent_format.process_out(zero + 1) - offset).clone()
    return x * scale + offset


def _is_centered(vae: Any) -> bool:
    """Whether the VAE's network gives -1..1, and not 0..1; found by asking what the host makes of it.

    Raises:
        ValueError: It gives something else.
    """
    probe = vae.process_output(torch.tensor(_PROBE)).tolist()
    if probe == [0.0, 0.5, 1.0]:
        return True
    if probe[1:] == [0.0, 1.0]:
        return False
    raise ValueError(
        f"this VAE ({type(vae.first_stage_model).__name__}) does not give pixels: set decode to {FAST}"
    )


def recompute(network: nn.Module) -> None:
    """Keep only what goes into an autoencoder's blocks, and compute the rest again for the gradient.

    Args:
        network: Any module; its blocks get a forward of their own.
    """
    for module in network.modules():
        if type(module).__name__ in _BLOCKS:
            again = partial(
                checkpoint, module.forward, use_reentrant=False, preserve_rng_state=False
            )
            module.forward = again  # type: ignore[method-assign]


def _flags_of(model: nn.Module) -> Callable[[], None]:
    """Remember which parameters want gradients; the returned function says so again."""
    before = {name: p.requires_grad for name, p in model.named_parameters()}

    def restore() -> None:
        with torch.inference_mode(False):
            for name, parameter in model.named_parameters():
                if parameter.requires_grad != before.get(name, parameter.requires_grad):
                    parameter.requires_grad_(before[name])

    return restore


@contextmanager
def _watched(
    network: nn.Module, found: dict[tuple[int, ...], torch.Tensor] | None
) -> Iterator[None]:
    """Keep the last features of each size, which are what a decoder has made of all before it."""

    def keep(module: nn.Module, args: Any, out: torch.Tensor) -> None:
        if found is not None and out.ndim == 4 and out.shape[1] > 3:
            found[tuple(out.shape[2:])] = out.clone()  # it may be written to

    layers = network.modules() if found is not None else ()
    handles = [m.register_forward_hook(keep) for m in layers if isinstance(m, nn.Conv2d)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _side(vision: Any) -> int:
    return int(getattr(vision, "image_size", 224))


def _embed(vision: Any, network: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """The host's preprocessing without its rounding, which has no gradient, and its network."""

    def embed(pictures: torch.Tensor) -> torch.Tensor:
        x = ((pictures + 1) / 2).to(vision.load_device, torch.float32)
        mean, std = (
            x.new_tensor(values).view(1, 3, 1, 1)
            for values in (vision.image_mean, vision.image_std)
        )
        return network(pixel_values=(x - mean) / std, intermediate_output=-2)[2].float()

    return embed
