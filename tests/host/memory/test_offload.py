# SPDX-License-Identifier: Apache-2.0
"""Weights of blocks on the CPU: the same bits as fully loaded, a block's weights at a time, and nothing left behind."""

import weakref

import pytest
import torch

from graft.host.model.trainee import trainee
from tests.host import test_engine, tiny
from tests.host.model.test_trainee import (
    assert_same_state,
    flags,
    loaded,
    lora,
    loss_of,
    state,
    train,
)

pytestmark = pytest.mark.comfy
wires, output = test_engine.wires, test_engine.output  # fixtures
FAMILIES = ["sd15", "sdxl", "sd3", "flux"]


def assert_equal(a, b):
    assert a[0] == b[0]
    for x, y in zip(a[1], b[1], strict=True):
        assert (x is None and y is None) or torch.equal(x, y)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_those_of_the_loaded_model(family, precision):
    """A LoRA of the wire is part of the weights; afterwards the host is as it was."""
    patcher, _ = lora(tiny.model(family), family)
    with torch.inference_mode():
        before = tiny.sample(patcher, family)
        mark, kept = state(patcher), flags()
        with trainee(patcher, precision=precision) as t:
            whole = train(family, t)
        with trainee(patcher, precision=precision, offload="on") as t:
            assert t.offloaded is not None and t.checkpointed == len(t.blocks) > 0
            apart = train(family, t)
            assert t.patcher.model.model_loaded_weight_memory < 0.5 * t.patcher.model_size()
        assert_equal(whole, apart)
        assert_same_state(mark, state(patcher))
        assert flags() == kept
        assert patcher in loaded() and t.patcher not in loaded()
        assert torch.equal(tiny.sample(patcher, family), before)
    assert not any(hasattr(m, "prev_comfy_cast_weights") for m in patcher.model.modules())


class Copies:
    """What a GPU would hold of weights: every copy that the host's layers make, until nobody holds it."""

    def __init__(self, blocks):
        self.blocks = {m: place for place, block in enumerate(blocks) for m in block.modules()}
        self.live, self.peak, self.most_blocks, self.here = 0, 0, 0, []

    def note(self, layer, tensors):
        place = self.blocks.get(layer)
        for tensor in tensors:
            if place is not None and tensor is not None:
                storage = tensor.untyped_storage()
                assert storage.data_ptr() not in {p.data_ptr() for p in layer.parameters()}
                self.live += storage.nbytes()
                self.here.append(place)
                weakref.finalize(storage, self.gone, place, storage.nbytes())
        self.peak = max(self.peak, self.live)
        self.most_blocks = max(self.most_blocks, len(set(self.here)))

    def gone(self, place, size):
        self.live -= size
        self.here.remove(place)


@pytest.fixture
def copies(monkeypatch):
    import comfy.ops

    def watch(blocks):
        watched, real = Copies(blocks), comfy.ops.cast_bias_weight

        def cast(layer, *args, **kwargs):
            made = real(layer, *args, **kwargs)
            watched.note(layer, made[:2])
            return made

        monkeypatch.setattr(comfy.ops, "cast_bias_weight", cast)
        return watched

    return watch


@pytest.mark.parametrize("family", FAMILIES)
def test_the_weights_of_one_block_at_a_time_are_there(family, copies):
    """And not those of all blocks, as without checkpointing; nor any when a step is over."""
    with trainee(tiny.model(family), precision="fp32", offload="on") as t:
        largest = t.offloaded.largest(torch.float32)
        total = sum(p.nbytes for p in t.offloaded.parameters)
        watched = copies(t.blocks)
        train(family, t, steps=2)
        assert (watched.live, watched.most_blocks) == (0, 1)
        assert 0.9 * largest <= watched.peak <= largest < 0.7 * total
        t._checkpointing.off()
        train(family, t, steps=1)
        assert watched.most_blocks == len(t.blocks) and watched.peak > 0.9 * total


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_but_the_copies_reads_the_weights_that_are_apart(family, monkeypatch):
    """The blocks' own tensors are without values (on `meta`) but for the moment in which the host copies them."""
    import comfy.ops

    patcher = tiny.model(family)
    with trainee(patcher, precision="fp32") as t:
        adapters = tiny.Attached(t.diffusion_model)
        loss = loss_of(family, t)
        loss.backward()
        whole = loss.item(), adapters.gradients()
        adapters.remove()
    with trainee(patcher, precision="fp32", offload="on") as t:
        adapters = tiny.Attached(t.diffusion_model)
        kept = {layer: dict(layer._parameters) for layer in t.offloaded._layers}
        hollow = {
            layer: {
                k: p if p is None else torch.nn.Parameter(p.to("meta"), False)
                for k, p in own.items()
            }
            for layer, own in kept.items()
        }
        real = comfy.ops.cast_bias_weight

        def cast(layer, *args, **kwargs):
            layer._parameters.update(kept.get(layer, {}))
            try:
                return real(layer, *args, **kwargs)
            finally:
                layer._parameters.update(hollow.get(layer, {}))

        monkeypatch.setattr(comfy.ops, "cast_bias_weight", cast)
        for layer, own in hollow.items():
            layer._parameters.update(own)
        loss = loss_of(family, t)
        loss.backward()
        assert_equal((loss.item(), adapters.gradients()), whole)
        for layer, own in kept.items():
            layer._parameters.update(own)
        adapters.remove()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float8_e4m3fn])
def test_a_measured_pass_has_one_block_of_weights_more(dtype):
    """Against the same pass with all weights on the device and every block checkpointed, whatever dtype they have."""
    from graft.host.memory.plan import _Rehearsal, _room
    from tests.host.memory.test_plan import loop_on

    peaks, there = [], []
    for offload in ("off", "on"):
        with trainee(tiny.model("sdxl", dtype=dtype), precision="fp32", offload=offload) as t:
            loop = loop_on(t, "sdxl", memory_limit=1000)
            blocks = len(t.blocks)
            peaks.append(_Rehearsal(loop, t, 0, lambda: None).measure(blocks, 1))
            there.append(_room(loop, t).held)
            apart = sum(p.nbytes for p in t.offloaded.parameters) if t.offloaded else 0
            largest = t.offloaded.largest(torch.float32) if t.offloaded else 0
            loop.network.remove()
    assert there[0] - there[1] == apart > 0.5 * there[0]
    more = peaks[1] - peaks[0]
    if dtype == torch.float32:
        assert 0.5 * largest < more <= largest
    else:  # the loaded model makes copies in the dtype of the computation, too
        assert more <= 0.5 * largest


def test_sampling_and_eviction_in_mid_run():
    """Sampled with the adapters, thrown off the device, loaded again: the weights are where they should be."""
    import comfy.model_management as mm

    patcher, _ = lora(tiny.model("sdxl"), "sdxl")
    seen = []
    for offload in ("off", "on"):
        with trainee(patcher, precision="fp32", offload=offload) as t:
            losses = train("sdxl", t, steps=1)[0]
            with torch.no_grad():
                picture = tiny.sample(t.patcher, "sdxl", inference=False)
            t.reload()
            losses += train("sdxl", t, steps=1)[0]
            mm.unload_all_models()
            t.reload()
            losses += train("sdxl", t, steps=1)[0]
            entry = next(m for m in mm.current_loaded_models if m.model is t.patcher)
            if entry.model_unload(1000):  # the host wants some memory for another model
                mm.current_loaded_models.remove(entry)
            t.reload()
            assert t.offloaded is None or t.offloaded.is_placed()
            losses += train("sdxl", t, steps=1)[0]
            seen.append((losses, picture))
    assert seen[0][0] == seen[1][0] and torch.equal(seen[0][1], seen[1][1])


def test_from_whole_to_apart_in_mid_run():
    patcher, _ = lora(tiny.model("sd3"), "sd3")
    with torch.inference_mode():
        mark = state(patcher)
        with trainee(patcher, precision="fp32") as t:
            whole = train("sd3", t)
        with trainee(patcher, precision="fp32") as t:
            t.checkpointing([0])
            t.offload()
            assert t.offloaded.is_placed() and t.checkpointed == len(t.blocks)
            t.checkpointing(False)  # not while weights are apart
            assert t.checkpointed == len(t.blocks)
            t.offload()
            assert_equal(train("sd3", t), whole)
        assert_same_state(mark, state(patcher))


@pytest.mark.parametrize("is_late", [True, False])
def test_everything_is_given_back_when_loading_fails(monkeypatch, is_late):
    import comfy.model_management as mm

    patcher, _ = lora(tiny.model("sdxl"), "sdxl")
    with torch.inference_mode():
        before = tiny.sample(patcher, "sdxl")
        mark, kept = state(patcher), flags()
        load = mm.load_models_gpu

        def fail(models, *args, **kwargs):
            is_training = getattr(mm, "in_training", False)
            if is_late or not is_training:
                load(models, *args, **kwargs)
            if is_training:
                raise mm.OOM_EXCEPTION("out of memory")

        monkeypatch.setattr(mm, "load_models_gpu", fail)
        with pytest.raises(mm.OOM_EXCEPTION), trainee(patcher, offload="on"):
            raise AssertionError("not reached")
        monkeypatch.undo()
        assert_same_state(mark, state(patcher))
        assert flags() == kept
        assert torch.equal(tiny.sample(patcher, "sdxl"), before)


@pytest.mark.parametrize("offload", ["auto", "off"])
def test_a_model_that_cannot_be_loaded_whole(monkeypatch, offload):
    """auto keeps blocks on the CPU; off says what would do."""
    import comfy.model_management as mm

    patcher, load = tiny.model("sdxl"), mm.load_models_gpu
    tried = []

    def scarce(models, *args, **kwargs):
        is_whole = "partially_load" not in models[0].__dict__
        if getattr(mm, "in_training", False):
            tried.append(is_whole)
            if is_whole:
                raise mm.OOM_EXCEPTION("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return load(models, *args, **kwargs)

    monkeypatch.setattr(mm, "load_models_gpu", scarce)
    if offload == "off":
        with pytest.raises(mm.OOM_EXCEPTION, match="What would do: offload auto"):
            with trainee(patcher, offload=offload):
                raise AssertionError("not reached")
        return
    with trainee(patcher, precision="fp32", offload=offload) as t:
        assert t.offloaded is not None
        losses = train("sdxl", t)[0]
    assert tried == [True, False] and losses[-1] < losses[0]


def test_what_is_larger_than_the_device_is_not_tried_whole(monkeypatch):
    """Of a device of which the host says how much it has; a limit counts as well."""
    import comfy.model_management as mm

    from graft.host.memory.residence import Residence

    patcher = tiny.model("sdxl")
    residence = Residence(patcher)
    size = residence._size()
    assert residence._can_fit(1)  # on a CPU all of it is there already
    monkeypatch.setattr(patcher, "load_device", torch.device("cuda"))
    for total, limit, fits in ((size + 1, 0, True), (size, 0, False), (2 * size, size, False)):
        monkeypatch.setattr(mm, "get_total_memory", lambda device, total=total: total)
        assert residence._can_fit(limit) is fits


def test_refusals():
    import comfy.ops

    from graft.host.memory.offload import Offload
    from graft.trainers.plan import Plan

    class QuantizedTensor(torch.Tensor):
        pass

    with pytest.raises(ValueError, match="offload is on and checkpointing is off"):
        Plan(offload="on", checkpointing="off")
    assert Plan(checkpointing="off").may_offload == "off"
    assert repr(Plan(offload="on")) == repr(Plan())  # where it is computed is no part of a run's id
    patcher = tiny.model("sdxl", inference=False)
    layer = next(m for m in patcher.model.diffusion_model.modules() if hasattr(m, "in_features"))
    layer = patcher.model.diffusion_model.middle_block[1].transformer_blocks[0].attn1.to_q
    weight = layer.weight.detach().as_subclass(QuantizedTensor)
    layer._parameters["weight"] = torch.nn.Parameter(weight, requires_grad=False)
    with pytest.raises(ValueError, match="quantised weights cannot be kept on the CPU"):
        Offload(patcher)
    flat = tiny.model("sdxl")
    flat.model.diffusion_model = comfy.ops.disable_weight_init.Linear(2, 2)
    with pytest.raises(ValueError, match="Linear has no blocks"):
        Offload(flat)


WITH = {"batch_size": 2, "checkpointing": "on", "validate_every": 2}


def test_a_run_gives_the_same_lora_and_losses(wires, output):
    """With previews, a validation, an average, preservation and a LoRA on the wire."""
    import comfy.model_management as mm

    from graft.trainers.optimizers import Optimizer
    from graft.trainers.preview import Preview

    made = []
    patched, _ = lora(wires["sdxl"], "sdxl")
    with torch.inference_mode():
        mm.unload_all_models()
        mark = state(patched)
        for offload in ("off", "on"):
            out = test_engine.train(
                wires | {"sdxl": patched},
                plan=WITH | {"offload": offload, "when_found": "start fresh"},
                preserve=0.5,
                optimizer=Optimizer(ema_decay=0.9),
                preview=Preview(prompts=("a zork",), steps=2, every=2, width=64, height=64),
                validation=test_engine.dataset(3, "a bird"),
            )
            made.append((out, test_engine.digests(output)))
            mm.unload_all_models()  # MODEL out was sampled, which shares the weights
            assert_same_state(mark, state(patched))
    (whole, files), (apart, again) = made
    assert whole.run == apart.run and files == again and files
    assert whole.loss_map == apart.loss_map and torch.equal(whole.images, apart.images)
    assert "offload: the weights of 15 blocks" in apart.report
    assert "offload" not in whole.report


def test_a_limit_that_the_whole_model_exceeds(wires, output):
    """Of the tiny model's weights less than 1 MiB stays on the device. auto goes there, off says so."""
    plan, fresh = {"batch_size": 2, "memory_limit": 3}, {"when_found": "start fresh"}
    whole = test_engine.train(wires, plan={"batch_size": 2} | fresh)
    with pytest.raises(ValueError, match="memory_limit allows 3 MiB.*offload auto"):
        test_engine.train(wires, plan=plan | {"offload": "off"} | fresh)
    apart = test_engine.train(wires, plan=plan | fresh)
    assert "offload: the weights of 15 blocks" in apart.report
    assert "this device is the CPU itself" in apart.report
    assert apart.loss_map["loss"] == pytest.approx(whole.loss_map["loss"], rel=1e-5)


@pytest.mark.parametrize("place", ["cuda", "cpu"])
def test_the_last_step_down_is_to_the_cpu(place):
    """All blocks first where some are checkpointed; a CPU gains nothing, nor where it was not allowed."""
    from types import SimpleNamespace

    from graft.host.memory.answer import memory

    done = []
    trained = SimpleNamespace(
        checkpointed=3,
        offloaded=None,
        device=torch.device(place),
        offload=lambda: done.append("apart"),
    )

    def checkpointing(on):
        trained.checkpointed = 7

    trained.checkpointing = checkpointing
    relief = memory(trained, lambda event: None, may_offload=True)._relief
    assert relief.checkpoint() and not relief.checkpoint()
    assert relief.offload() is (place == "cuda") and len(done) == (place == "cuda")
    assert not memory(trained, lambda event: None)._relief.offload()
    trained.offloaded = object()
    assert not relief.offload()
