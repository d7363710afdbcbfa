# SPDX-License-Identifier: Apache-2.0
"""Gradient checkpointing by block: a block's activations are computed again in the backward pass; of all or of some.

Blocks are found by structure: residual and transformer blocks of a UNet, entries of the block lists of a DiT.
The forward of a block is replaced on the instance; adapters sit on layers inside, so they may come before or
after. Chen et al. 2016 (arXiv 1604.06174); recomputation is torch's `checkpoint(use_reentrant=False)`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ...adapters import rows


def find_blocks(diffusion_model: nn.Module) -> list[nn.Module]:
    """Find the modules to checkpoint.

    Args:
        diffusion_model: the network of any ComfyUI model.

    Returns:
        Blocks in the model's order, none inside another.

    Raises:
        ValueError: the network has no blocks that this function knows.
    """
    if hasattr(diffusion_model, "input_blocks") and hasattr(diffusion_model, "output_blocks"):
        found = list(_unet_blocks(diffusion_model))
    else:
        found = list(_listed_blocks(diffusion_model))
    if not found:
        raise ValueError(
            f"gradient checkpointing found no blocks in {type(diffusion_model).__name__}: "
            "turn gradient checkpointing off for this model"
        )
    return found


class Checkpointing:
    """Switches gradient checkpointing of one network on and off.

    Args:
        diffusion_model: the network; nothing is changed until `on`.
    """

    def __init__(self, diffusion_model: nn.Module):
        self._model = diffusion_model
        self._installed: dict[int, _Recomputed] = {}
        self._writes: dict[int, bool | None] = {}  # what is known of blocks that were on before

    @property
    def count(self) -> int:
        """How many blocks are checkpointed now."""
        return len(self._installed)

    def on(self, only: Collection[int] | None = None) -> None:
        """Checkpoint these blocks and no others; a second call does nothing.

        Args:
            only: places in the list of `find_blocks`; None is all of them.

        Raises:
            ValueError: the network has no blocks.
        """
        blocks = find_blocks(self._model)
        wanted = set(range(len(blocks)) if only is None else only)
        self._remove(self._installed.keys() - wanted)
        for place in sorted(wanted - self._installed.keys()):
            self._installed[place] = _Recomputed(blocks[place], self._writes.get(place))

    def off(self) -> None:
        """Give every block its own forward back; a second call does nothing."""
        self._remove(set(self._installed))

    def _remove(self, places: Collection[int]) -> None:
        for place in places:
            wrapper = self._installed.pop(place)
            self._writes[place] = wrapper.writes
            wrapper.remove()


def _unet_blocks(unet: Any) -> Iterator[nn.Module]:
    sequences = [*unet.input_blocks, getattr(unet, "middle_block", None), *unet.output_blocks]
    for sequence in sequences:
        # The host never calls these sequences: it walks through their layers.
        for layer in sequence if sequence is not None else ():
            if hasattr(layer, "transformer_blocks"):
                yield from layer.transformer_blocks
                yield from getattr(layer, "time_stack", ())
            elif _weighty(layer):
                yield layer


def _listed_blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            for entry in child:
                if isinstance(entry, nn.ModuleList):
                    yield from _listed_blocks(nn.ModuleList([entry]))
                elif _weighty(entry):
                    yield entry
                else:
                    yield from _listed_blocks(entry)
        else:
            yield from _listed_blocks(child)


def _weighty(module: nn.Module) -> bool:
    """At least two layers with a weight matrix: worth computing twice."""
    return sum(1 for m in module.modules() if getattr(m, "weight", None) is not None) >= 2 and any(
        True for _ in module.children()
    )


class _Recomputed:
    """The replaced forward of one block."""

    def __init__(self, block: nn.Module, writes: bool | None = None):
        self._block = block
        self._had = block.__dict__.get("forward")
        self._forward: Callable[..., Any] = block.forward
        self._is_active = True
        self.writes = writes  # to its inputs; None = not known yet
        block.forward = self

    def remove(self) -> None:
        self._is_active = False
        if self._block.__dict__.get("forward") is not self:
            return  # something was attached on top: stay below it as a plain pass-through
        if self._had is None:
            del self._block.forward
        else:
            self._block.forward = self._had

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._is_active:
            return self._forward(*args, **kwargs)
        if not torch.is_grad_enabled():
            return self._watch((*args, *kwargs.values()), list(kwargs))
        names = list(kwargs)
        values = (*args, *kwargs.values())
        live: tuple | None = values
        kept = tuple(self._keep(v) for v in values)
        del args, kwargs, values  # nothing here may keep the block's inputs alive
        pictures = rows.seen()

        def run(*values: Any) -> Any:
            nonlocal live
            if live is not None:  # the first time: the block sees what it would see without us
                values, live = live, None
                return self._watch(values, names)
            with rows.only(pictures):
                return self._call(tuple(_again(v) for v in values), names)

        # Everything by position: torch saves the generators only of devices it sees there.
        return checkpoint(run, *kept, use_reentrant=False)

    def _call(self, values: tuple, names: list[str]) -> Any:
        split = len(values) - len(names)
        return self._forward(*values[:split], **dict(zip(names, values[split:], strict=True)))

    def _watch(self, values: tuple, names: list[str]) -> Any:
        """Call the block; the first call finds out whether it writes to its inputs."""
        if self.writes is not None or torch.is_inference_mode_enabled():
            return self._call(values, names)
        tensors = [v for v in values if isinstance(v, torch.Tensor) and not v.is_inference()]
        versions = [t._version for t in tensors]
        out = self._call(values, names)
        self.writes = any(t._version != v for t, v in zip(tensors, versions, strict=True))
        return out

    def _keep(self, value: Any) -> Any:
        """What the recomputation gets: its own copy of anything that may change until then."""
        if isinstance(value, dict):
            return dict(value)  # the host rewrites its options from block to block
        if isinstance(value, torch.Tensor) and self.writes is not False:
            return value.detach().clone().requires_grad_(value.requires_grad)
        return value


def _again(value: Any) -> Any:
    if isinstance(value, dict):
        return dict(value)
    if isinstance(value, torch.Tensor) and value.requires_grad and value.is_leaf:
        return value.clone()  # a block must not write to a leaf
    return value
