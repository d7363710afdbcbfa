# SPDX-License-Identifier: Apache-2.0
"""Which pictures of a batch the network sees now.

A batch whose texts differ in length goes through the network in parts, and a checkpointed block goes through it again
in the backward pass, perhaps on another thread. What differs from picture to picture asks here whose turn it is.
"""

import contextlib
from collections.abc import Iterator, Sequence

_seen: Sequence[int] | None = None


def seen() -> Sequence[int] | None:
    """Positions in the batch, in the order of the rows; None for all of it."""
    return _seen


@contextlib.contextmanager
def only(positions: Sequence[int] | None) -> Iterator[None]:
    """The network sees these positions of the batch inside the block, None for all of it."""
    global _seen
    before, _seen = _seen, positions
    try:
        yield
    finally:
        _seen = before
