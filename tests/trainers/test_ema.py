# SPDX-License-Identifier: Apache-2.0
"""The moving average against diffusers' EMAModel and in closed form."""

import pytest
import torch
from diffusers.training_utils import EMAModel

from graft.trainers.ema import EMA
from graft.trainers.optimizers import Optimizer
from graft.trainers.optimizers.adamw import AdamW
from tests.trainers import oracles
from tests.trainers.test_loop import make


def trajectory(steps):
    """Parameters, and a function that moves them."""
    generator = torch.Generator().manual_seed(0)
    parameters = {
        name: torch.nn.Parameter(torch.randn(shape, generator=generator))
        for name, shape in (("a", (3, 5)), ("b", (7,)))
    }

    @torch.no_grad()
    def move():
        for p in parameters.values():
            p.add_(torch.randn(p.shape, generator=generator), alpha=0.1)

    return parameters, move


@pytest.mark.parametrize("decay", [0.15, 0.9, 0.9999])
def test_it_is_diffusers_bit_for_bit(decay):
    assert oracles.ema_gap(decay) == 0


def test_along_a_run_it_is_diffusers_bit_for_bit():
    loop = make(steps=6, optimizer=Optimizer(AdamW(lr=1e-2), ema_decay=0.5))
    library = EMAModel(loop.parameters.values(), decay=0.5)
    loop.after = lambda step: library.step(loop.parameters.values())  # with 0 before the first step
    loop.run()
    with loop.averaged():
        held = [p.detach().clone() for p in loop.parameters.values()]
    assert all(map(torch.equal, held, library.shadow_params))
    assert not any(map(torch.equal, held, loop.parameters.values()))


def test_a_constant_decay_in_closed_form():
    """shadow_n = d^n p0 + (1 - d) sum_i d^(n-i) p_i; d = 0.1 is below 2/11, so it is constant."""
    p = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    ema, values = EMA({"p": p}, 0.1), [3.0, -1.0, 2.0, 5.0]
    for value in values:
        p.data.fill_(value)
        ema.update()
    n = len(values)
    wanted = 0.1**n + 0.9 * sum(0.1 ** (n - i) * v for i, v in enumerate(values, 1))
    assert float(ema.state()["p"]) == pytest.approx(wanted, rel=1e-6)


def test_the_first_updates_by_hand():
    """Decays 2/11 and 3/12: from 0, weights of 1 and then 2 give 9/11, then 9/11 + 3/4 (2 - 9/11)."""
    p = torch.nn.Parameter(torch.zeros(1))
    ema = EMA({"p": p}, 0.999)
    for value, wanted in ((1.0, 9 / 11), (2.0, 9 / 11 + 0.75 * (2 - 9 / 11))):
        p.data.fill_(value)
        ema.update()
        assert float(ema.state()["p"]) == pytest.approx(wanted, rel=1e-6)


def test_the_weights_come_back_whatever_happens_and_however_deep():
    parameters, move = trajectory(1)
    ema = EMA(parameters, 0.9)
    move()
    before = {name: p.detach().clone() for name, p in parameters.items()}
    with pytest.raises(KeyError), ema.applied():
        with ema.applied():
            pass
        assert all(torch.equal(ema.state()[name], p) for name, p in parameters.items())
        raise KeyError
    assert all(torch.equal(before[name], p) for name, p in parameters.items())


def test_shadows_are_fp32_of_weights_that_are_not():
    """Steps of 2^-9 at 1 are lost in bf16 but not in their average."""
    p = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    ema = EMA({"p": p}, 0.99)
    p.data.fill_(1 + 2**-7)
    ema.update()
    assert ema.state()["p"].dtype == torch.float32
    assert float(ema.state()["p"]) == pytest.approx(1 + 2**-7 * 9 / 11, abs=1e-7)
    with ema.applied():
        assert p.dtype == torch.bfloat16


def test_shadows_of_other_parameters_are_refused():
    parameters, _ = trajectory(1)
    with pytest.raises(ValueError, match="averages other parameters"):
        EMA(parameters, 0.9).load({"c": torch.zeros(1)}, 3)
    with pytest.raises(ValueError, match="averages other parameters"):  # a 1 would fit every shape
        EMA(parameters, 0.9).load({"a": torch.zeros(1), "b": torch.zeros(1)}, 3)
