# SPDX-License-Identifier: Apache-2.0
"""Bottleneck adapters of Xiang et al. 2023 (sec. 3; arXiv 2303.18181): a small network beside a block's own parts, from
one place of what flows through the block to the same or a later one.

A(h) = up(act(down(h))), in residual blocks of 3x3 convolutions behind a GroupNorm and SiLU. The paper begins with
PyTorch's usual weights, ``init=pytorch``; ``zero-up`` (the default, not the paper's) begins without an effect.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..registry import check_limits, option
from . import NETWORKS, positions
from .base import Layer
from .initial import uniform
from .positions import Pair
from .settings import MAX_RANK, Settings
from .streams import ResidualFlow, TransformerFlow

ZERO_UP, PYTORCH = "zero-up", "pytorch"
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "identity": lambda x: x,
}
MARK = ".bottleneck."
_KEY = re.compile(
    r"(.+)\.bottleneck\.(\w+)\.(\w+)\.([a-z]+)\.(scale|(?:norm|down|up)\.(?:weight|bias))"
)
_EPS = 1e-5  # of the GroupNorm in residual blocks


@NETWORKS.register("bottleneck")
@dataclass(frozen=True, repr=False)
class Bottleneck(Settings):
    """Settings of a network of bottleneck adapters."""

    rank: int = option(
        60, "Inner dimension in transformer blocks: larger learns more.", min=1, max=MAX_RANK
    )
    blocks: str = option(
        "all", "Which transformer and residual blocks get adapters: presets and patterns."
    )
    positions: str = option(
        "attn2o-ffni",
        "Where an adapter reads and where it adds, one or several pairs with semicolons between them: attn1i, attn1o, "
        "attn2i, attn2o, ffni, ffno and transo are the inputs and outputs of attention, cross-attention, feed-forward "
        "and block; attn2c-attn2c is the text, resi and reso are a residual block's.",
    )
    activation: str = option("relu", "Between the two layers.", choices=tuple(ACTIVATIONS))
    scale: float = option(1.0, "What an adapter adds is multiplied by this.", min=0.0, max=1000.0)
    init: str = option(
        ZERO_UP,
        "zero-up: begins without an effect. pytorch: as the paper has it, with one that training has to undo.",
        choices=(ZERO_UP, PYTORCH),
    )
    conv_rank: int = option(
        0,
        "Channels between the convolutions in residual blocks; 0: rank / 9, which has as many parameters.",
        min=0,
        max=MAX_RANK,
    )
    module_dropout: float = option(
        0.0, "Share of the pictures for which a block's adapters are left out.", min=0.0, max=0.99
    )

    def __post_init__(self) -> None:
        check_limits(self)
        positions.read(self.positions)

    def targets(self, root: nn.Module) -> tuple[str, ...]:
        """Names of the blocks that ``blocks`` selects and ``positions`` has an adapter in.

        Raises:
            ValueError: The model has none, or none is selected.
        """
        kinds = {positions.kind_of(pair) for pair in positions.read(self.positions)}
        return positions.chosen(root, self.blocks, kinds)

    def build(self, module: nn.Module, generator: torch.Generator) -> Layer:
        """A ``BottleneckLayer`` for a block.

        Raises:
            ValueError: An adapter does not fit the block.
        """
        kind = positions.block_kind(module)
        parts = {
            pair: self._part(module, pair, generator)
            for pair in positions.read(self.positions)
            if positions.kind_of(pair) == kind
        }
        layer = BottleneckLayer(parts)
        layer.module_dropout = self.module_dropout
        return layer

    def _part(self, block: Any, pair: Pair, generator: torch.Generator) -> "Part":
        inputs, outputs = positions.widths(block, pair)
        made: dict[str, torch.Tensor] = {}
        is_conv = positions.kind_of(pair) == positions.RESIDUAL
        kernel: tuple[int, ...] = ()
        rank = self.rank
        if is_conv:
            kernel, rank = (3, 3), self.conv_rank or max(1, round(self.rank / 9))
            made = {"norm.weight": torch.ones(inputs), "norm.bias": torch.zeros(inputs)}
        for side, shape in (("down", (rank, inputs, *kernel)), ("up", (outputs, rank, *kernel))):
            weight = uniform(shape, generator)
            bias = (torch.rand(shape[0], generator=generator) * 2 - 1) / math.sqrt(
                math.prod(shape[1:])
            )
            is_zero = side == "up" and self.init == ZERO_UP
            made[f"{side}.weight"] = torch.zeros(shape) if is_zero else weight
            made[f"{side}.bias"] = torch.zeros(shape[0]) if is_zero else bias
        return Part(made, self.activation, self.scale, _groups(block, pair))


class Part(nn.Module):
    """The adapter of one pair.

    Args:
        tensors: ``down.weight`` ``[mid, in, *kernel]``, ``up.weight`` ``[out, mid, *kernel]``, their biases, and of
            convolutions ``norm.weight`` and ``norm.bias`` ``[in]``.
        activation: A name of ``ACTIVATIONS``.
        scale: What the output is multiplied by.
        groups: Of the norm; 0 in transformer blocks, which have none.
    """

    def __init__(
        self, tensors: Mapping[str, torch.Tensor], activation: str, scale: float, groups: int
    ) -> None:
        super().__init__()
        self.activation, self.scale, self.groups = activation, scale, groups
        for name, tensor in tensors.items():
            side, _, kind = name.partition(".")
            if not hasattr(self, side):
                self.add_module(side, nn.Module())
            self.get_submodule(side).register_parameter(kind, nn.Parameter(tensor))

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """What is added at the output, of what flows at the input: ``[B, n, in]`` or ``[B, in, h, w]``."""
        if self.groups:
            norm: Any = self.norm
            wide = h.to(norm.weight.dtype)
            h = F.silu(F.group_norm(wide, self.groups, norm.weight, norm.bias, _EPS)).to(h.dtype)
        inner = ACTIVATIONS[self.activation](self._map(h, self.down))
        return self.scale * self._map(inner, self.up)

    def _map(self, h: torch.Tensor, side: Any) -> torch.Tensor:
        weight, bias = side.weight.to(h.dtype), side.bias.to(h.dtype)
        if self.groups:
            return F.conv2d(h, weight, bias, padding=1)
        return F.linear(h, weight, bias)


class BottleneckLayer(Layer):
    """The adapters of one block.

    Args:
        parts: By input and output.

    Attributes:
        strength: What they add is multiplied by this beside their own scale.
        placed: What is added of what they would add; all of it where it is None.
    """

    def __init__(self, parts: Mapping[Pair, Part]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"-".join(pair): part for pair, part in parts.items()})
        self.strength = 1.0
        self.placed: Callable[[torch.Tensor], torch.Tensor] | None = None

    @property
    def pairs(self) -> dict[Pair, Part]:
        """The adapters by input and output."""
        found: dict[Pair, Any] = {}
        for name, part in self.parts.items():
            din, _, dout = name.partition("-")
            found[din, dout] = part
        return found

    def install(self, module: nn.Module, is_on: Callable[[], bool]) -> Callable[[], None]:
        """Hook a block's parts; several adapters on a block are all of effect, in the order in which they came."""
        pairs = self.pairs

        def added(pair: Pair, h: torch.Tensor) -> torch.Tensor:
            change = self.whole(pairs[pair](h))
            change = change if self.strength == 1.0 else self.strength * change
            return change if self.placed is None else self.placed(change)

        is_residual = positions.block_kind(module) == positions.RESIDUAL
        flow = (ResidualFlow if is_residual else TransformerFlow)(pairs, added, is_on)
        return flow.install(module)

    def tensors(self) -> dict[str, torch.Tensor]:
        """``bottleneck.<input>.<output>.<activation>.down.weight`` and so on, and ``.scale``."""
        found: dict[str, torch.Tensor] = {}
        for (din, dout), part in self.pairs.items():
            start = f"{MARK[1:]}{din}.{dout}.{part.activation}"
            found |= {f"{start}.{name}": value for name, value in part.named_parameters()}
            found[f"{start}.scale"] = torch.tensor(part.scale)
        return found

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take over what ``tensors()`` gave; activation and scale must be the same.

        Raises:
            ValueError: A tensor is absent or has another shape, or the scale is another.
        """
        for name, own in self.tensors().items():
            if name not in tensors or tensors[name].shape != own.shape:
                came = f"shape {list(tensors[name].shape)}" if name in tensors else "nothing"
                raise ValueError(f"{name}: expected shape {list(own.shape)}, got {came}.")
            if own.ndim == 0 and float(tensors[name]) != float(own):
                raise ValueError(
                    f"{name} is {float(tensors[name])} in the state and {float(own)} in the settings."
                )
            with torch.no_grad():
                own.copy_(tensors[name])


def is_bottleneck(key: str) -> bool:
    """Whether a tensor of a file is one of these adapters', by its name."""
    return _KEY.fullmatch(key) is not None


def grouped(tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of these adapters by the block, under the names of ``BottleneckLayer.tensors``."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        if is_bottleneck(key):
            block, _, rest = key.rpartition(MARK)
            found.setdefault(block, {})[f"{MARK[1:]}{rest}"] = tensor
    return found


def built(block: nn.Module, tensors: Mapping[str, torch.Tensor]) -> BottleneckLayer:
    """The layer that a file has for a block; activation, inner dimension and scale are the file's.

    Args:
        block: Of a model.
        tensors: One block's of ``grouped``.

    Raises:
        ValueError: They do not fit the block, or are not whole.
    """
    parts: dict[tuple[str, str, str], dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        _, din, dout, activation, name = key.split(".", 4)
        parts.setdefault((din, dout, activation), {})[name] = tensor
    made: dict[Pair, Part] = {}
    for (din, dout, activation), found in parts.items():
        (pair,) = positions.read(f"{din}-{dout}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"{din}-{dout} has the activation '{activation}', which is unknown.")
        if pair in made:
            raise ValueError(f"{din}-{dout} is in it with two activations.")
        scale = float(found.get("scale", torch.tensor(1.0)))
        values = {name: tensor for name, tensor in found.items() if name != "scale"}
        _check(values, pair, positions.widths(block, pair))
        copies = {
            name: tensor.detach().to("cpu", torch.float32, copy=True)
            for name, tensor in values.items()
        }
        made[pair] = Part(copies, activation, scale, _groups(block, pair))
    return BottleneckLayer(made)


def _check(tensors: Mapping[str, torch.Tensor], pair: Pair, widths: tuple[int, int]) -> None:
    is_conv = positions.kind_of(pair) == positions.RESIDUAL
    kernel = (3, 3) if is_conv else ()
    down = tensors.get("down.weight", torch.empty(0))
    rank = int(down.shape[0])
    inputs, outputs = widths
    expected: dict[str, tuple[int, ...]] = {
        "down.weight": (rank, inputs, *kernel),
        "down.bias": (rank,),
        "up.weight": (outputs, rank, *kernel),
        "up.bias": (outputs,),
    }
    if is_conv:
        expected |= {"norm.weight": (inputs,), "norm.bias": (inputs,)}
    for name in sorted(expected.keys() | tensors.keys()):
        came = tuple(tensors[name].shape) if name in tensors else None
        if came != expected.get(name) or not rank:
            raise ValueError(
                f"{'-'.join(pair)}.{name}: expected shape {expected.get(name)}, got {came}."
            )


def _groups(block: Any, pair: Pair) -> int:
    if positions.kind_of(pair) == positions.TRANSFORMER:
        return 0
    norm = block.out_layers[0] if pair[0] == positions.OUTPUT else block.in_layers[0]
    return int(norm.num_groups)
