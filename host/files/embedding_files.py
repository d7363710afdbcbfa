# SPDX-License-Identifier: Apache-2.0
"""Files of new words to choose from: those of the host's embeddings folders, output/embeddings among them."""

from pathlib import Path

from ...loaders.embedding_file import SUFFIXES
from ...registry import unknown
from ..text import embeddings


def names() -> list[str]:
    """The files that ``embedding:`` finds, but those that only a pickle loader opens; read anew each time."""
    import folder_paths

    embeddings.register()
    listed = [
        name.replace("\\", "/")
        for name in folder_paths.get_filename_list("embeddings")
        if name.lower().endswith(SUFFIXES)
    ]
    return sorted(listed, key=str.casefold)


def path(name: str) -> Path:
    """The file that a name of ``names`` stands for.

    Raises:
        ValueError: There is no such file among them.
    """
    import folder_paths

    wanted, known = str(name).strip().replace("\\", "/"), names()
    found = folder_paths.get_full_path("embeddings", wanted) if wanted in known else None
    if found is None:
        raise ValueError(unknown("embeddings file", wanted, known))
    return Path(found)
