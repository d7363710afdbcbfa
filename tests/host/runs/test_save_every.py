# SPDX-License-Identifier: Apache-2.0
"""LoRA files every n steps: the bytes that a run ended there hands over, under names that sort."""

import pytest

from tests.host.test_engine import digests, output, request, train, wires  # noqa: F401 - fixtures

pytestmark = pytest.mark.comfy


def optimizer(kind):
    from graft.trainers.optimizers import OPTIMIZERS, Optimizer

    algorithm, _, average = kind.partition("+")
    return Optimizer(OPTIMIZERS.get(algorithm)(lr=0.01), ema_decay=0.5 if average else 0.0)


each = pytest.mark.parametrize("kind", ["adamw", "adamw+ema", "schedule-free-adamw"])


@each
def test_each_file_is_that_of_a_run_that_ends_there(wires, output, kind):  # noqa: F811
    given = {"optimizer": optimizer(kind)}
    whole = train(wires, steps=5, plan={"save_every": 2, "total_steps": 5}, **given)
    made = digests(output / "loras")
    assert list(made) == ["graft_step000002.safetensors", "graft_step000004.safetensors"]
    for step in (2, 4):
        ended = train(wires, steps=step, plan={"total_steps": 5}, **given)
        file = digests(output)[f"graft/{ended.run}/graft.safetensors"]
        assert made[f"graft_step{step:06}.safetensors"] == file
    assert whole.run != ended.run


@each
def test_saving_does_not_change_what_is_trained_nor_which_run_it_is(wires, output, kind):  # noqa: F811
    plain = train(wires, optimizer=optimizer(kind))
    first = digests(output)
    saved = train(wires, plan={"save_every": 1}, optimizer=optimizer(kind))
    assert saved.run == plain.run and saved.loss_map == plain.loss_map
    assert {name: digests(output)[name] for name in first} == first
    assert len(digests(output)) == len(first) + 4


def test_a_run_in_parts_writes_the_files_of_one(wires, output):  # noqa: F811
    plan = {"save_every": 2, "total_steps": 6}
    train(wires, steps=6, plan=plan)
    whole = digests(output / "loras")
    for path in (output / "loras").iterdir():
        path.unlink()
    head = train(wires, steps=3, plan=plan)
    assert list(digests(output / "loras")) == ["graft_step000002.safetensors"]
    train(wires, steps=3, plan=plan, state=head.state)
    assert digests(output / "loras") == whole and len(whole) == 3


def test_the_files_are_told_and_listed(wires, output):  # noqa: F811
    import json

    import folder_paths

    outcome = train(wires, steps=4, plan={"save_every": 2})
    rows = (output / "graft" / outcome.run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    saved = [row for row in map(json.loads, rows) if row["kind"] == "saved"]
    assert [(row["step"], row["path"]) for row in saved[:2]] == [
        (2, "loras/graft_step000002.safetensors"),
        (4, "loras/graft_step000004.safetensors"),
    ]
    assert "graft_step000002.safetensors" in folder_paths.get_filename_list("loras")


def test_a_write_that_fails_is_a_warning_and_training_goes_on(wires, output, monkeypatch, caplog):  # noqa: F811
    from graft.host.files import result

    real = result.save_lora

    def full(path, adapter, **more):
        if "step000002" in path.name:
            raise OSError(28, "No space left on device")
        return real(path, adapter, **more)

    plain = train(wires, steps=4)
    monkeypatch.setattr(result, "save_lora", full)
    outcome = train(wires, steps=4, plan={"save_every": 2})
    assert outcome.loss_map == plain.loss_map
    assert list(digests(output / "loras")) == ["graft_step000004.safetensors"]
    assert "The LoRA after step 2 could not be saved: [Errno 28]" in caplog.text


def test_the_report_has_the_epochs(wires, output):  # noqa: F811
    """4 pictures in batches of 2 are 2 steps: 5 steps are two epochs and a half."""
    import json

    outcome = train(wires, steps=5)
    losses = outcome.loss_map["loss"]
    means = [(losses[0] + losses[1]) / 2, (losses[2] + losses[3]) / 2]
    assert f"2 epochs of 2 steps, mean loss {means[0]:.4f}, {means[1]:.4f}\n" in outcome.report
    rows = (output / "graft" / outcome.run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    epochs = [row for row in map(json.loads, rows) if row["kind"] == "epoch"]
    assert [(row["epoch"], row["step"]) for row in epochs] == [(1, 2), (2, 4)]
    assert [row["loss"] for row in epochs] == pytest.approx(means, rel=1e-12)


def test_repeats_make_an_epoch_longer(wires, output):  # noqa: F811
    """4 pictures, each 3 times, in batches of 2 are 6 steps; the node's unit counts the same."""
    import dataclasses
    import json

    from graft.nodes.length import EPOCHS, steps_for
    from tests.host.test_engine import dataset

    data = dataset()
    items = tuple(dataclasses.replace(item, repeats=3) for item in data.items)
    data = dataclasses.replace(data, items=items)
    steps = steps_for(1, EPOCHS, data, 2)
    outcome = train(wires, steps=steps, dataset=data)
    mean = sum(outcome.loss_map["loss"]) / 6
    assert f"1 epoch of 6 steps, mean loss {mean:.4f}\n" in outcome.report
    log = (output / "graft" / outcome.run / "log.jsonl").read_text(encoding="utf-8")
    assert json.loads(log.splitlines()[0])["facts"]["steps per epoch"] == 6
