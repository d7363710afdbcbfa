# SPDX-License-Identifier: Apache-2.0
"""Inversion by any GUIDER of the host, and the SAMPLER that goes an inversion down again."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from ...samplers import KeyedNoise, Levels, Stepped
from ...samplers.inversion import Inversion, Method, replay
from ...samplers.inversion.parts import check, course
from ...samplers.parts import Denoise
from . import levels
from .sampler import check_latent, console_bar

EDIT = "graft edit "  # of the conditioning that edits bring into a GUIDER
_SAME = 1e-5  # relative difference of levels that are one
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Inverted:
    """What GRAFT_INVERSION carries.

    Attributes:
        inversion: The way, in the model's own units.
        method: Name of the method.
        family: Of the model: eps, v, edm, flow, x0 or other.
        latent_format: Of the model's latents.
        prompt: A hash of the GUIDER's conditioning and cfg.
        rest: What else the LATENT held, its noise_mask say.
    """

    inversion: Inversion
    method: str
    family: str
    latent_format: Any
    prompt: str
    rest: dict[str, Any] = field(default_factory=dict)


def invert(
    guider: Any, sigmas: torch.Tensor, latent: dict[str, Any], method: Method, seed: int
) -> tuple[Inverted, str]:
    """Invert pictures.

    Args:
        guider: A GUIDER.
        sigmas: SIGMAS as they are to be sampled at, falling ``[N + 1]``.
        latent: A LATENT of pictures, ``samples`` ``[B, C, ...]``.
        method: How.
        seed: Of the noise that is drawn.

    Returns:
        The inversion, and what it is in words.

    Raises:
        ValueError: This cannot be; says why and what to do.
    """
    import comfy.utils
    import latent_preview

    steps, model = course(sigmas), guider.model_patcher
    check_conditioning(guider)
    known = levels.of_model(model)
    check(method, known, steps)
    latent_format = model.get_model_object("latent_format")
    samples = _pictures(latent, latent_format)
    sampler = _Inverting(method, known)
    callback = latent_preview.prepare_callback(model, len(steps) - 1)
    guider.sample(
        torch.zeros_like(samples),
        samples,
        sampler,
        torch.tensor(steps, dtype=torch.float32),
        callback=callback,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    made = sampler.inversion
    if made is None or not bool(torch.isfinite(made.states).all()):
        raise RuntimeError(
            "The inversion is not finite: the model gave nan or infinity. Try fewer iterations or a lower cfg, and "
            "fp32 where the model was loaded in fp16."
        )
    rest = {key: value for key, value in latent.items() if key != "samples"}
    name = getattr(method, "name", "inversion")
    found = Inverted(made, name, known.family, latent_format, prompt_of(guider), rest)
    return found, describe(found)


def describe(inverted: Inverted) -> str:
    """An inversion in words."""
    made = inverted.inversion
    said = [
        f"{inverted.method}: {made.steps} steps from sigma {made.sigmas[0]:.4g} to {made.sigmas[-1]:.4g}, "
        f"{made.evaluations} evaluations of the model (NFE)"
    ]
    if made.rests is not None:
        said.append("The way down with the same prompt is exactly to the picture.")
    else:
        said.append(
            f"The largest error of a step is {made.residual:.2g} of the latent's spread; more iterations make it "
            "smaller."
        )
    return "\n".join(said)


def replayed(inverted: Inverted, skip: float) -> tuple[Any, torch.Tensor, dict[str, Any], str]:
    """What goes an inversion down again.

    Args:
        inverted: The inversion.
        skip: Share of the steps that are left out, from the noisiest on.

    Returns:
        SAMPLER, SIGMAS, LATENT, and what it is in words.
    """
    made = inverted.inversion
    first = made.first(skip)
    sigma = made.sigmas[first]
    with torch.inference_mode(False), torch.no_grad():
        state = made.states[first].clone()
        if inverted.family == "flow" and sigma < 1:
            state = state / (1 - sigma)  # as the host scales what it is given
        samples = inverted.latent_format.process_out(state)
    latent = {**inverted.rest, "samples": samples}
    sigmas = torch.tensor(made.sigmas[first:], dtype=torch.float32)
    said = f"{made.steps - first} of {made.steps} steps, from sigma {sigma:.4g}"
    return _Replaying(inverted, first), sigmas, latent, said


def check_conditioning(guider: Any) -> None:
    """Refuse a GUIDER that cannot be asked, or has no prompt.

    Raises:
        ValueError: Says what it lacks.
    """
    if not hasattr(guider, "predict_noise") or not hasattr(guider, "original_conds"):
        raise ValueError(
            f"This GUIDER ({type(guider).__name__}) is none of ComfyUI's kind: connect a Basic Guider or a CFG Guider."
        )
    if not any(guider.original_conds.values()):
        raise ValueError(
            "This GUIDER has no conditioning: connect a prompt to it; CLIP Text Encode without a text is one."
        )


def prompt_of(guider: Any) -> str:
    """A hash of what a GUIDER is asked with, edits apart."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{getattr(guider, 'cfg', 1.0):.9g}".encode())
    for key, conds in sorted(guider.original_conds.items()):
        if key.startswith(EDIT):
            continue
        digest.update(f"{key} {len(conds)}".encode())
        for cond in conds:
            for name in ("cross_attn", "pooled_output"):
                value = cond.get(name)
                if isinstance(value, torch.Tensor):
                    digest.update(value.detach().to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()


class _Inverting:
    """A SAMPLER that goes up, and keeps where it was."""

    def __init__(self, method: Method, known: Levels):
        self._method, self._levels = method, known
        self.inversion: Inversion | None = None

    def sample(
        self,
        model_wrap: Any,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        callback: Callable[..., Any] | None,
        noise: torch.Tensor,
        latent_image: torch.Tensor | None = None,
        denoise_mask: torch.Tensor | None = None,
        disable_pbar: bool = False,
    ) -> torch.Tensor:
        """The latent at the highest level ``[B, ...]``."""
        x = (noise if latent_image is None else latent_image).float()
        check_latent(x, model_wrap.inner_model)
        bar = console_bar(len(sigmas) - 1, disable_pbar)

        def watch(i: int, total: int, step: Stepped) -> None:
            bar.total = total
            bar.update(i + 1 - bar.n)
            if callback is not None:
                callback(i, step.denoised, step.asked, total)

        draw = KeyedNoise(int(extra_args.get("seed") or 0))
        try:
            with torch.no_grad():
                self.inversion = self._method.invert(
                    _denoise(model_wrap, extra_args),
                    x,
                    course(sigmas),
                    draw,
                    levels=self._levels,
                    watch=watch,
                )
        finally:
            bar.close()
        return self.inversion.states[0].to(x.device)


class _Replaying:
    """A SAMPLER that goes an inversion down, from a step on; noise and latent that come are not looked at."""

    def __init__(self, inverted: Inverted, first: int):
        self._inverted, self._first = inverted, first

    def sample(
        self,
        model_wrap: Any,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        callback: Callable[..., Any] | None,
        noise: torch.Tensor,
        latent_image: torch.Tensor | None = None,
        denoise_mask: torch.Tensor | None = None,
        disable_pbar: bool = False,
    ) -> torch.Tensor:
        """The picture ``[B, ...]``."""
        made = self._inverted.inversion
        self._check(model_wrap, sigmas, noise)
        total = made.steps - self._first
        bar = console_bar(total, disable_pbar)

        def watch(i: int, step: Stepped) -> None:
            bar.update(i + 1 - bar.n)
            if callback is not None:
                callback(i, step.denoised, step.asked, total)

        known = levels.of_sampling(model_wrap.inner_model.model_sampling)
        try:
            with torch.no_grad():
                x = replay(
                    made,
                    _denoise(model_wrap, extra_args),
                    first=self._first,
                    mask=denoise_mask,
                    device=noise.device,
                    levels=known,
                    watch=watch,
                )
        finally:
            bar.close()
        return model_wrap.inner_model.model_sampling.inverse_noise_scaling(sigmas[-1], x)

    def _check(self, model_wrap: Any, sigmas: torch.Tensor, noise: torch.Tensor) -> None:
        made, network = self._inverted.inversion, model_wrap.inner_model
        check_latent(noise, network)
        family = levels.of_sampling(network.model_sampling).family
        ours, theirs = (
            type(one).__name__ for one in (self._inverted.latent_format, network.latent_format)
        )
        if (family, theirs) != (self._inverted.family, ours):
            raise ValueError(
                f"This inversion is of another kind of model ({ours}, {self._inverted.family}) than the one that "
                f"samples ({theirs}, {family}): invert the picture with the model that is to sample it."
            )
        _check_sigmas(course(sigmas), made.sigmas[self._first :])
        wanted = list(made.states.shape[1:])
        if list(noise.shape) != wanted:
            raise ValueError(
                f"This inversion is of latents {wanted}, and LATENT is {list(noise.shape)}: connect LATENT of Replay "
                "Inversion to the node that samples."
            )
        if prompt_of(model_wrap) != self._inverted.prompt:
            _log.info(
                "The prompt or its cfg is not that of the inversion: without edits, too, the picture is another."
            )


def _check_sigmas(came: tuple[float, ...], wanted: tuple[float, ...]) -> None:
    hint = "connect SIGMAS of Replay Inversion to the node that samples."
    if len(came) != len(wanted):
        raise ValueError(
            f"SIGMAS has {len(came) - 1} steps from {came[0]:.4g}, and this inversion {len(wanted) - 1} from "
            f"{wanted[0]:.4g}: {hint}"
        )
    for i, (one, other) in enumerate(zip(came, wanted, strict=True)):
        if abs(one - other) > _SAME * max(one, other):
            raise ValueError(
                f"Level {i + 1} of SIGMAS is {one:.6g}, and that of this inversion {other:.6g}: {hint}"
            )


def _denoise(model_wrap: Any, extra_args: dict[str, Any]) -> Denoise:
    import comfy.model_management

    arguments = {key: extra_args[key] for key in ("model_options", "seed") if key in extra_args}

    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        return model_wrap(x, x.new_full((x.shape[0],), sigma), **arguments)

    return denoise


def _pictures(latent: dict[str, Any], latent_format: Any) -> torch.Tensor:
    """The samples of a LATENT.

    Raises:
        ValueError: They are none that can be inverted.
    """
    samples = latent["samples"]
    if getattr(samples, "is_nested", False):
        raise ValueError(
            "This LATENT is several in one (nested, as of models that make pictures and sound), which cannot be "
            "inverted: take a model with one latent."
        )
    channels = latent_format.latent_channels
    if latent_format.latent_dimensions == 3 and samples.ndim == 4:
        samples = samples.unsqueeze(2)
    if samples.ndim != latent_format.latent_dimensions + 2 or samples.shape[1] != channels:
        raise ValueError(
            f"LATENT is {list(samples.shape)}, and this MODEL ({type(latent_format).__name__}) takes "
            f"{channels} channels in {latent_format.latent_dimensions + 2} dimensions: encode the picture with the VAE "
            "of the model."
        )
    if not bool(torch.isfinite(samples).all()):
        raise ValueError("LATENT has numbers that are not finite: encode the picture again.")
    if not bool(samples.any()):
        raise ValueError(
            "LATENT is empty, all 0, and there is no picture to invert: connect VAE Encode."
        )
    return samples
