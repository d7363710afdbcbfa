# SPDX-License-Identifier: Apache-2.0
"""Hooks that a patcher puts on its model while it is loaded.

The host injects when it loads a patcher, and ejects when it loads another one of the same model.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch

Removers = list[Callable[[], None]]


class Injected:
    """Hooks on a model; a kind of them says what they are."""

    def __init__(self) -> None:
        self._on: dict[int, tuple[weakref.ref[Any], Removers]] = {}

    def put_on(self, patcher: Any) -> Removers:
        """Put the hooks on the patcher's model, and give what takes them off."""
        raise NotImplementedError

    def release(self, patcher: Any) -> None:
        """Give the device's memory back, when no model has the hooks any more."""

    def add_to(self, patched: Any, key: str) -> None:
        """Let a patcher, a fresh clone, have the hooks, behind those that it has."""
        from comfy.patcher_extension import PatcherInjection

        # A clone of a loaded patcher says that it is on the model, but only the other one is.
        patched.is_injected = False
        patched.set_injections(key, [PatcherInjection(inject=self.inject, eject=self.eject)])

    def inject(self, patcher: Any) -> None:
        """Hook the model.

        Not where another patcher has it on: the host ejects that one before it loads this one, but lets a clone, which
        is not loaded, think that it was ejected for a moment while patches are added to it.
        """
        root = patcher.model
        owner, removers = self._on.get(id(root), (lambda: None, []))
        if owner() not in (None, patcher):
            return
        _take_off(removers)
        with torch.inference_mode(False):
            removers += self.put_on(patcher)
        self._on[id(root)] = (weakref.ref(patcher), removers)

    def eject(self, patcher: Any) -> None:
        """Take the hooks off, if this patcher put them on."""
        owner, removers = self._on.get(id(patcher.model), (lambda: None, []))
        if owner() in (None, patcher):
            _take_off(removers)
            self._on.pop(id(patcher.model), None)
            if not self._on:
                self.release(patcher)


def _take_off(removers: Removers) -> None:
    while removers:
        removers.pop()()
