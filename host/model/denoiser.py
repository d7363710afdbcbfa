# SPDX-License-Identifier: Apache-2.0
"""ComfyUI's `BaseModel.apply_model` as the trainer's Denoiser, and what makes the host's forward trainable.

The wire's object patches, model patches, wrappers and function wrapper are part of D, as they are for the
sampler. fp32 goes in and comes out; the network computes in the dtype that the trainee has set.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...adapters import rows
from .sampling import HostSampling

if TYPE_CHECKING:
    from ..text.conditioning import Batch

WINDOW = 48  # layer calls after which a write to a layer's input is no longer looked for


class HostDenoiser(HostSampling):
    """D(x; sigma, cond) over a loaded ModelPatcher.

    Args:
        patcher: the training clone, loaded (`host.model.trainee.trainee` makes both).
    """

    def __init__(self, patcher: Any):
        super().__init__(patcher.model.model_sampling, patcher.load_device)
        self._patcher = patcher
        self._model = patcher.model
        self._options = _transformer_options(patcher)
        self._wrapper = patcher.model_options.get("model_function_wrapper")
        self._guards: list[Any] | None = None
        self.device: torch.device = patcher.load_device

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, cond: Batch) -> torch.Tensor:
        """Denoise.

        Args:
            x: noised latents ``[B, C, ...]``.
            sigma: noise levels ``[B]``.
            cond: what `Conditioner.batch` made of B items.

        Returns:
            D, fp32 ``[B, C, ...]`` on the trainee's device, differentiable.

        Raises:
            ValueError: x is a nested latent, or the sizes of x, sigma and cond differ.
        """
        if getattr(x, "is_nested", False):
            raise ValueError(
                "nested (audio-video) latents cannot be trained: use a model with one latent"
            )
        if not (x.shape[0] == sigma.shape[0] == len(cond)):
            raise ValueError(
                f"a batch of {x.shape[0]} latents needs as many sigmas ({sigma.shape[0]}) "
                f"and conditionings ({len(cond)})"
            )
        x = x.to(self.device, torch.float32)
        sigma = sigma.to(self.device, torch.float32)
        if self._guards is None and torch.is_grad_enabled():
            # Not known before it has run through: it may be interrupted, or run out of memory.
            self._guards = guard_inputs(
                self._model.diffusion_model, lambda: self._forward(x, sigma, cond), x.device
            )
        return self._forward(x, sigma, cond)

    def close(self) -> None:
        """Take this object's hooks off the network."""
        for handle in self._guards or ():
            handle.remove()
        self._guards = None

    def _forward(self, x: torch.Tensor, sigma: torch.Tensor, cond: Batch) -> torch.Tensor:
        if len(cond.groups) == 1:
            return self._apply(x, sigma, cond.groups[0][1])
        parts: list[torch.Tensor] = []
        order: list[int] = []
        for indices, inputs in cond.groups:
            at = torch.tensor(indices, device=x.device)
            with rows.only(indices):
                parts.append(self._apply(x[at], sigma[at], inputs))
            order.extend(indices)
        back = torch.tensor(order, device=x.device).argsort()
        return torch.cat(parts)[back]

    def _apply(self, x: torch.Tensor, sigma: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        options = {
            **self._options,
            "cond_or_uncond": [0],
            "uuids": [uuid.uuid4()],
            "sigmas": sigma,
            "sample_sigmas": sigma,
        }
        c = {**inputs, "transformer_options": options}
        self._model.current_patcher = self._patcher
        if self._wrapper is None:
            out = self._model.apply_model(x, sigma, **c)
        else:
            call = {"input": x, "timestep": sigma, "c": c, "cond_or_uncond": [0]}
            out = self._wrapper(self._model.apply_model, call)
        return out.float()


def _transformer_options(patcher: Any) -> dict[str, Any]:
    """The options that the host's sampler would hand to the network, with a differentiable attention."""
    from comfy.patcher_extension import copy_nested_dicts, merge_nested_dicts

    options = copy_nested_dicts(patcher.model_options).get("transformer_options", {})
    for name in ("wrappers", "callbacks"):
        own = getattr(patcher, name, {})
        merge_nested_dicts(options.setdefault(name, {}), own, copy_dict1=False)
    differentiable_attention(options)
    return options


def differentiable_attention(options: dict[str, Any]) -> None:
    """Let the network use an attention that has a backward.

    Args:
        options: the transformer options, which are changed.
    """
    import comfy.ldm.modules.attention as attention

    kept = (attention.attention_pytorch, getattr(attention, "attention_xformers", None))
    if "optimized_attention_override" in options or attention.optimized_attention not in kept:
        # Sage, flash and the like may have no backward; the sub-quadratic one keeps more.
        exact = attention.attention_pytorch
        options["optimized_attention_override"] = lambda _, *args, **kwargs: exact(*args, **kwargs)


def guard_inputs(network: nn.Module, forward: Callable[[], Any], device: torch.device) -> list[Any]:
    """Make layers keep a copy of inputs that the network overwrites afterwards (`x += f(norm(x))`).

    Such a layer would save x for its backward, and autograd would refuse the overwritten x. One forward without
    gradients finds out which layers these are; the others are left alone.

    Args:
        network: the module whose leaf layers are looked at.
        forward: runs the network once.
        device: where it runs; its generator is left as it was.

    Returns:
        Handles of the hooks that stay, to be removed by the caller.
    """
    recent: list[tuple[nn.Module, torch.Tensor, int]] = []
    written: dict[nn.Module, None] = {}

    def settle(keep: int) -> None:
        for module, x, version in recent:
            if x._version != version:
                written[module] = None
        del recent[: max(0, len(recent) - keep)]

    def look(module: nn.Module, args: tuple[Any, ...]) -> None:
        settle(WINDOW - 1)
        if args and isinstance(args[0], torch.Tensor):
            recent.append((module, args[0], args[0]._version))

    leaves = [m for m in network.modules() if next(m.children(), None) is None]
    handles = [m.register_forward_pre_hook(look) for m in leaves]
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            forward()
        settle(0)
    finally:
        for handle in handles:
            handle.remove()
    return [m.register_forward_pre_hook(_copy_input) for m in written]


def _copy_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    if torch.is_grad_enabled() and isinstance(args[0], torch.Tensor):
        return (args[0].clone(), *args[1:])
    return None


@contextmanager
def differentiable_rope() -> Iterator[None]:
    """Replace the host's rotary embedding by plain torch code where it has no backward.

    Hosts between 0.8 and 0.13 call comfy-kitchen here, whose operators autograd cannot enter. Whether that is so is
    found by trying.
    """
    import comfy.ldm.flux.math as flux

    replaced: list[tuple[Any, str, Any]] = []
    try:
        for name, own in (("apply_rope1", _rope1), ("apply_rope", _rope)):
            old = getattr(flux, name, None)
            if old is None or _has_backward(old, name == "apply_rope"):
                continue
            for module in list(sys.modules.values()):
                if getattr(module, "__name__", "").startswith("comfy.") and (
                    module.__dict__.get(name) is old
                ):
                    replaced.append((module, name, old))
                    setattr(module, name, own)
        yield
    finally:
        for module, name, old in replaced:
            setattr(module, name, old)


def _has_backward(function: Callable[..., Any], takes_two: bool) -> bool:
    x = torch.ones(1, 1, 1, 4, requires_grad=True)
    turn = torch.ones(1, 1, 1, 2, 2, 2)
    try:
        out = function(x, x, turn)[0] if takes_two else function(x, turn)
        out.sum().backward()
    except (RuntimeError, NotImplementedError):
        return False
    return x.grad is not None


def _rope1(x: torch.Tensor, freqs_cis: torch.Tensor) -> torch.Tensor:
    """Rotate pairs of ``x`` ``[..., D]`` by the matrices ``freqs_cis`` ``[..., D/2, 2, 2]``."""
    pairs = x.to(freqs_cis.dtype).reshape(*x.shape[:-1], -1, 1, 2)
    return (freqs_cis * pairs).sum(-1).reshape(x.shape).type_as(x)


def _rope(
    xq: torch.Tensor, xk: torch.Tensor, freqs_cis: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return _rope1(xq, freqs_cis), _rope1(xk, freqs_cis)
