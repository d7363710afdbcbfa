# SPDX-License-Identifier: Apache-2.0
"""A sampler of ours as the host's SAMPLER, with its callback, preview, progress bar and interruption."""

from collections.abc import Callable
from typing import Any

import torch

from ...registry import options_of
from ...samplers import SAMPLERS, KeyedNoise, Sampler, Stepped, evaluations, sample
from . import levels

_ORDERS = {0: "solves no ODE", 1: "first order", 2: "second order"}


def sampler(settings: Sampler) -> Any:
    """The SAMPLER of some settings."""
    import comfy.samplers

    return comfy.samplers.KSAMPLER(_function(settings))


def build(name: str, options: str, eta: float, **churn: float) -> tuple[Sampler, list[str]]:
    """The settings of a sampler.

    Args:
        name: Of the sampler.
        options: Values of its fields, ``name=value``.
        eta: Its eta or gamma; below 0 its own default.
        churn: s_churn, s_tmin, s_tmax and s_noise.

    Returns:
        The settings, and a sentence on each value that this sampler has no use for.

    Raises:
        ValueError: No such sampler or option, or a value is outside of its limits.
    """
    kind = SAMPLERS.get(name)
    values = dict(churn)
    if eta >= 0:
        values["gamma" if "gamma" in options_of(kind) else "eta"] = eta
    unused = [key for key in ("s_churn", "eta") if values.get(key) and key not in options_of(kind)]
    said = [f"{name} has no {key}: {values[key]:g} is not used." for key in unused]
    return SAMPLERS.parse(name, options, **values), said


def describe(settings: Sampler, sigmas: torch.Tensor | None = None) -> str:
    """A sampler in words.

    Args:
        settings: The sampler.
        sigmas: SIGMAS that it is to go through ``[N + 1]``, where they are known.

    Returns:
        Order, noise and how often the model is asked.

    Raises:
        ValueError: The SIGMAS are none to sample at.
    """
    if settings.is_stochastic:
        option = settings.noise_option
        noise = f"adds noise ({option} {getattr(settings, option):g})"
    else:
        noise = "adds no noise"
    said = [f"{settings.name}: {_ORDERS[settings.order]}, {noise}"]
    if sigmas is not None:
        count = evaluations(settings, sigmas)
        said.append(f"{len(sigmas) - 1} steps, {count} evaluations of the model (NFE)")
    elif settings.calls == 1:
        said.append("1 evaluation of the model a step (NFE N for N steps)")
    else:
        said.append(
            f"{settings.calls} evaluations of the model a step, 1 for that to 0 (NFE {settings.calls} N - 1 for N "
            "steps)"
        )
    return "\n".join(said)


def _function(settings: Sampler) -> Callable[..., torch.Tensor]:
    """What the host's KSAMPLER calls."""

    def graft_sampler(
        model: Any,
        x: torch.Tensor,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], Any] | None = None,
        disable: bool | None = None,
    ) -> torch.Tensor:
        import comfy.model_management

        arguments = extra_args or {}
        network = model.inner_model.inner_model
        check_latent(x, network)
        bar = console_bar(len(sigmas) - 1, disable)

        def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
            comfy.model_management.throw_exception_if_processing_interrupted()
            return model(x, x.new_full((x.shape[0],), sigma), **arguments)

        def watch(i: int, step: Stepped) -> None:
            bar.update(i + 1 - bar.n)
            if callback is not None:
                said = {"sigma": sigmas[i], "sigma_hat": sigmas.new_tensor(step.sigma)}
                callback({"x": step.asked, "i": i, "denoised": step.denoised, **said})

        noise = KeyedNoise(int(arguments.get("seed") or 0))
        known = levels.of_sampling(network.model_sampling)
        try:
            with torch.no_grad():
                return sample(settings, denoise, x, sigmas, noise, levels=known, watch=watch)
        finally:
            bar.close()

    return graft_sampler


def check_latent(x: torch.Tensor, network: Any) -> None:
    """Refuse latents that the host has packed into one, as it does with pictures and sound."""
    wanted = getattr(network.latent_format, "latent_dimensions", 2)
    if x.ndim == 3 and x.shape[1] == 1 and wanted != 1:
        raise ValueError(
            "This latent is several in one (nested, as of models that make pictures and sound), which this sampler "
            "does not take. Take one of ComfyUI's own samplers for this model."
        )


def console_bar(steps: int, disable: bool | None) -> Any:
    """The host's progress bar in the console, where it has one of its own, else tqdm's."""
    import comfy.utils
    from tqdm.auto import trange

    return getattr(comfy.utils, "model_trange", trange)(steps, disable=disable)
