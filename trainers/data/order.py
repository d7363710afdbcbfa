# SPDX-License-Identifier: Apache-2.0
"""Which pictures make up which step: a pure function of seed and step.

An epoch gives every picture once. Pictures of one bucket are shuffled and cut into effective
batches, the last one filled up from the bucket's beginning; then the batches are shuffled.
"""

from collections.abc import Hashable, Sequence
from functools import lru_cache

import torch

from ..random import generator


class Order:
    """The order of the pictures of a dataset.

    Args:
        buckets: The bucket of each picture; a batch never mixes two.
        batch: Pictures in one optimizer step.
        seed: Seed of the run.

    Raises:
        ValueError: There is no picture.
    """

    def __init__(self, buckets: Sequence[Hashable], batch: int, seed: int) -> None:
        if not buckets:
            raise ValueError("The dataset has no pictures.")
        self._members: dict[Hashable, list[int]] = {}
        for index, bucket in enumerate(buckets):
            self._members.setdefault(bucket, []).append(index)
        self._batch, self._seed = batch, seed
        self.steps_per_epoch = sum(-(-len(members) // batch) for members in self._members.values())
        self._epoch = lru_cache(maxsize=2)(self._shuffled)

    def indices(self, step: int) -> tuple[int, ...]:
        """The pictures of ``step`` (from 0), one a slot."""
        epoch, position = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch)[position]

    def _shuffled(self, epoch: int) -> tuple[tuple[int, ...], ...]:
        batches: list[tuple[int, ...]] = []
        for number, members in enumerate(self._members.values()):
            draw = torch.randperm(
                len(members), generator=generator(self._seed, "order", epoch, number)
            )
            shuffled = [members[i] for i in draw.tolist()]
            for start in range(0, len(shuffled), self._batch):
                batches.append(
                    tuple(shuffled[(start + slot) % len(shuffled)] for slot in range(self._batch))
                )
        turn = torch.randperm(len(batches), generator=generator(self._seed, "batches", epoch))
        return tuple(batches[i] for i in turn.tolist())
