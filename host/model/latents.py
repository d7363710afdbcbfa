# SPDX-License-Identifier: Apache-2.0
"""The units of a MODEL's latents, with the object patch of the wire where it has one."""

from typing import Any

import torch


def form_of(model: Any) -> Any:
    """The latent format of a ModelPatcher, with its object patch, or of a BaseModel."""
    find = getattr(model, "get_model_object", None)
    return model.latent_format if find is None else find("latent_format")


def process_in(model: Any, latent: torch.Tensor) -> torch.Tensor:
    """Latents of a VAE in the model's units.

    Args:
        model: A ModelPatcher or BaseModel.
        latent: What the VAE makes ``[B, C, ...]``.

    Returns:
        ``[B, C, ...]``.
    """
    base, form = getattr(model, "model", model), form_of(model)
    # Some of the host's models do more than their format; a patch takes the format's place alone.
    return base.process_latent_in(latent) if form is base.latent_format else form.process_in(latent)
