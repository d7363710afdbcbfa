# SPDX-License-Identifier: Apache-2.0
"""B-LoRA does no gradient work before its first trained block: nodes, kept tensors, recomputation, on graft-mini."""

from collections import Counter

import pytest
import torch

pytestmark = pytest.mark.comfy


@pytest.fixture(scope="module")
def b_lora(comfy):
    from graft.benchmarks import b_lora

    return b_lora


def test_autograd_has_the_nodes_of_the_floor_and_none_before_the_first_block(b_lora):
    kept = b_lora.graphs("mini")
    ours, floor, full = (kept[w] for w in (b_lora.B_LORA, b_lora.FLOOR, b_lora.ATTENTION))
    assert torch.equal(ours.losses, floor.losses)
    assert 0 < ours.nodes == floor.nodes < 0.65 * full.nodes
    assert not ours.tracked_before and not floor.tracked_before and full.tracked_before
    assert ours.saved_before == 0 < full.saved_before
    assert ours.saved == floor.saved <= 0.65 * full.saved


def test_the_floor_has_the_gradients_of_the_trainer(b_lora):
    """So it is the same work: no gradient that is asked for is left out."""
    with b_lora._training("mini", "b-lora") as (trained, loop):
        b_lora.losses(loop)
        b_lora.losses(loop).mean().backward()
        ours = {name: p.grad.clone() for name, p in loop.parameters.items()}
        loop.drop()
        with b_lora.only_from(b_lora.first_block(trained.diffusion_model)):
            floor = b_lora.losses(loop).mean()
        floor.backward()
        assert all(torch.equal(p.grad, ours[name]) for name, p in loop.parameters.items())
        assert torch.is_grad_enabled()


def test_a_node_is_counted_once():
    """x, its node, w, its node; y twice in z: two accumulations, mul, add of it with itself: 4."""
    from graft.benchmarks.b_lora import count_nodes

    x, w = (torch.ones(1, requires_grad=True) for _ in range(2))
    y = x * w
    assert count_nodes(y + y) == 4


def test_checkpointing_recomputes_no_block_before_the_first_trained_one(b_lora):
    with b_lora._training("mini", "b-lora") as (trained, loop):
        first, calls, handles = b_lora.first_block(trained.diffusion_model), Counter(), []
        names = {id(m): n for n, m in trained.diffusion_model.named_modules()}
        entered = [names[id(block)] for block in trained.blocks]
        for name, block in zip(entered, trained.blocks, strict=True):
            inner = next(m for m in block.modules() if m is not block and not list(m.children()))
            handles.append(inner.register_forward_pre_hook(counting(calls, name)))
        b_lora.losses(loop)
        trained.checkpointing(True)
        b_lora.losses(loop)
        calls.clear()
        loss = b_lora.losses(loop).mean()
        once = dict(calls)
        loss.backward()
        for handle in handles:
            handle.remove()
        at = next(i for i, name in enumerate(entered) if name.startswith("output_blocks.0.1."))
        assert at > 5 and all(calls[name] == once[name] for name in entered[:at])
        assert all(calls[name] == 2 * once[name] for name in entered[at:])

        alive = [alive_at(first, lambda: b_lora.losses(loop))]
        with b_lora.only_from(first):
            alive.append(alive_at(first, lambda: b_lora.losses(loop)))
        assert alive[0] == alive[1] > 0, "no inputs of blocks before are kept for a recomputation"


def counting(calls, name):
    return lambda *_: calls.update([name])


def alive_at(block, forward):
    """Bytes of what a forward pass made and what is alive when it comes to a block."""
    from graft.trainers.allocations import Allocations

    found = []
    with Allocations() as counted:
        handle = block.register_forward_pre_hook(lambda *_: found.append(counted.live))
        try:
            forward()
        finally:
            handle.remove()
    return found[0]
