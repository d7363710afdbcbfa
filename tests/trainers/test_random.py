# SPDX-License-Identifier: Apache-2.0
"""Keyed generators: independent of order and of how a batch is cut."""

import torch
from scipy import stats

from graft.trainers import random


def test_draws_depend_on_their_key_alone():
    whole = random.normal((3, 5), 7, 11, range(4))
    parts = torch.cat([random.normal((3, 5), 7, 11, [slot]) for slot in range(4)])
    assert torch.equal(whole, parts)
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(random.normal((3, 5), 7, 12, [0])[0], whole[0])
    assert not torch.equal(random.normal((3, 5), 8, 11, [0])[0], whole[0])
    assert not torch.equal(random.normal((3, 5), 7, 11, [0], "other")[0], whole[0])


def test_first_draws_over_keys_are_uniform_and_normal():
    """Kolmogorov-Smirnov over 2,000 keys, with p > 0.01."""
    u = random.uniform(0, 0, range(2000), "sigma")
    assert stats.kstest(u.numpy(), "uniform").pvalue > 0.01
    n = random.normal((), 0, 0, range(2000))
    assert stats.kstest(n.numpy(), "norm").pvalue > 0.01


def test_the_global_generator_is_untouched():
    before = torch.get_rng_state()
    random.normal((2,), 0, 0, range(3))
    assert torch.equal(before, torch.get_rng_state())
