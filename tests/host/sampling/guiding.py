# SPDX-License-Identifier: Apache-2.0
"""Sampling as SamplerCustomAdvanced does it, with the host's own nodes."""

import torch

from tests.host import tiny


def noise(seed):
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    return Noise_RandomNoise(seed)


def run(model, family, sampler, sigmas, *, batch=1, seed=5, cfg=2.0, samples=None, mask=None):
    """Both LATENT outputs of the host's SamplerCustomAdvanced."""
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced

    with torch.inference_mode():
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(tiny.conditioning(family), tiny.conditioning(family, seed=6))
        guider.set_cfg(cfg)
        empty = torch.zeros_like(tiny.latent(family, batch=batch))
        latent = {"samples": empty if samples is None else samples}
        if mask is not None:
            latent["noise_mask"] = mask
        execute = getattr(SamplerCustomAdvanced, "execute", None) or SamplerCustomAdvanced().sample
        done = execute(noise(seed), guider, sampler, sigmas.clone(), latent)
        return getattr(done, "args", done)
