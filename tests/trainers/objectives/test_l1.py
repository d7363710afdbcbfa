# SPDX-License-Identifier: Apache-2.0
"""The absolute error."""

import torch

from graft.trainers.objectives.metrics.l1 import L1
from tests.trainers.toy import Toy


def test_values_by_hand():
    r = torch.tensor([[-2.0, 0.25, 0.0]])
    found = L1()(r, torch.tensor([1.0]), Toy("eps"))
    assert torch.equal(found, torch.tensor([[2.0, 0.25, 0.0]]))
