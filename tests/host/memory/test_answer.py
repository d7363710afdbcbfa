# SPDX-License-Identifier: Apache-2.0
"""Out of memory in real models of the host: the run goes on with the same losses, and the host is as it was."""

import pytest
import torch

from tests.host import test_engine
from tests.host.test_engine import digests, train

pytestmark = pytest.mark.comfy
wires, output = test_engine.wires, test_engine.output  # fixtures

BATCH = {"batch_size": 4, "checkpointing": "off"}


@pytest.fixture
def scarce(monkeypatch):
    """The device holds ``room`` pictures with activations, twice as many checkpointed, from step ``step`` on."""
    import comfy.model_management as mm

    from graft.host.model.denoiser import HostDenoiser
    from graft.trainers.loop import Loop

    limits = {"room": 99, "step": 0, "place": "forward", "kind": mm.OOM_EXCEPTION}
    at, real, backward = [0], HostDenoiser._apply, Loop.backward
    seen = []

    def remember(loop, items, slots):
        at[0] = loop.step
        return backward(loop, items, slots)

    def apply(denoiser, x, sigma, inputs):
        from graft.host.memory.checkpointing import _Recomputed

        network = denoiser._model.diffusion_model
        is_checkpointed = any(
            isinstance(m.__dict__.get("forward"), _Recomputed) for m in network.modules()
        )
        room = limits["room"] * (2 if is_checkpointed else 1)
        is_full = at[0] >= limits["step"] and len(x) > room
        seen.append((at[0], len(x), is_checkpointed))

        def fail(*args):
            raise limits["kind"]("CUDA out of memory. Tried to allocate 2.00 GiB.")

        if is_full and limits["place"] == "forward":
            fail()
        out = real(denoiser, x, sigma, inputs)
        if is_full and out.requires_grad:
            out.register_hook(fail)
        return out

    monkeypatch.setattr(Loop, "backward", remember)
    monkeypatch.setattr(HostDenoiser, "_apply", apply)
    limits["seen"] = seen
    return limits


def weights(model):
    return {name: value.clone() for name, value in model.model.state_dict().items()}


def is_clean(model, before):
    after = model.model.state_dict()
    same = all(torch.equal(value, after[name]) for name, value in before.items())
    return same and not any("forward" in module.__dict__ for module in model.model.modules())


@pytest.mark.parametrize("family", ["sdxl", "sd15", "sd3"])
@pytest.mark.parametrize(
    "place,room,told", [("forward", 2, 1), ("backward", 1, 2), ("backward", 0.5, 3)]
)
def test_a_run_out_of_memory_gives_the_same_losses_and_leaves_the_host_clean(
    wires,
    output,
    scarce,
    family,
    place,
    room,
    told,
):
    before = weights(wires[family])
    whole = train(wires, family, plan=BATCH, preserve=0.5)
    scarce |= {"room": room, "step": 2, "place": place}
    out = train(wires, family, plan=BATCH, preserve=0.5)
    expected, losses = (torch.tensor(one.loss_map["loss"]) for one in (whole, out))
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=0)
    assert out.report.count("Out of memory at step 3") == told
    assert "Out of memory" not in whole.report
    assert ("gradient checkpointing is on from here on" in out.report) == (told == 3)
    assert is_clean(wires[family], before)
    limit = max(1, int(room))
    tail = [size for step, size, _ in scarce["seen"] if step == 3]
    assert tail and set(tail[-len(tail) // 2 :]) == {limit}


def test_the_first_forward_of_all_may_be_the_one_that_fails(wires, output, scarce):
    """Which layers overwrite their inputs is found there; it must be found in the second attempt."""
    whole = train(wires, plan=BATCH)
    scarce |= {"room": 2, "step": 0}
    out = train(wires, plan=BATCH)
    assert out.loss_map["loss"] == pytest.approx(whole.loss_map["loss"], rel=1e-5)


@pytest.mark.parametrize("place", ["forward", "backward"])
def test_out_of_memory_with_nothing_left_keeps_the_lora_and_says_what_to_do(
    wires,
    output,
    scarce,
    place,
):
    import comfy.model_management as mm

    from graft.host.files import result

    before = weights(wires["sdxl"])
    scarce |= {"room": 0.25, "step": 3, "place": place}
    with pytest.raises(mm.OOM_EXCEPTION) as caught:
        train(wires, steps=9, plan=BATCH | {"batch_size": 1, "checkpointing": "on"})
    text = str(caught.value)
    assert "Out of memory at step 4" in text and "gradient checkpointing is on" in text
    assert "resolution" in text and "rank" in text
    assert "The LoRA after 3 steps is kept in output/loras/graft_step000003.safetensors." in text
    (name,) = digests(output)
    assert name == "loras/graft_step000003.safetensors"
    assert result.self_check(output / name, wires["sdxl"]).complete
    assert is_clean(wires["sdxl"], before)


def test_every_step_down_is_an_event(wires, output, scarce):
    import json

    scarce |= {"room": 1, "step": 1}
    out = train(wires, plan=BATCH)
    rows = [json.loads(line) for line in (output / "graft" / out.run / "log.jsonl").open()]
    warned = [row["text"] for row in rows if row["kind"] == "warned"]
    assert sum("Out of memory at step 2" in text for text in warned) == 2
    assert rows[-1]["state"] == "done"


def test_a_validation_that_is_out_of_memory_goes_on_with_less(wires, output, monkeypatch):
    import comfy.model_management as mm

    from graft.host.model.denoiser import HostDenoiser
    from tests.host.test_engine import dataset

    plan = BATCH | {"validate_every": 2}
    whole = train(wires, plan=plan, validation=dataset(3, "a bird"))
    real = HostDenoiser._apply

    def apply(denoiser, x, sigma, inputs):
        if not torch.is_grad_enabled() and len(x) == 3:
            raise mm.OOM_EXCEPTION("CUDA out of memory.")
        return real(denoiser, x, sigma, inputs)

    monkeypatch.setattr(HostDenoiser, "_apply", apply)
    out = train(wires, plan=plan, validation=dataset(3, "a bird"))
    assert "Out of memory in a validation" in out.report
    assert out.loss_map["validation"] == pytest.approx(whole.loss_map["validation"], rel=1e-5)
    assert out.loss_map["loss"] == pytest.approx(whole.loss_map["loss"], rel=1e-5)


@pytest.mark.parametrize(
    "error,is_one",
    [
        (torch.cuda.OutOfMemoryError("x"), True),
        (MemoryError(), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: "
            ),
            True,
        ),
        (
            RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
            True,
        ),
        (
            RuntimeError(
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
            ),
            True,
        ),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_what_counts_as_out_of_memory(error, is_one):
    from graft.host.memory.out_of_memory import is_out_of_memory

    assert is_out_of_memory(error) is is_one


def test_the_hosts_own_rule_and_its_interrupt(monkeypatch):
    import comfy.model_management as mm

    from graft.host.memory.out_of_memory import end, is_out_of_memory

    class Lost(Exception):
        pass

    assert not is_out_of_memory(mm.InterruptProcessingException())
    assert not is_out_of_memory(Lost())
    monkeypatch.setattr(mm, "is_oom", lambda e: isinstance(e, Lost), raising=False)
    assert is_out_of_memory(Lost())
    assert isinstance(end("no room"), mm.OOM_EXCEPTION) and str(end("no room")) == "no room"
    monkeypatch.setattr(mm, "OOM_EXCEPTION", Exception)  # as old hosts have it without CUDA
    assert not is_out_of_memory(ValueError())
    assert isinstance(end("no room"), RuntimeError)


def test_a_real_allocation_that_the_cpu_refuses_counts():
    from graft.host.memory.out_of_memory import is_out_of_memory

    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)
