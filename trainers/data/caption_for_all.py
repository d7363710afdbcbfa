# SPDX-License-Identifier: Apache-2.0
"""One caption for all pictures of a dataset."""

from dataclasses import replace

from .dataset import Dataset


def with_caption(dataset: Dataset, caption: str) -> Dataset:
    """Give every picture this caption instead of its own.

    Captions of class images stay, and so does what becomes of captions: prefix, trigger, dropout.

    Args:
        dataset: The pictures.
        caption: The text.

    Returns:
        The dataset with it.

    Raises:
        ValueError: It is no caption.
    """

    def change(part: Dataset) -> Dataset:
        items = [replace(item, captions=(caption,)) for item in part.items]
        return replace(part, items=tuple(items))

    return dataset.map(change)
