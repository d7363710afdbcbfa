# SPDX-License-Identifier: Apache-2.0
"""Every cut of the effective batch gives the same run, whatever is chosen; a run in two parts equals one."""

import pytest
import torch

from graft.adapters.attach import Attached
from graft.adapters.lora import LoRA
from graft.trainers.loop import Loop
from graft.trainers.objectives import METRICS, NOISE, NOISINGS, WEIGHTS, Objective
from graft.trainers.optimizers import Optimizer
from graft.trainers.optimizers.adamw import AdamW
from graft.trainers.plan import Plan
from tests.trainers.toy import Toy, ToyData, ToyNetwork

CHOICES = [
    {"noise": "log-normal", "stratified": True, "sigma_min": 0.2},
    {"noise": "karras", "weight": "p2", "noising": "offset"},
    {"weight": "soft-min-snr", "metric": "huber", "noising": "pyramid"},
    {"noise": "log-normal", "learn_log_variance": True},
    {"weight": "elbo", "metric": "l1", "input_perturbation": 0.2, "stratified": True},
]
REGISTRIES = {"noise": NOISE, "weight": WEIGHTS, "metric": METRICS, "noising": NOISINGS}


def run(choice, batch, accumulate, steps=3, state=None):
    """A short run of a toy; 2 of the 3 steps, and then the third, where a state is given or asked for."""
    network = ToyNetwork()
    settings = {k: REGISTRIES[k].get(v)() if k in REGISTRIES else v for k, v in choice.items()}
    loop = Loop(
        Toy("eps", network),
        ToyData(),
        Attached(network, LoRA(rank=2, blocks="all"), 3),
        Objective(**settings),
        Optimizer(AdamW(lr=1e-2)),
        Plan(steps=steps, total_steps=3, batch_size=batch, accumulate=accumulate, seed=3),
    )
    if state is not None:
        loop.resume(state)
    loop.run()
    return loop


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: "-".join(map(str, choice.values())))
def test_cuts_and_parts_are_the_same_run(choice):
    whole = run(choice, 4, 1)
    for batch, accumulate in ((2, 2), (1, 4)):
        other = run(choice, batch, accumulate)
        torch.testing.assert_close(other.losses, whole.losses, rtol=1e-5, atol=0)
        assert [row[0] for row in other.record.rows] == [row[0] for row in whole.record.rows]
    tail = run(choice, 4, 1, steps=1, state=run(choice, 4, 1, steps=2).state())
    assert tail.losses == whole.losses
    for key, value in whole.network.tensors().items():
        assert torch.equal(value, tail.network.tensors()[key]), key
