# SPDX-License-Identifier: Apache-2.0
"""The datasets that nodes made, as their panels ask for them; they live as long as the host keeps them."""

import secrets
import threading
import weakref
from typing import Any

from ...trainers.data import Dataset

UI_KEY = "graft_dataset"
CLASS_IMAGES = "class images"


class Shown:
    """Datasets by a name that nobody can guess."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._datasets: weakref.WeakValueDictionary[str, Dataset] = weakref.WeakValueDictionary()

    def add(self, dataset: Dataset) -> str:
        """Name a dataset."""
        token = secrets.token_hex(16)
        with self._lock:
            self._datasets[token] = dataset
        return token

    def get(self, token: str) -> Dataset | None:
        """The dataset of a name, None where the host keeps it no more."""
        with self._lock:
            return self._datasets.get(token)


SHOWN = Shown()


def shown(*datasets: Dataset, names: tuple[str, ...] = ("",)) -> dict[str, list[Any]]:
    """What a node gives its panel.

    Args:
        datasets: What it made; class images are shown beside their pictures.
        names: What people call each.

    Returns:
        A node's ``ui``: a list of ``{"id", "name"}``.
    """
    rows = []
    for dataset, name in zip(datasets, names, strict=True):
        rows.append({"id": SHOWN.add(dataset), "name": name})
        if dataset.classes is not None:
            rows.append({"id": SHOWN.add(dataset.classes), "name": CLASS_IMAGES})
    return {UI_KEY: rows}
