# SPDX-License-Identifier: Apache-2.0
"""Training and held-out pictures, chosen by what they show, so that more pictures do not reshuffle them."""

import hashlib

from .dataset import Dataset


def split(dataset: Dataset, share: float, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Hold some pictures of a dataset out.

    Each picture's contents are hashed with the seed, and those with the lowest hashes are held out:
    wherever a picture lies and whatever it is called, and equal pictures on the same side. One more
    picture moves at most one other.

    Args:
        dataset: What to split.
        share: Share of the pictures that is held out, above 0 and below 1; at least one picture is on
            either side.
        seed: Which ones.

    Returns:
        The training pictures and the held-out ones, both in the order of the dataset; the held-out
        ones without class images.

    Raises:
        ValueError: The share is out of range, or there are not two different pictures.
        OSError: A file cannot be read.
    """
    if not 0 < share < 1:
        raise ValueError(f"the held-out share is {share}: above 0 and below 1 is allowed")
    groups: dict[str, list[int]] = {}
    for index, item in enumerate(dataset.items):
        groups.setdefault(item.picture_digest(), []).append(index)
    if len(groups) < 2:
        raise ValueError(
            f"the dataset has {len(groups)} different picture of {len(dataset)}: none can be held out; add pictures"
        )
    ranked = sorted(groups, key=lambda digest: _rank(digest, seed))
    count = min(max(1, round(share * len(groups))), len(groups) - 1)
    held = sorted(index for digest in ranked[:count] for index in groups[digest])
    kept = sorted(set(range(len(dataset))) - set(held))
    return dataset.select(kept), dataset.without_classes().select(held)


def _rank(digest: str, seed: int) -> bytes:
    return hashlib.sha256(f"graft split {seed} {digest}".encode()).digest()
