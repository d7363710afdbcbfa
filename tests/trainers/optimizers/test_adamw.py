# SPDX-License-Identifier: Apache-2.0
"""AdamW by hand."""

import torch

from graft.trainers.optimizers import Optimizer
from graft.trainers.optimizers.adamw import AdamW
from graft.trainers.stepping import Stepper


def test_one_step_by_hand():
    """m = g (1-b1), v = g^2 (1-b2); bias-corrected m/sqrt(v) = sign(g): p = p (1 - lr wd) - lr sign(g)."""
    p = torch.nn.Parameter(torch.tensor([2.0, -3.0]))
    optimizer = AdamW(lr=0.1, weight_decay=0.5).build([p])
    p.grad = torch.tensor([2.0, -2.0])
    optimizer.step()
    torch.testing.assert_close(
        p.detach(), torch.tensor([2.0 * 0.95 - 0.1, -3.0 * 0.95 + 0.1]), atol=1e-5, rtol=0
    )


def test_one_group_has_the_bits_of_a_plain_list():
    """Parts that are all alike train as torch's optimizer over the bare parameters does."""
    ours, plain = ([torch.nn.Parameter(torch.ones(3)) for _ in range(2)] for _ in range(2))
    settings = AdamW(lr=0.01)
    stepper, library = Stepper(Optimizer(settings), {"a": ours[0], "b": ours[1]}), None
    library = torch.optim.AdamW(plain, lr=0.01, weight_decay=0.01, fused=True)
    for step in range(4):
        for k, (p, q) in enumerate(zip(ours, plain, strict=True)):
            p.grad = torch.sin(torch.arange(3.0) + step + k)
            q.grad = p.grad.clone()
        stepper.begin(step, 4)
        stepper.step()
        library.step()
    assert all(torch.equal(p, q) for p, q in zip(ours, plain, strict=True))
