# SPDX-License-Identifier: Apache-2.0
"""Alphas that a file does not keep as tensors: PEFT's settings, in the metadata or in a file of their own.

PEFT multiplies every change by alpha / r, a LoKr of two whole factors, too, whose alpha LyCORIS and the host ignore.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..plain import plain
from .roles import ALPHA, DOWN

CONFIG = "lora_adapter_metadata"  # where diffusers keeps PEFT's settings
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
_COMPONENTS = ("unet", "transformer", *ENCODERS)
_MAX_CONFIG = 4_000_000  # characters
_MODEL, _SETTINGS = "adapter_model.safetensors", "adapter_config.json"  # as PEFT saves them
_MOST = 1e9
_WHOLE = "lokr_w1"
# Tensors of low rank by kind, the rank in front; the host divides by that of the first that is there.
_RANKED = (DOWN, "hada_w1_b", "lokr_w2_b", "lokr_w1_b")


def settings(metadata: Mapping[str, str]) -> str:
    """What of a file's metadata its changes depend on."""
    return metadata.get(CONFIG, "")


def file_beside(path: Path) -> Path | None:
    """The file in which PEFT keeps the settings of the tensors in ``path``; None where there is none."""
    found = path.with_name(_SETTINGS)
    return found if path.name == _MODEL and found.is_file() else None


def beside(path: Path) -> dict[str, str]:
    """The settings that PEFT keeps in a file beside that of the tensors, as metadata.

    Args:
        path: The file of the tensors.

    Returns:
        Nothing where it is no such file.

    Raises:
        ValueError: The settings cannot be read.
    """
    found = file_beside(path)
    if found is None:
        return {}
    size = found.stat().st_size
    if size > _MAX_CONFIG:
        raise ValueError(
            f"'{_SETTINGS}' has {size} bytes, where {_MAX_CONFIG} are the most that is read."
        )
    try:
        text = found.read_text(encoding="utf-8")
        is_table = isinstance(json.loads(text), dict)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"'{_SETTINGS}' beside '{_MODEL}' is no JSON: {plain(str(error), 200)}"
        ) from error
    if not is_table:
        raise ValueError(f"'{_SETTINGS}' beside '{_MODEL}' holds no settings by name.")
    return {CONFIG: text}


class Alphas:
    """Alphas of a file: a tensor, else PEFT's settings, else the rank, as the host takes it."""

    def __init__(self, metadata: Mapping[str, str]) -> None:
        text = settings(metadata)
        try:
            config = json.loads(text) if text and len(text) <= _MAX_CONFIG else {}
        except (ValueError, RecursionError) as error:
            raise ValueError(f"The file's metadata '{CONFIG}' is no JSON: {error}") from error
        self._config: dict[str, Any] = config if isinstance(config, dict) else {}

    def of(self, name: str, tensor: torch.Tensor | None, rank: int) -> float:
        """Alpha of one layer."""
        if tensor is not None:
            if tensor.numel() != 1 or not bool(torch.isfinite(tensor.float()).all()):
                raise ValueError(
                    f"{name}: alpha is {tensor.flatten()[:4].tolist()}, not one number."
                )
            return float(tensor)
        said = self.said(name, rank)
        return float(rank) if said is None else said

    def said(self, name: str, rank: int) -> float | None:
        """Alpha of one layer as the settings say it; None where they do not."""
        alpha = self._of_layer(name, "lora_alpha", "alpha_pattern")
        if alpha is None:
            alpha = self._of_layer(name, "alpha", "alpha_pattern")
        by_root = self._config.get(f"{_start(name)}use_rslora") is True
        return None if alpha is None else alpha * (rank**0.5 if by_root else 1.0)

    def missing(self, name: str, roles: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Tensors with which a layer is what the settings say, for a loader that does not read them.

        Args:
            name: The layer, as the file names it.
            roles: Its tensors.

        Returns:
            An alpha, with the first factor of a whole LoKr times alpha / r; nothing where none are missing.
        """
        if ALPHA in roles or not self._config:
            return {}
        low = next((roles[role] for role in _RANKED if role in roles), None)
        if low is not None:
            alpha = self.said(name, len(low))
            return {} if alpha is None else {ALPHA: torch.tensor(alpha)}
        rank = self._of_layer(name, "r", "rank_pattern")
        alpha = self.said(name, 0)
        if _WHOLE not in roles or not rank or alpha is None:
            return {}
        first = roles[_WHOLE]
        return {_WHOLE: (first * (alpha / rank)).to(first.dtype), ALPHA: torch.tensor(rank)}

    def _of_layer(self, name: str, key: str, patterns: str) -> float | None:
        start = _start(name)
        value = self._config.get(f"{start}{key}")
        by_pattern = self._config.get(f"{start}{patterns}")
        for pattern, own in by_pattern.items() if isinstance(by_pattern, dict) else ():
            if name == pattern or name.endswith(f".{pattern}"):
                value = own
                break
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _MOST:
            what = key.removeprefix("lora_")
            raise ValueError(f"{name}: {what} is {value!r} in the file's metadata, not a number.")
        return float(value)


def _start(name: str) -> str:
    """What the settings of a layer begin with: the part of a pipeline, where the file is of one."""
    component = name.partition(".")[0]
    return f"{component}." if component in _COMPONENTS else ""
