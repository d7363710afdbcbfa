# SPDX-License-Identifier: Apache-2.0
"""diffusers' schedules as an oracle."""

import torch
from diffusers.optimization import get_scheduler

CASES = [(0, 1), (0, 2), (0, 7), (0, 50), (1, 50), (10, 50), (49, 50), (0, 1000)]


def diffusers_factors(name, warmup, total, **values):
    """The library's factors at the ends of the steps of a plan, through its public interface."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(
        name, optimizer, num_warmup_steps=warmup + 1, num_training_steps=total, **values
    )
    factors = []
    for _ in range(total):
        optimizer.step()
        scheduler.step()
        factors.append(scheduler.get_last_lr()[0])
    return factors
