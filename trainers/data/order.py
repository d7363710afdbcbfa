# SPDX-License-Identifier: Apache-2.0
"""Which pictures make up which step: a pure function of seed and step.

An epoch gives every picture as often as it is repeated, once as a rule. Pictures of one bucket are
shuffled and cut into effective batches, the last one filled up from the bucket's beginning; then
the batches are shuffled.
"""

from collections import Counter
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
        repeats: How often an epoch has each picture; once each where nothing is given.
        use: Sets several orders of one run apart.

    Raises:
        ValueError: There is no picture, or not one number of repeats for each.
    """

    def __init__(
        self,
        buckets: Sequence[Hashable],
        batch: int,
        seed: int,
        repeats: Sequence[int] | None = None,
        use: str = "",
    ) -> None:
        if not buckets:
            raise ValueError("The dataset has no pictures.")
        repeats = [1] * len(buckets) if repeats is None else repeats
        if len(repeats) != len(buckets) or min(repeats) < 1:
            raise ValueError(f"{len(buckets)} pictures need as many repeats, of 1 or more each.")
        self._members: dict[Hashable, list[int]] = {}
        for index, (bucket, count) in enumerate(zip(buckets, repeats, strict=True)):
            self._members.setdefault(bucket, []).extend([index] * count)
        self._batch, self._seed, self._use = batch, seed, use
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
                len(members), generator=generator(self._seed, self._use + "order", epoch, number)
            )
            shuffled = [members[i] for i in draw.tolist()]
            for start in range(0, len(shuffled), self._batch):
                batches.append(
                    tuple(shuffled[(start + slot) % len(shuffled)] for slot in range(self._batch))
                )
        turn = torch.randperm(
            len(batches), generator=generator(self._seed, self._use + "batches", epoch)
        )
        return tuple(batches[i] for i in turn.tolist())


def overcounted(
    buckets: Sequence[Hashable], batch: int, repeats: Sequence[int]
) -> dict[int, float]:
    """Pictures that an epoch has much more often than others, as their bucket cannot fill an effective batch.

    Args:
        buckets: The bucket of each picture.
        batch: Pictures in one optimizer step.
        repeats: How often an epoch has each picture.

    Returns:
        How many times as often, by picture: of those that are alone in a bucket, or more than twice. None where there
        is only one bucket, in which all are alike.
    """
    counts: Counter[Hashable] = Counter()
    for bucket, count in zip(buckets, repeats, strict=True):
        counts[bucket] += count
    if len(counts) < 2 or batch < 2:
        return {}
    return {
        index: batch / counts[bucket]
        for index, bucket in enumerate(buckets)
        if counts[bucket] == 1 or batch > 2 * counts[bucket]
    }
