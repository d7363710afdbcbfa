# SPDX-License-Identifier: Apache-2.0
"""The noise levels of a MODEL and how it noises and denoises, by its own `model_sampling`.

Works on the MODEL as it is on the wire, without loading it; object patches of the wire count.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from ...trainers.facts import facts
from ...trainers.objectives.check import check_zero_terminal

PATCH = "model_sampling"


class HostSampling:
    """Implements the trainer's ``Preconditioning``.

    Args:
        sampling: the host's `model_sampling`.
        device: where it is asked for time steps.

    Attributes:
        sigmas: its table, ascending, fp32 on the CPU ``[N]``; without a level that a model is not to be trained at.
    """

    def __init__(self, sampling: Any, device: torch.device | str = "cpu"):
        self._sampling = sampling
        table = torch.as_tensor(sampling.sigmas)
        table = table[: getattr(sampling, "trained_levels", len(table))]  # of our own models
        self.sigmas: torch.Tensor = table.detach().to("cpu", torch.float32).clone()
        probe = sampling.timestep(self.sigmas[:1].to(device))
        self._is_discrete = not torch.is_floating_point(probe)
        if not self._is_discrete:
            probe = sampling.timestep(self.sigmas[-1:].to(device))
            self._is_discrete = not torch.is_floating_point(probe)

    def nearest(self, sigma: torch.Tensor) -> torch.Tensor:
        """Snap to the table of a discrete model as its `timestep` does; else return ``sigma``.

        Args:
            sigma: noise levels ``[B]``.

        Returns:
            Levels of the table, or ``sigma`` itself, ``[B]``.
        """
        if not self._is_discrete:
            return sigma
        table = self.sigmas.to(sigma.device)
        distance = sigma.float().log() - table.log()[:, None]
        return table[distance.abs().argmin(dim=0)].view(sigma.shape)

    def add_noise(
        self, sigma: torch.Tensor, noise: torch.Tensor, clean: torch.Tensor
    ) -> torch.Tensor:
        """Noise a clean latent as the host's sampler does.

        Args:
            sigma: noise levels ``[B]``.
            noise: standard normal ``[B, C, ...]``.
            clean: latents in the model's units ``[B, C, ...]``.

        Returns:
            The input x of D, fp32 ``[B, C, ...]``.
        """
        return self._sampling.noise_scaling(sigma.float(), noise.float(), clean.float())

    def combine(self, sigma: torch.Tensor, output: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Turn the network's output into the denoised latent.

        Args:
            sigma: noise levels ``[B]``.
            output: the raw network's output ``[B, C, ...]``.
            x: the noised latent ``[B, C, ...]``.

        Returns:
            The denoised latent, fp32 ``[B, C, ...]``.
        """
        return self._sampling.calculate_denoised(sigma.float(), output.float(), x.float())


def of_model(model: Any) -> HostSampling:
    """The sampling of a MODEL on the wire, with its object patch where it has one."""
    return HostSampling(model.get_model_object(PATCH))


def zero_terminal(model: Any) -> Any:
    """A MODEL whose last noise level has no picture in it (Lin et al. 2023, Algorithm 1; arXiv 2305.08891).

    Args:
        model: a ModelPatcher.

    Returns:
        A clone with ComfyUI's rescaled table as an object patch, or ``model`` where it has such a table already.

    Raises:
        ValueError: the model cannot use such a table; says why and what to do.
    """
    from comfy.model_sampling import rescale_zero_terminal_snr_sigmas

    known = facts(of_model(model))
    check_zero_terminal(known)
    if known.is_zero_terminal:
        return model
    with torch.inference_mode(False), torch.no_grad():
        made = copy.deepcopy(model.get_model_object(PATCH)).to("cpu")
        table = rescale_zero_terminal_snr_sigmas(made.sigmas.detach().clone().double())
        made.set_sigmas(table)
    made.zsnr = True
    patched = model.clone()
    patched.add_object_patch(PATCH, made)
    return patched
