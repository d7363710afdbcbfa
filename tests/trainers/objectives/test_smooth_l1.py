# SPDX-License-Identifier: Apache-2.0
"""Smooth L1: r^2 / (2 beta) below beta, |r| - beta / 2 above."""

import torch

from graft.trainers.objectives.metrics.smooth_l1 import SmoothL1
from tests.trainers.toy import Toy


def test_values_by_hand():
    r = torch.tensor([[-2.0, 0.25, 0.5]])
    found = SmoothL1(beta=0.5)(r, torch.tensor([1.0]), Toy("eps"))
    torch.testing.assert_close(found, torch.tensor([[1.75, 0.0625, 0.25]]))
