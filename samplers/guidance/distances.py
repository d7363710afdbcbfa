# SPDX-License-Identifier: Apache-2.0
"""How far two pictures are apart, pixel by pixel: the mean over one picture's own numbers, never over a batch."""

from collections.abc import Callable

import torch

DISTANCES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "l1": lambda difference: difference.abs().mean(),
    "l2": lambda difference: difference.square().mean(),
}
