# SPDX-License-Identifier: Apache-2.0
"""A watched run on tiny real ComfyUI models: same weights, what it tells, and what is delivered when it goes wrong."""

import dataclasses
import json

import pytest
import torch

from tests.host.test_engine import dataset, digests, output, train, wires

pytestmark = pytest.mark.comfy
__all__ = ["output", "wires"]


def held_out(count=2, seed=7):
    from graft.trainers.data import Dataset, Item

    generator = torch.Generator().manual_seed(seed)
    pixels = [torch.rand(64, 64, 3, generator=generator) for _ in range(count)]
    return Dataset(tuple(Item("a zork thing, unseen", pixels=one) for one in pixels))


def rows_of(output, kind):
    (log,) = output.rglob("log.jsonl")
    rows = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    return [row for row in rows if row["kind"] == kind]


def test_everything_on_trains_what_everything_off_trains(wires, output):
    from graft.trainers.preview import Preview

    off = train(wires, steps=5, plan={"stop_when_diverging": 0.0})
    shown = Preview(("a zork",), steps=2, every=2, width=64, height=64, rows="all")
    plan = {"validate_every": 2, "patience": 9}
    on = train(wires, steps=5, plan=plan, validation=held_out(), preview=shown)
    assert on.loss_map["loss"] == off.loss_map["loss"]
    for key, value in off.lora_model.items():
        assert torch.equal(value, on.lora_model[key]), key
    assert on.adapter.metadata == off.adapter.metadata
    assert on.run != off.run


def test_validations_arrive_in_log_map_state_and_report(wires, output):
    from graft.host.drawing import plots

    outcome = train(wires, steps=5, plan={"validate_every": 2}, validation=held_out())
    rows = rows_of(output, "validated")
    assert [row["step"] for row in rows] == [0, 2, 4, 5] == outcome.loss_map["validation_steps"]
    assert [row["loss"] for row in rows] == outcome.loss_map["validation"]
    assert outcome.state.validation == tuple((row["step"], row["loss"]) for row in rows)
    sigmas = [sigma for sigma, _ in rows[0]["per_sigma"]]
    assert len(sigmas) == 8 and sigmas == sorted(sigmas)
    assert set(rows[-1]["change"]) <= {"input_blocks", "middle_block", "output_blocks"} | {
        f"{side}_blocks.{n}" for side in ("input", "output") for n in range(9)
    }
    first, last = rows[0]["loss"], rows[-1]["loss"]
    assert f"validation loss {first:.4f} (step 0) -> " in outcome.report
    assert f"{last:.4f} (step 5)" in outcome.report
    assert "changed most, |dW| / |W|: " in outcome.report
    plain = plots.loss_plot(outcome.loss_map["loss"])
    assert outcome.images.shape == plain.shape and not torch.equal(outcome.images, plain)


def test_a_resumed_run_is_validated_with_the_same_noise(wires, output):
    common = {"validation": held_out(), "plan": {"validate_every": 2, "total_steps": 4}}
    whole = train(wires, steps=4, **{**common, "plan": dict(common["plan"])})
    head = train(wires, steps=2, **{**common, "plan": dict(common["plan"])})
    tail = train(wires, steps=2, state=head.state, **{**common, "plan": dict(common["plan"])})
    assert tail.loss_map == whole.loss_map
    assert tail.loss_map["validation_steps"] == [0, 2, 4]


def test_cores_plot_takes_the_map(wires, output, monkeypatch):
    from comfy_extras import nodes_train

    monkeypatch.setattr(nodes_train.ui, "PreviewImage", lambda image, cls: {"images": image})
    outcome = train(wires, steps=3, plan={"validate_every": 2}, validation=held_out())
    made = nodes_train.LossGraphNode.execute(outcome.loss_map, "loss")
    assert made.ui["images"].shape[-1] == 3


def test_the_best_state_is_beside_a_result_that_is_worse(wires, output, monkeypatch):
    from graft.trainers.validation import Validator

    losses = iter([0.9, 0.2, 0.5])
    monkeypatch.setattr(Validator, "__call__", lambda self: ((1.0, next(losses)),))
    outcome = train(wires, steps=4, plan={"validate_every": 2}, validation=held_out())
    monkeypatch.undo()
    names = {name.rpartition("/")[2]: name for name in digests(output)}
    assert set(names) == {"graft.safetensors", "graft_best.safetensors"}
    assert "the best by validation loss is that of step 2 (0.2000): output/graft/" in outcome.report
    import safetensors.torch

    best = safetensors.torch.load_file(output / names["graft_best.safetensors"])
    there = train(wires, steps=2, plan={"total_steps": 4})
    assert best.keys() == there.lora_model.keys()
    assert all(torch.equal(best[key], value) for key, value in there.lora_model.items())


def test_early_stopping_delivers_the_best_and_keeps_the_last(wires, output, monkeypatch):
    from graft.trainers.validation import Validator

    losses = iter([0.9, 0.2, 0.5, 0.6, 0.7, 0.8])
    monkeypatch.setattr(Validator, "__call__", lambda self: ((1.0, next(losses)),))
    plan = {"validate_every": 2, "patience": 2}
    outcome = train(wires, steps=50, plan=plan, validation=held_out())
    assert outcome.state.step == 6 and len(outcome.loss_map["loss"]) == 6
    assert "No better validation loss for 2 validations: ended at step 6" in outcome.report
    assert "step 2 (0.2000), which is delivered" in outcome.report
    assert "on request" not in outcome.report
    there = train(wires, steps=2, plan={"total_steps": 50})
    for key, value in there.lora_model.items():
        assert torch.equal(outcome.lora_model[key], value), key
    assert outcome.adapter.metadata["graft.steps"] == "2"
    assert any(name.endswith("graft_last.safetensors") for name in digests(output))


def test_a_diverging_run_delivers_what_it_was_before(wires, output, monkeypatch):
    from graft.trainers import divergence, monitor

    monkeypatch.setattr(divergence, "WINDOW", 3)
    monkeypatch.setattr(divergence, "FIRST", 2)
    real, losses = monitor.Monitor.__call__, iter([0.1] * 6 + [50.0] * 99)
    fall = lambda self, event: real(self, dataclasses.replace(event, loss=next(losses)))  # noqa: E731
    monkeypatch.setattr(monitor.Monitor, "__call__", fall)
    outcome = train(wires, steps=40, plan={"validate_every": 3})
    assert "The training diverges" in outcome.report and "which is delivered" in outcome.report
    assert outcome.state.step < 40
    (warned,) = (row["text"] for row in rows_of(output, "warned"))
    assert "diverges" in warned and "Lower the learning rate" in warned
    assert rows_of(output, "ended")[0]["state"] == "finished"
    assert outcome.adapter.metadata["graft.steps"] == "3"


def test_what_a_nan_ends_leaves_the_best_as_well(wires, output, monkeypatch):
    from graft.trainers.loop import Diverged, Loop

    real = Loop._update

    def diverge(loop):
        if loop.step == 3:
            raise Diverged("The loss is nan at step 4.")
        return real(loop)

    monkeypatch.setattr(Loop, "_update", diverge)
    with pytest.raises(
        Diverged, match="best LoRA, after 2 steps is kept in output/loras/graft_best"
    ):
        train(wires, steps=9, plan={"validate_every": 2}, validation=held_out())
    assert (output / "loras" / "graft_step000003.safetensors").is_file()
    assert (output / "loras" / "graft_best_step000002.safetensors").is_file()


def test_no_gradient_ends_the_run_and_keeps_the_work(wires, output, monkeypatch):
    from graft.trainers.loop import Loop
    from graft.trainers.monitor import NothingLearned

    monkeypatch.setattr(Loop, "_update", lambda loop: 0.0)
    with pytest.raises(NothingLearned, match="Check that blocks .* after 10 steps is kept"):
        train(wires, steps=99)


def test_pictures_that_are_trained_on_are_no_measure(wires, output):
    data = dataset()
    both = dataclasses.replace(held_out(), items=(*held_out().items, data.items[0]))
    train(wires, steps=1, dataset=data, validation=both)
    assert any(
        "1 of 3 validation pictures are in" in row["text"] for row in rows_of(output, "warned")
    )


def test_a_look_that_takes_longer_than_the_training_is_told():
    """8 x 20 forward passes are those of 53 steps of one picture; of two pictures, 27."""
    from graft.host.runs import health
    from graft.trainers.data import Item
    from graft.trainers.plan import Plan

    many = dataclasses.replace(held_out(), items=held_out().items[:1] * 20)
    (said,) = health.notes(dataset(), many, Plan(validate_every=50), Item.picture_digest)
    assert "160 forward passes, about as long as 53 steps" in said
    assert not health.notes(
        dataset(), many, Plan(batch_size=2, validate_every=50), Item.picture_digest
    )


def test_patience_without_pictures_is_refused(wires, output):
    with pytest.raises(ValueError, match="patience is 3 but nothing is connected to validation"):
        train(wires, plan={"patience": 3})
    assert not list(output.rglob("*.*"))


def test_a_cancelled_validation_is_a_cancelled_run(wires, output, monkeypatch):
    import comfy.model_management as management

    from graft.host import engine

    calls = []

    def interrupted():  # 4 pictures, 2 held out, 2 captions, then the forward passes of step 0
        calls.append(1)
        if len(calls) == 12:
            raise management.InterruptProcessingException()

    monkeypatch.setattr(engine, "_interrupt", interrupted)
    with pytest.raises(management.InterruptProcessingException):
        train(wires, steps=9, validation=held_out())
    assert rows_of(output, "ended")[0]["state"] == "interrupted"
    assert not any("forward" in module.__dict__ for module in wires["sdxl"].model.modules())


def test_held_out_pictures_of_several_sizes_and_captions(wires, output):
    from graft.trainers.data import Dataset, Item

    items = (Item("x", pixels=torch.rand(64, 128, 3)), Item("", pixels=torch.rand(64, 64, 3)))
    outcome = train(wires, steps=1, validation=Dataset((*items, *held_out().items)))
    assert len(outcome.loss_map["validation"]) == 2


@pytest.mark.parametrize("average", ["ema", "schedule-free-adamw"])
def test_an_average_is_validated_beside_the_last_weights_and_decides(wires, output, average):
    from graft.trainers.optimizers import OPTIMIZERS, Optimizer

    if average == "ema":
        optimizer = Optimizer(OPTIMIZERS.get("adamw")(lr=1e-2), ema_decay=0.5)
    else:
        optimizer = Optimizer(OPTIMIZERS.get(average)(lr=1e-2))
    plain = train(wires, steps=4, optimizer=optimizer)
    watched = train(
        wires, steps=4, optimizer=optimizer, plan={"validate_every": 2}, validation=held_out()
    )
    for key, value in plain.lora_model.items():
        assert torch.equal(value, watched.lora_model[key]), key
    (log,) = [path for path in output.rglob("log.jsonl") if watched.run in str(path)]
    told = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    told = [row for row in told if row["kind"] == "validated"]
    raw, averaged = ([row for row in told if row["weights"] == w] for w in ("raw", "averaged"))
    assert [row["step"] for row in raw] == [row["step"] for row in averaged] == [0, 2, 4]
    assert raw[0]["loss"] == averaged[0]["loss"] and raw[2]["loss"] != averaged[2]["loss"]
    assert watched.loss_map["validation"] == [row["loss"] for row in averaged]
