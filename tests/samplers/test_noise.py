# SPDX-License-Identifier: Apache-2.0
"""Noise is of a seed, a level and a place in the batch."""

import hashlib

import torch

from graft.samplers import KeyedNoise


def test_the_generator_of_a_sample():
    """The key is spelled out: seed, purpose with the level in nine digits, place in the batch."""
    like = torch.zeros(2, 4, 3, 3)
    found = KeyedNoise(11)(like, 14.614642)
    digest = hashlib.blake2b(b"11/sampling at 14.614642/1", digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    assert torch.equal(found[1], torch.randn(4, 3, 3, generator=generator))


def test_it_is_standard_normal_and_independent():
    """Of n = 2 * 50,000 numbers the mean is within 4 / sqrt n, and so is each correlation."""
    like = torch.zeros(2, 50_000)
    high, low, other = KeyedNoise(0)(like, 2.0), KeyedNoise(0)(like, 1.0), KeyedNoise(1)(like, 2.0)
    limit = 4 / 50_000**0.5
    assert abs(float(high.mean())) < limit and abs(float(high.std()) - 1) < limit
    rows = torch.cat([high, low, other])
    assert float((torch.corrcoef(rows) - torch.eye(6)).abs().max()) < limit


def test_it_comes_in_the_latents_precision():
    like = torch.zeros(1, 3, dtype=torch.float64)
    assert KeyedNoise(0)(like, 1.0).dtype == torch.float64
    assert torch.equal(KeyedNoise(0)(like, 1.0).float(), KeyedNoise(0)(like.float(), 1.0))
