# SPDX-License-Identifier: Apache-2.0
"""That B-LoRA does no gradient work before its first block: `python -m benchmarks.b_lora --model sdxl64`.

Three contenders take turns in one process: a LoRA on all attentions, B-LoRA of the same rank, and the floor, which is
B-LoRA's forward pass without gradients up to the first trained block, whatever the trainer may ask for, with gradients
from there on, and its backward pass; no optimizer. What autograd keeps is counted tensor by tensor, what it will do
node by node.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks

from .contenders import training
from .subjects import SUBJECTS, start

MIB = 2**20
ATTENTION, B_LORA, FLOOR = "attention", "b-lora", "floor"
RANK, WIDTH = 64, 320  # the paper's rank belongs to SDXL's width


@dataclass
class Graph:
    """What one forward pass leaves for the backward pass.

    Attributes:
        nodes: Autograd nodes that the loss reaches.
        saved: Bytes that they keep, weights and adapters apart.
        saved_before: Those kept before the first trained block was entered.
        tracked_before: Modules that gave a tensor with a gradient before that.
        losses: The loss of each picture.
    """

    nodes: int = 0
    saved: int = 0
    saved_before: int = 0
    tracked_before: list[str] = field(default_factory=list)
    losses: torch.Tensor | None = None


def rank_of(subject: Any) -> int:
    """Rank 64 of SDXL's 320 channels, scaled to the width of a subject."""
    return max(1, round(RANK * subject.config().unet_config["model_channels"] / WIDTH))


def network(blocks: str, rank: int) -> Any:
    """A LoRA on these blocks."""
    from graft.adapters.lora import LoRA

    return LoRA(rank=rank, blocks=blocks)


def losses(loop: Any, step: int = 0) -> torch.Tensor:
    """The losses of the first batch of a step, as the trainer makes them."""
    from graft.trainers.random import Draws

    batch, items = loop.plan.effective_batch, loop.order.indices(step)
    draws = Draws(loop.plan.seed, step, range(batch), batch)
    first = next(iter(loop.data.batches(items, draws)))
    noised = loop.objective.noised(loop.denoiser, first.latents, draws.of(first.use))
    made: torch.Tensor = loop.objective.sample_loss(loop.denoiser, noised, first)
    return made


@contextmanager
def only_from(block: torch.nn.Module) -> Iterator[None]:
    """No gradients inside, until a block is entered; with them from there on."""
    handle = block.register_forward_pre_hook(lambda *_: torch.set_grad_enabled(True) and None)
    try:
        with torch.no_grad():
            yield
    finally:
        handle.remove()


def look(
    network: Any, first: torch.nn.Module, parameters: Any, forward: Callable[[], Any]
) -> Graph:
    """Run a forward pass and look at what it keeps.

    Args:
        network: The host's network.
        first: Its first trained block.
        parameters: What is trained.
        forward: Gives the losses.
    """
    graph, handles = Graph(), []
    known = {t.untyped_storage().data_ptr() for t in (*network.parameters(), *parameters)}
    kept: dict[int, torch.Tensor] = {}
    has_begun = False

    def save(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in known and place not in kept:
            kept[place] = tensor  # held, so that no other tensor can take its place
            graph.saved += tensor.untyped_storage().nbytes()
            if not has_begun:
                graph.saved_before += tensor.untyped_storage().nbytes()
        return tensor

    def begin(*_: Any) -> None:
        nonlocal has_begun
        has_begun = True

    def leave(name: str) -> Callable[..., None]:
        def note(module: Any, args: Any, out: Any) -> None:
            if not has_begun and isinstance(out, torch.Tensor) and out.requires_grad:
                graph.tracked_before.append(name)

        return note

    handles.append(first.register_forward_pre_hook(begin))
    handles += [m.register_forward_hook(leave(name)) for name, m in network.named_modules()]
    try:
        with saved_tensors_hooks(save, lambda tensor: tensor):
            graph.losses = forward()
    finally:
        for handle in handles:
            handle.remove()
    graph.nodes = count_nodes(graph.losses)
    return graph


def count_nodes(loss: torch.Tensor) -> int:
    """Autograd nodes that a tensor reaches, the leaves' own among them."""
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions]
    return len(seen)


def first_block(network: Any) -> torch.nn.Module:
    """The first of the two blocks that the network computes."""
    block: torch.nn.Module = network.output_blocks[0][1]
    return block


def graphs(name: str) -> dict[str, Graph]:
    """What each contender keeps of one pass over the same batch."""
    found = {}
    for which, blocks in ((ATTENTION, "attention"), (B_LORA, "b-lora")):
        with _training(name, blocks) as (trained, loop):
            net, parameters = trained.diffusion_model, loop.parameters.values()
            given = (net, first_block(net), parameters)
            losses(loop)  # which layers have to copy their input is found in the first pass
            found[which] = look(*given, lambda: losses(loop))
            if which == B_LORA:
                with only_from(first_block(net)):
                    found[FLOOR] = look(*given, lambda: losses(loop))
    return found


def seconds(name: str, turns: int, steps: int) -> dict[str, list[float]]:
    """Seconds of a step, the least of each turn; contenders take turns, B-LoRA and the floor step by step.

    Args:
        name: Of ``SUBJECTS``.
        turns: How many.
        steps: Of each contender in a turn.
    """
    taken: dict[str, list[float]] = {ATTENTION: [], B_LORA: [], FLOOR: []}
    for _ in range(turns):
        with _training(name, "attention") as (_, loop):
            _step(loop)
            taken[ATTENTION].append(min(_timed(_step, loop) for _ in range(steps)))
        with _training(name, "b-lora") as (trained, loop):
            net = trained.diffusion_model
            _step(loop)
            pairs = [(_timed(_step, loop), _timed(_floor, loop, net)) for _ in range(steps)]
            for which, own in zip((B_LORA, FLOOR), zip(*pairs, strict=True), strict=True):
                taken[which].append(min(own))
    return taken


def compare(name: str, turns: int, steps: int) -> dict[str, float]:
    """The figures that the promise is about; see `seconds`.

    Returns:
        Ratios to the LoRA on all attentions and to the floor, and counts.
    """
    kept, taken = graphs(name), seconds(name, turns, steps)
    ours, full, floor = (kept[which] for which in (B_LORA, ATTENTION, FLOOR))
    return {
        "nodes": ours.nodes,
        "nodes of the floor": floor.nodes,
        "nodes of attention": full.nodes,
        "modules with gradients before": len(ours.tracked_before),
        "bytes kept before": ours.saved_before,
        "MiB": ours.saved / MIB,
        "MiB of attention": full.saved / MIB,
        "memory of attention": ours.saved / full.saved,
        "memory of the floor": ours.saved / floor.saved,
        "ms": 1000 * statistics.median(taken[B_LORA]),
        "time of attention": _ratio(taken[B_LORA], taken[ATTENTION]),
        "time of the floor": _ratio(taken[B_LORA], taken[FLOOR]),
        "floor of attention": _ratio(taken[FLOOR], taken[ATTENTION]),
    }


def layout(pixels: int) -> dict[str, float]:
    """GiB at the peak of a pass over one picture of the real SDXL in bf16, counted on `meta`, at rank 64."""
    from .memory_table import GIB, count, trainable

    found = {}
    for which, blocks in ((ATTENTION, "attention"), (B_LORA, "b-lora")):
        with trainable("SDXL", RANK, blocks) as (net, attached, _):
            found[which] = count("SDXL", net, attached, pixels, 1) / GIB
    return found | {"of attention": found[B_LORA] / found[ATTENTION]}


def _training(name: str, blocks: str) -> Any:
    from graft.trainers.plan import Plan

    subject = SUBJECTS[name]
    plan = Plan(steps=10**6, batch_size=subject.batch, precision="fp32")
    given = (subject, subject.model(), subject.pictures(), plan, _unheard)
    return training(*given, network(blocks, rank_of(subject)))


def _unheard(_: Any) -> None:
    """A sink that nobody listens to."""


def _step(loop: Any) -> None:
    loop.end = loop.step + 1
    loop.run()


def _floor(loop: Any, network: Any) -> None:
    loop.drop()
    with only_from(first_block(network)):
        loss = losses(loop).sum()
    loss.backward()


def _timed(work: Callable[..., None], *given: Any) -> float:
    began = time.perf_counter()
    work(*given)
    return time.perf_counter() - began


def _ratio(one: list[float], other: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="sdxl64", help=f"of {', '.join(SUBJECTS)}")
    parser.add_argument("--pixels", type=int, default=0, help="count the real SDXL at this size")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--steps", type=int, default=5, help="timed steps of a turn")
    options = parser.parse_args(arguments)
    start()
    from graft.benchmarks import b_lora  # the pack's own modules are there from here on

    if options.pixels:
        found = b_lora.layout(options.pixels)
    else:
        found = b_lora.compare(options.model, options.turns, options.steps)
    for name, value in found.items():
        print(f"{name:32}{value:12.4g}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
