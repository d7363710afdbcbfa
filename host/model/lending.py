# SPDX-License-Identifier: Apache-2.0
"""Borrowing a model of the host for a while: what is taken, and how all of it is given back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

MISSING = object()
_log = logging.getLogger(__name__)


def on_exit(stack: ExitStack, undo: Callable[[], object]) -> None:
    """Run ``undo`` at the end; its own error never hides the one that ended the training."""

    def leave(kind: Any, error: Any, trace: Any) -> None:
        try:
            undo()
        except Exception:
            if kind is None:
                raise
            _log.exception("giving back what the training had changed failed")

    stack.push(leave)


def replace(stack: ExitStack, owner: Any, name: str, value: Any) -> None:
    """Give an attribute another value until the end; one that was not there is taken away again."""
    old = getattr(owner, name, MISSING)
    setattr(owner, name, value)
    on_exit(stack, lambda: delattr(owner, name) if old is MISSING else setattr(owner, name, old))


def unload(model: Any) -> list[Any]:
    """Unload this model and its clones; returns the patchers that were loaded."""
    import comfy.model_management as mm

    if is_dynamic(model):
        return []  # trained on a copy: the host itself makes room for it
    residents = []
    # The originals may be inference tensors, which are put back in inference mode only.
    with torch.inference_mode():
        for index in reversed(range(len(mm.current_loaded_models))):
            loaded = mm.current_loaded_models[index]
            patcher = loaded.model
            if patcher is not None and patcher.is_clone(model):
                mm.current_loaded_models.pop(index)
                loaded.model_unload()
                residents.append(patcher)
        if model.model.current_weight_patches_uuid is not None:
            model.detach()
    return residents


def reload_all(patchers: list[Any]) -> None:
    """Load patchers again that were loaded; the host can do without."""
    import comfy.model_management as mm

    for patcher in patchers:
        try:
            mm.load_models_gpu([patcher])
        except Exception as error:  # noqa: BLE001 - the host loads it when it is needed
            _log.warning("a model could not be loaded again after the training: %s", error)
            return


def is_dynamic(model: Any) -> bool:
    """Whether the host keeps this patcher's weights out of memory until they are needed."""
    return bool(getattr(model, "is_dynamic", bool)())


def forwards_of(model: nn.Module) -> Callable[[], None]:
    """Remember the replaced forwards of now; the returned function goes back to them."""
    before = {module: module.__dict__.get("forward", MISSING) for module in model.modules()}

    def restore() -> None:
        for module, forward in before.items():
            if module.__dict__.get("forward", MISSING) is forward:
                continue
            if forward is MISSING:
                del module.forward
            else:
                module.forward = forward

    return restore
