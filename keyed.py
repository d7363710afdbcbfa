# SPDX-License-Identifier: Apache-2.0
"""Generators that are keyed by what they are for, so that no draw depends on what was drawn before."""

import hashlib

import torch


def generator(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """A CPU generator for one purpose, keyed by ``seed`` and any number of counters."""
    key = "/".join([str(seed), purpose, *map(str, counters)]).encode()
    digest = hashlib.blake2b(key, digest_size=8).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little") >> 1)
