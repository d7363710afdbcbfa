# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from graft.host.memory.checkpointing import Checkpointing, find_blocks
from graft.host.model.trainee import trainee
from graft.host.text.conditioning import Conditioner, Encoded
from graft.trainers.allocations import Allocations
from tests.host import tiny

pytestmark = pytest.mark.comfy


class PeakMemory(TorchDispatchMode):
    """Most bytes of live storages that operators had made, looked at after every eighth."""

    def __enter__(self):
        self.live, self.peak, self.calls = {}, 0, 0
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, list | tuple) else (out,):
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                self.live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.calls += 1
        if self.calls % 8 == 0:
            self.live = {k: v for k, v in self.live.items() if not v[0].expired()}
            self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return out


def run(t, family, adapters, batch=2, memory=None):
    """One loss and its gradients from fixed generators."""
    maker = Conditioner(t.model, t.device)
    items = [
        maker.per_item(Encoded.from_conditioning(tiny.conditioning(family)), width=64, height=64)
    ] * batch
    cond, x = maker.batch(items), tiny.latent(family, batch=batch, height=16, width=16)
    torch.manual_seed(0)
    with memory or torch.enable_grad():
        loss = t.denoiser(x, torch.full((batch,), 0.5), cond).square().mean()
        loss.backward()
    return loss.item(), adapters.gradients(), torch.rand(1)


def assert_equal(a, b):
    assert a[0] == b[0] and torch.equal(a[2], b[2])
    for x, y in zip(a[1], b[1], strict=True):
        assert (x is None and y is None) or torch.equal(x, y)


@pytest.mark.parametrize("attach_first", [True, False])
@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3", "flux"])
def test_same_gradients_as_without(family, attach_first):
    """Exactly, with dropout, whichever of adapters and checkpointing came first."""
    with trainee(tiny.model(family), precision="fp32") as t:
        if not attach_first:
            t.checkpointing(True)
        adapters = tiny.Attached(t.diffusion_model, dropout=0.3)
        t.checkpointing(True)
        ours = [run(t, family, adapters) for _ in range(2)]
        t.checkpointing(False)
        plain = run(t, family, adapters)
        adapters.remove()
        assert not any("forward" in m.__dict__ for m in t.diffusion_model.modules())
    assert_equal(ours[0], plain)
    assert_equal(ours[1], plain)


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_any_of_the_blocks_give_the_same_gradients(family):
    """One after another, then others: those and no others are replaced, and no bit changes."""
    with trainee(tiny.model(family), precision="fp32") as t:
        adapters = tiny.Attached(t.diffusion_model, dropout=0.3)
        plain, count = run(t, family, adapters), len(t.blocks)
        for places in ([0], range(0, count, 2), range(1, count, 2), True, [count - 1], False):
            t.checkpointing(places)
            wanted = range(count) if places is True else places or ()
            assert t.checkpointed == len(wanted)
            for place, block in enumerate(t.blocks):
                assert ("forward" in block.__dict__) == (place in wanted)
            assert_equal(run(t, family, adapters), plain)
        adapters.remove()


def test_what_is_known_of_a_block_outlives_its_turn():
    """A block that was on before keeps no copies in its first pass with gradients."""
    net, options = Writer(), {}
    recompute = Checkpointing(net)
    recompute.on()
    with torch.no_grad():
        net(torch.ones(2, 4), options)
    recompute.on([1])
    recompute.on([0, 1])
    assert [block.forward.writes for block in net.blocks[:2]] == [True, True]
    recompute.off()
    assert recompute.count == 0


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3", "flux"])
def test_peak_memory_is_lower(family):
    peaks = []
    with trainee(tiny.model(family), precision="fp32") as t:
        adapters = tiny.Attached(t.diffusion_model)
        run(t, family, adapters)
        for on in (False, True):
            t.checkpointing(on)
            memory = PeakMemory()
            run(t, family, adapters, memory=memory)
            peaks.append(memory.peak)
        adapters.remove()
    assert peaks[1] < 0.85 * peaks[0]


def test_blocks_are_those_of_the_architecture():
    def kinds(family):
        return [type(b).__name__ for b in find_blocks(tiny.model(family).model.diffusion_model)]

    assert kinds("sdxl").count("ResBlock") == 2 + 2 + 4
    assert kinds("sdxl").count("BasicTransformerBlock") == 2 + 1 + 2 * 2
    assert set(kinds("sdxl")) == {"ResBlock", "BasicTransformerBlock"}
    assert kinds("sd3") == ["JointBlock"] * 2
    assert kinds("flux") == ["DoubleStreamBlock"] * 2 + ["SingleStreamBlock"] * 2
    with pytest.raises(ValueError, match="Linear: turn gradient checkpointing off"):
        find_blocks(torch.nn.Linear(1, 1))


def test_no_recomputation_without_gradients():
    with trainee(tiny.model("sdxl"), precision="fp32") as t:
        t.checkpointing(True)
        calls = []
        block = find_blocks(t.diffusion_model)[0]
        layer = next(
            m for m in block.modules() if hasattr(m, "in_features") or hasattr(m, "in_channels")
        )
        handle = layer.register_forward_hook(lambda *a: calls.append(1))
        with torch.no_grad():
            tiny.sample(t.patcher, "sdxl", steps=1, cfg=1.0, inference=False)
        assert len(calls) == 1
        handle.remove()


class Writer(torch.nn.Module):
    """Blocks that write to their inputs and to the dict that is handed from one to the next."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList(WriterBlock(i) for i in range(3))

    def forward(self, x, options):
        for i, block in enumerate(self.blocks):
            options["index"] = i
            x = block(x, options=options)
        return x


class WriterBlock(torch.nn.Module):
    def __init__(self, index):
        super().__init__()
        torch.manual_seed(index)
        self.one, self.two = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def forward(self, x, options):
        y = self.two(torch.tanh(self.one(x.clone())))
        x += y * (1 + options["index"])
        options["index"] = 99
        options.setdefault("seen", []).append(1)
        return x


def test_blocks_that_write_to_their_arguments():
    net, results = Writer(), []
    recompute = Checkpointing(net)
    for on in (False, True, True):
        if on:
            recompute.on()
        options = {}
        net.zero_grad()
        (net(torch.ones(2, 4).requires_grad_() * 1.0, options) ** 2).sum().backward()
        results.append([p.grad.clone() for p in net.parameters()])
        assert options["index"] == 99
    recompute.off()
    for a, b, c in zip(*results, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_something_attached_on_top_survives():
    net = Writer()
    block = net.blocks[0]
    recompute = Checkpointing(net)
    recompute.on()
    below = block.forward
    block.forward = lambda *a, **k: below(*a, **k)
    top = block.forward
    recompute.off()
    assert block.forward is top
    net(torch.ones(2, 4).requires_grad_() * 1.0, {}).sum().backward()
    assert "forward" not in net.blocks[1].__dict__


def test_one_forward_without_gradients_is_enough_to_know_who_writes_to_its_inputs():
    """So that the first pass with gradients keeps no copies, and takes what the second one does."""
    peaks = {}
    for is_known in (False, True):
        with trainee(tiny.model("sdxl"), precision="fp32") as t:
            adapters = tiny.Attached(t.diffusion_model)
            run(t, "sdxl", adapters)  # which layers need a copy is known from here on
            t.checkpointing(True)
            if is_known:
                with torch.no_grad():
                    maker = Conditioner(t.model, t.device)
                    text = Encoded.from_conditioning(tiny.conditioning("sdxl"))
                    cond = maker.batch([maker.per_item(text, width=64, height=64)])
                    t.denoiser(tiny.latent("sdxl"), torch.full((1,), 0.5), cond)
            found = []
            for _ in range(2):
                with Allocations() as counted:
                    run(t, "sdxl", adapters)
                found.append(counted.peak)
            adapters.remove()
        peaks[is_known] = found
    assert peaks[True][0] == pytest.approx(peaks[True][1], rel=0.01)
    assert peaks[True][1] == pytest.approx(peaks[False][1], rel=0.01)
    assert peaks[False][0] > 1.01 * peaks[True][0]
