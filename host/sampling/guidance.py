# SPDX-License-Identifier: Apache-2.0
"""Guidance on a MODEL of the host: whatever samples with it, with any guider and sampler, is guided.

A wrapper around the host's sampling brings one around each call of the model, so that nothing of it is in the MODEL
while nothing is sampled. The gradient is of the losses at D, or goes on through the network to its input.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from ...registry import unknown
from ...samplers.guidance import Step, Steps, Term, change, slope
from ..model.denoiser import differentiable_attention, guard_inputs
from ..model.lending import MISSING, on_exit, replace
from ..model.trainable import refuse_untrainable
from ..model.trainee import trainee
from .guidance_view import DECODERS, VAE, GuidanceView
from .recorder import Recorder, Trace, fingerprint

DENOISED, NETWORK = "denoised", "network"
METHODS = (DENOISED, NETWORK)
KEY = "graft_guidance"
TITLE = "Loss of the guidance by call"
_log = logging.getLogger(__name__)


def guide(
    model: Any,
    terms: Sequence[Term],
    *,
    method: str = DENOISED,
    decoder: str = VAE,
    vae: Any = None,
) -> tuple[Any, Recorder]:
    """A clone of a MODEL that is guided wherever it is sampled, and what keeps the losses of each sampling.

    Args:
        model: A ModelPatcher.
        terms: What guides, added up.
        method: Whether the gradient is of the losses at D, or through the network.
        decoder: How latents become pixels.
        vae: The VAE on the wire, or None.

    Raises:
        ValueError: This cannot be; says why and what to do.
    """
    import comfy.patcher_extension

    for kind, name, known in (("method", method, METHODS), ("decode", decoder, DECODERS)):
        if name not in known:
            raise ValueError(unknown(kind, name, known))
    if model.get_wrappers(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, KEY):
        raise ValueError(
            "this MODEL is guided already: connect one Guidance to the guidance of the other, and both to one Guide "
            "Model"
        )
    if method == NETWORK:
        refuse_untrainable(model)
    GuidanceView(model, terms, decoder, vae)
    guided, recorder = model.clone(), Recorder()

    def sample(executor: Any, *args: Any, **more: Any) -> Any:
        view = GuidanceView(model, terms, decoder, vae)
        run = _Run(executor.class_obj, terms, view, method == NETWORK)
        out = run.sample(executor, *args, **more)
        run.keep(recorder, out)
        return out

    guided.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, KEY, sample)
    return guided, recorder


class _Run:
    """One sampling.

    Args:
        guider: The host's.
        terms: What guides.
        view: What the terms see.
        is_through: Whether the gradient goes through the network.
    """

    def __init__(self, guider: Any, terms: Sequence[Term], view: GuidanceView, is_through: bool):
        self._guider, self._terms, self._view = guider, terms, view
        self._is_through = is_through
        self._guards: list[Any] | None = None
        self._losses: dict[str, list[float]] = {name: [] for name in _names(terms)}
        self._levels: list[float] = []
        self._last: torch.Tensor | None = None

    def sample(
        self,
        executor: Any,
        noise: torch.Tensor,
        latent_image: torch.Tensor,
        sampler: Any,
        sigmas: torch.Tensor,
        denoise_mask: torch.Tensor | None = None,
        callback: Callable[..., Any] | None = None,
        *args: Any,
        **more: Any,
    ) -> torch.Tensor:
        """What the host's guider does, guided."""
        _check_latents(noise, more.get("latent_shapes"))
        self._steps = self._make_steps(sigmas)
        tensors = [noise, latent_image, sigmas, denoise_mask]

        def told(step: int, denoised: Any, *rest: Any, **named: Any) -> Any:
            self._steps.done(int(step))
            self._last = denoised
            return None if callback is None else callback(step, denoised, *rest, **named)

        with ExitStack() as stack:
            self._view.prepare(self._guider.model_patcher, noise.shape)
            if self._is_through:
                stack.enter_context(self._through())
                tensors = [_normal(tensor) for tensor in tensors]
            self._install(stack)
            noise, latent_image, sigmas, denoise_mask = tensors  # type: ignore[assignment]
            return executor(noise, latent_image, sampler, sigmas, denoise_mask, told, *args, **more)

    def keep(self, recorder: Recorder, out: torch.Tensor) -> None:
        """Note the losses for what came of the sampling."""
        results = {fingerprint(out)}
        if self._last is not None:
            network = self._guider.model_patcher.model
            results.add(fingerprint(network.process_latent_out(self._last.cpu())))
        lines = {name: tuple(values) for name, values in self._losses.items()}
        counts = len(self._levels), self._steps.count
        recorder.traces.append(
            Trace(TITLE, "call", tuple(self._levels), lines, *counts, frozenset(results))
        )
        _log.info("Guided %d calls of the model; losses: %s", len(self._levels), _courses(lines))

    def predict(
        self,
        executor: Any,
        x: torch.Tensor,
        timestep: torch.Tensor,
        model_options: dict[str, Any] | None = None,
        seed: int | None = None,
    ) -> torch.Tensor:
        """D, guided."""
        rest = ({} if model_options is None else model_options, seed)
        step = self._steps.at(float(timestep.max()))
        terms = [term for term in self._terms if term.weight(step)]
        if not terms:
            self._note(step, terms, [])
            return executor(x, timestep, *rest)
        view = self._view.at(step, 0 if seed is None else seed)
        if not self._is_through:
            denoised = executor(x, timestep, *rest)
            with self._view.differentiable():
                gradient, losses = slope(terms, denoised.float(), step, view)
                added = change(gradient, step).to(denoised)
        else:
            with torch.enable_grad():
                y = x.detach().clone().requires_grad_()
                if self._guards is None:
                    network = self._guider.model_patcher.model.diffusion_model
                    self._guards = guard_inputs(
                        network, lambda: executor(y, timestep, *rest), y.device
                    )
                denoised = executor(y, timestep, *rest)
                with self._view.differentiable():
                    at_d, losses = slope(terms, denoised.float(), step, view)
                (gradient,) = torch.autograd.grad(denoised, y, at_d.to(denoised))
            denoised = denoised.detach()
            added = change(gradient, step, is_by_input=True).to(denoised)
        self._note(step, terms, losses)
        return denoised + added

    def _note(self, step: Step, terms: Sequence[Term], losses: Sequence[Sequence[float]]) -> None:
        """Keep the losses of a call, by picture and term that acts; the means over the pictures."""
        means = [sum(column) / len(column) for column in zip(*losses, strict=True)]
        found = {id(term): mean for term, mean in zip(terms, means, strict=True)}
        for term, values in zip(self._terms, self._losses.values(), strict=True):
            values.append(found.get(id(term), math.nan))
        self._levels.append(step.sigma)

    def _make_steps(self, sigmas: torch.Tensor) -> Steps:
        """Steps in the model's own scale, which is found by asking it for a noised picture."""
        sampling = self._guider.model_patcher.get_model_object("model_sampling")

        def share(picture: float, noise: float) -> Callable[[float], float]:
            def of(sigma: float) -> float:
                with torch.inference_mode(False), torch.no_grad():
                    values = (torch.full((1, 1, 1, 1), v) for v in (noise, picture))
                    return float(sampling.noise_scaling(torch.tensor([sigma]), *values))

            return of

        return Steps(sigmas.tolist(), share(1.0, 0.0), share(0.0, 1.0))

    def _install(self, stack: ExitStack) -> None:
        """The call of the model is wrapped, and what the losses need is loaded beside the model."""
        from comfy.patcher_extension import WrappersMP

        patcher, options = self._guider.model_patcher, self._guider.model_options
        wrappers = options.setdefault("transformer_options", {}).setdefault("wrappers", {})
        # The options are this sampling's own, but what is in them may be the MODEL's.
        kind = WrappersMP.PREDICT_NOISE
        wrappers[kind] = {**wrappers.get(kind, {}), KEY: [self.predict]}
        before = patcher.additional_models.get(KEY, MISSING)
        patcher.set_additional_models(KEY, self._view.patchers)

        def undo() -> None:
            patcher.remove_additional_models(KEY)
            if before is not MISSING:
                patcher.set_additional_models(KEY, before)

        on_exit(stack, undo)

    @contextmanager
    def _through(self) -> Iterator[None]:
        """The guider's model is one that takes gradients."""
        guider = self._guider
        _refuse_controlled(guider.conds)
        with ExitStack() as stack:
            made = stack.enter_context(trainee(guider.model_patcher))
            stack.enter_context(torch.no_grad())
            replace(stack, guider, "model_patcher", made.patcher)
            replace(stack, guider, "conds", _normal(guider.conds))
            options = guider.model_options.setdefault("transformer_options", {})
            differentiable_attention(options)
            on_exit(stack, self._release)
            yield

    def _release(self) -> None:
        for handle in self._guards or ():
            handle.remove()
        self._guards = None


def _check_latents(noise: torch.Tensor, shapes: Sequence[Any] | None) -> None:
    if getattr(noise, "is_nested", False) or (shapes is not None and len(shapes) > 1):
        raise ValueError(
            "nested (audio-video) latents cannot be guided: use a model with one latent"
        )
    if noise.ndim != 4:
        raise ValueError(
            f"guidance looks at pictures, latents [B, C, h, w], and these have the shape {list(noise.shape)}"
        )


def _refuse_controlled(conds: dict[str, list[dict[str, Any]]]) -> None:
    if any(part.get("control") is not None for parts in conds.values() for part in parts):
        raise ValueError(
            f"a ControlNet takes no gradient: set the method of Guide Model to {DENOISED}, or leave the ControlNet out"
        )


def _normal(value: Any) -> Any:
    """Tensors that autograd takes; containers are made anew, all else is the same."""
    if isinstance(value, torch.Tensor):
        with torch.inference_mode(False):
            return value.detach().clone()
    if type(value) in (list, tuple):
        return type(value)(_normal(item) for item in value)
    if type(value) is dict:
        return {key: _normal(item) for key, item in value.items()}
    return value


def _names(terms: Sequence[Term]) -> list[str]:
    """What each term is called, with a number where two are of one kind."""
    kinds = [str(getattr(term.loss, "name", "loss")) for term in terms]  # the registry names them
    seen: Counter[str] = Counter()
    names = []
    for kind in kinds:
        seen[kind] += 1
        names.append(f"{kind} {seen[kind]}" if kinds.count(kind) > 1 else kind)
    return names


def _courses(lines: dict[str, tuple[float, ...]]) -> str:
    """The first and the last value of each line."""
    known = {name: [v for v in values if math.isfinite(v)] for name, values in lines.items()}
    said = [f"{name} from {v[0]:.4g} to {v[-1]:.4g}" for name, v in known.items() if v]
    return ", ".join(said) or "none acted"
