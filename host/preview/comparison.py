# SPDX-License-Identifier: Apache-2.0
"""Whether MODEL out draws what the trainee drew: the first picture of the last preview, once more."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ...trainers.preview import Preview
from . import sampled as preview


@dataclass(frozen=True, eq=False)
class Shown:
    """A preview: the step it was made after, what it was sampled with, and its first picture ``[h, w, 3]``."""

    step: int
    prompts: preview.Prompts
    settings: Preview
    given: Mapping[str, Any]
    picture: torch.Tensor


def difference(model: Any, shown: Shown, vae: Any) -> float:
    """Sample the first picture again, as a node of the graph would, and compare.

    Args:
        model: MODEL out.
        shown: The preview.
        vae: The VAE on the wire.

    Returns:
        The largest difference of a pixel's channel, whose range is 0..1.
    """
    first = preview.Prompts(shown.prompts.positive[:1], shown.prompts.negative)
    with preview.generators_kept(), torch.inference_mode():
        (latent,) = preview.sampled(model, first, shown.settings, vae, **shown.given)
        return float((preview.decoded(vae, latent)[0] - shown.picture).abs().max())
