# SPDX-License-Identifier: Apache-2.0
"""Reads and adds to what flows through a block, by torch's hooks on the block's parts.

So everything happens inside of the block's forward: it is computed again with a checkpointed block, and other adapters,
patches of the host and replaced forwards compose with it. Adding to the stream before a part is adding to the input of
its norm and, as the host adds the unchanged stream later, to the part's output. What is read is worked on at once, so
that nothing of the block's own is kept, which a block might write to.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from .positions import CONTEXT, INPUT, OUTPUT, Pair

Adapter = Callable[[Pair, torch.Tensor], torch.Tensor]
_PARTS = {
    "attn1i": ("norm1", "attn1.to_out"),
    "attn2i": ("norm2", "attn2.to_out"),
    "ffni": ("norm3", "ff"),
}
_OUTPUTS = {"attn1o": "attn1.to_out", "attn2o": "attn2.to_out", "ffno": "ff"}
_WHOLE = ("norm1", "attn1", "norm2", "attn2", "norm3", "ff")
_LAST = "transo"


class Flow:
    """What is known within one forward of a block.

    Args:
        pairs: Inputs and outputs of the adapters.
        adapter: Gives what the adapter of a pair adds, of ``[B, ...]`` what flows at its input.
        is_on: Whether the adapters count; asked at every part.
    """

    def __init__(self, pairs: Iterable[Pair], adapter: Adapter, is_on: Callable[[], bool]) -> None:
        self.pairs, self._adapter, self.is_on = tuple(pairs), adapter, is_on
        self._handles: list[Any] = []
        self.clear()

    def clear(self) -> None:
        """Forget the forward."""
        self.due: dict[str, torch.Tensor] = {}  # what is to be added where it has not come yet
        self.pending: dict[str, torch.Tensor] = {}  # what was added before a part, for behind it
        self.seen: set[str] = set()
        self.kept: dict[str, torch.Tensor] = {}  # the other half of a sum that the block makes
        self.text: tuple[torch.Tensor, torch.Tensor] | None = None  # of keys, and what is added

    def remove(self) -> None:
        """Take all hooks off."""
        while self._handles:
            self._handles.pop().remove()
        self.clear()

    def reads(self, din: str) -> bool:
        """Whether an adapter has its input there."""
        return any(pair[0] == din for pair in self.pairs)

    def adds(self, dout: str) -> bool:
        """Whether an adapter has its output there."""
        return any(pair[1] == dout for pair in self.pairs)

    def read(self, din: str, h: torch.Tensor) -> None:
        """Let the adapters work whose input this is.

        Args:
            din: Where.
            h: What flows there, ``[B, ...]``.
        """
        self.seen.add(din)
        for pair in self.pairs:
            if pair[0] == din:
                change = self._adapter(pair, h)
                due = self.due.get(pair[1])
                self.due[pair[1]] = change if due is None else due + change

    def taken(self, dout: str) -> torch.Tensor | None:
        """What is to be added there, at the last moment for it.

        Raises:
            RuntimeError: An input of it has not been computed in this forward.
        """
        missing = {din for din, to in self.pairs if to == dout and din != dout} - self.seen
        if dout in (_LAST, OUTPUT) and self.reads(dout) and dout not in self.kept:
            missing.add(dout)
        if missing:
            raise RuntimeError(
                f"A bottleneck adapter needs {' and '.join(sorted(missing))} of its block, but the block came to {dout}"
                " without it: something in this graph replaces a part of it. Take that node out, or the adapter."
            )
        return self.due.pop(dout, None)

    def before(self, module: nn.Module, act: Callable[[torch.Tensor], Any]) -> None:
        """Call ``act`` with the module's input, and let the module have what it returns."""

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not self.is_on() or not args:
                return None
            changed = act(args[0])
            return None if changed is None else ((changed, *args[1:]), kwargs)

        self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def first(self, module: nn.Module, act: Callable[[torch.Tensor], Any]) -> None:
        """Call ``act`` with the module's input as the block has it, before other adapters' changes of it."""

        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            if self.is_on() and args:
                act(args[0])

        self._handles.append(module.register_forward_pre_hook(hook, prepend=True))

    def behind(
        self, module: nn.Module, act: Callable[[torch.Tensor], Any], *, raw: bool = False
    ) -> None:
        """Call ``act`` with the module's output, and go on with what it returns.

        Args:
            module: The module.
            act: What to do.
            raw: Before all that is added to the output.
        """

        def hook(_: nn.Module, __: Any, output: torch.Tensor) -> Any:
            return act(output) if self.is_on() else None

        self._handles.append(module.register_forward_hook(hook, prepend=raw))

    def guard(self, modules: Iterable[nn.Module]) -> None:
        """Forget the forward when it ends in one of these modules by an error, or because no more of it is needed."""

        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if output is None:
                self.clear()

        for module in modules:
            self._handles.append(module.register_forward_hook(hook, always_call=True))


class TransformerFlow(Flow):
    """The flow of a transformer block."""

    def install(self, block: nn.Module) -> Callable[[], None]:
        """Hook a block; the returned function takes all of it off."""
        part = block.get_submodule
        # Every forward begins at the first norm and ends behind the feed-forward.
        self.first(part("norm1"), lambda _: self.clear())
        if self.reads(_LAST):
            self.first(part("norm3"), lambda x: self.kept.update(transo=x))
        for stream, (norm, _) in _PARTS.items():
            if self.reads(stream) or self.adds(stream):
                self.before(part(norm), partial(self._enter, stream))
        for din, out in _OUTPUTS.items():
            if self.reads(din):
                self.behind(part(out), partial(self.read, din), raw=True)
        for stream, (_, out) in _PARTS.items():
            if self.adds(stream):
                self.behind(part(out), partial(self._leave, stream))
        if self.adds(CONTEXT):
            for name in ("attn2.to_k", "attn2.to_v"):
                self.before(part(name), self._context)
        self.behind(part("ff"), self._end)
        self.guard([block, *map(part, _WHOLE)])
        return self.remove

    def _enter(self, stream: str, x: torch.Tensor) -> torch.Tensor | None:
        """Before a norm: the stream with what is added to it."""
        change = self.taken(stream)
        if self.reads(stream):
            self.read(stream, x if change is None else x + change)
            own = self.due.pop(stream, None)
            if own is not None:
                change = own if change is None else change + own
        if change is None:
            return None
        self.pending[stream] = change
        return x + change

    def _leave(self, stream: str, h: torch.Tensor) -> torch.Tensor | None:
        """Behind a part: its output with what was added to the stream before it."""
        change = self.pending.pop(stream, None)
        return None if change is None else h + change

    def _context(self, context: torch.Tensor) -> torch.Tensor:
        """The text with what is added to it; once where keys and values are of the same."""
        if self.text is None or self.text[0] is not context:
            self.read(CONTEXT, context)
            self.text = (context, self.due.pop(CONTEXT))
        return context + self.text[1]

    def _end(self, h: torch.Tensor) -> torch.Tensor:
        """Behind the feed-forward: what is added to the block's output."""
        try:
            change = self.taken(_LAST)
            h = h if change is None else h + change
            if self.reads(_LAST):
                self.read(_LAST, self.kept.pop(_LAST) + h)
                h = h + self.due.pop(_LAST)
            return h
        finally:
            self.clear()


class ResidualFlow(Flow):
    """The flow of a residual block: ``skip_connection(x) + out_layers(...)``, in which the last one is asked last."""

    def install(self, block: nn.Module) -> Callable[[], None]:
        """Hook a block; the returned function takes all of it off."""
        layers, skip = block.get_submodule("in_layers"), block.get_submodule("skip_connection")
        out: Any = block.get_submodule("out_layers")
        self.first(layers, lambda _: self.clear())
        self.before(layers, self._enter)
        if self.reads(OUTPUT):
            self.behind(out[-1], lambda h: self.kept.update(reso=h))
        if self.adds(INPUT):
            self.before(skip, lambda x: x + self.pending[INPUT])
        self.behind(skip, self._end)
        self.guard([block, layers, out[-1], skip])
        return self.remove

    def _enter(self, x: torch.Tensor) -> torch.Tensor | None:
        if not self.reads(INPUT):
            return None
        self.read(INPUT, x)
        if not self.adds(INPUT):
            return None
        self.pending[INPUT] = self.due.pop(INPUT)
        return x + self.pending[INPUT]

    def _end(self, skip: torch.Tensor) -> torch.Tensor:
        try:
            change = self.taken(OUTPUT)
            skip = skip if change is None else skip + change
            if self.reads(OUTPUT):
                self.read(OUTPUT, skip + self.kept.pop(OUTPUT))
                skip = skip + self.due.pop(OUTPUT)
            return skip
        finally:
            self.clear()
