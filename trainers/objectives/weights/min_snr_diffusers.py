# SPDX-License-Identifier: Apache-2.0
"""Min-SNR-gamma as diffusers' SDXL LoRA scripts write it for v models: min(SNR, gamma) / SNR + 1.

So do train_dreambooth_lora_sdxl.py and train_dreambooth_lora_sdxl_advanced.py, where the paper (Hang et al. 2023;
arXiv 2303.09556), diffusers' text-to-image scripts and `min-snr` have min(SNR, gamma) / (SNR + 1). For eps models
both are min(SNR, gamma) / SNR.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ....registry import check_limits, option
from ...denoiser import Preconditioning, snr
from ...facts import facts
from .. import WEIGHTS


@WEIGHTS.register("min-snr-diffusers")
@dataclass(frozen=True)
class MinSNRDiffusers:
    """For parity with LoRAs of v models from those scripts; no level counts less than 1 there."""

    families: ClassVar = ("eps", "v")
    remedy: ClassVar = "take min-snr, or soft-min-snr for an EDM model"
    gamma: float = option(5.0, "SNR from which a step counts less.", min=1e-3, max=1e6)

    def __post_init__(self) -> None:
        check_limits(self)

    def __call__(self, sigma: torch.Tensor, denoiser: Preconditioning) -> torch.Tensor:
        """min(SNR, gamma) / SNR, and 1 more for v models."""
        ratio = (self.gamma / snr(denoiser, sigma).clamp(min=1e-20)).clamp(max=1.0)
        return ratio + 1 if facts(denoiser).family == "v" else ratio
