# SPDX-License-Identifier: Apache-2.0
"""A run that was cut off goes on where it was, and ends as the whole one would have."""

import dataclasses
import errno

import pytest
import torch

from tests.host import options

pytestmark = pytest.mark.comfy


@pytest.fixture
def output(comfy, tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return tmp_path


@pytest.fixture
def request_of(output):
    """Requests of one run; ``plan`` values that it shall have."""
    from graft.host import engine
    from graft.trainers.objectives import Objective
    from graft.trainers.plan import Plan

    with torch.inference_mode():
        from tests.host import tiny

        wires = tiny.model("sdxl"), options.varied(), tiny.kl_vae(), tiny.clip("sdxl")

    def make(**plan):
        settings = {"steps": 6, "batch_size": 2, "validate_every": 2, **plan}
        return engine.Request(*wires, objective=Objective(preserve=0.0), plan=Plan(**settings))

    return make


class Cut(RuntimeError):
    """What ends a run in a test."""


def cut_after(monkeypatch, steps, error=Cut):
    """The run fails when it begins the step after ``steps``, once."""
    from graft.trainers.loop import Loop

    real = Loop._accumulate

    def fail(loop):
        if loop.step == steps:
            monkeypatch.setattr(Loop, "_accumulate", real)
            raise error("the power went")
        return real(loop)

    monkeypatch.setattr(Loop, "_accumulate", fail)


def train(request):
    from graft.host import engine

    with torch.inference_mode():
        return engine.train(request)


def states(output):
    return sorted(path.name for path in output.rglob("*.state.safetensors"))


@pytest.mark.parametrize("cut", [1, 5])
def test_a_run_that_failed_goes_on_and_equals_the_whole_one(request_of, output, monkeypatch, cut):
    whole = train(request_of())
    assert states(output) == []
    cut_after(monkeypatch, cut)
    with pytest.raises(Cut, match="kept in .*Run it again unchanged, and it goes on"):
        train(request_of())
    assert states(output) == [f"step_{cut:06}.state.safetensors"]
    again = train(request_of())
    assert options.same(again, whole)
    assert states(output) == []
    kept = (again.adapter.metadata, again.state.validation, again.state.total_steps)
    assert kept == (whole.adapter.metadata, whole.state.validation, whole.state.total_steps)


def test_a_run_cut_off_after_its_last_step_hands_over_its_last_pictures(
    request_of, output, monkeypatch
):
    from graft.host.files import result
    from graft.trainers.preview import Preview

    shown = {"preview": Preview(("a zork",), steps=1, every=3, at_start=False)}
    whole = train(dataclasses.replace(request_of(), **shown))
    real, calls = result.apply_both, []

    def fail(*args):
        calls.append(1)
        if len(calls) == 1:
            raise Cut("the power went")
        return real(*args)

    with monkeypatch.context() as patched:
        patched.setattr(result, "apply_both", fail)
        with pytest.raises(Cut, match="after 6 steps is kept in .* goes on from there"):
            train(dataclasses.replace(request_of(), **shown))
    again = train(dataclasses.replace(request_of(), **shown))
    assert options.same(again, whole)
    assert torch.equal(again.images, whole.images)


def test_a_run_that_fell_apart_is_not_told_to_do_so_again(request_of, output, monkeypatch):
    from graft.trainers.loop import Diverged

    for _ in range(2):
        cut_after(monkeypatch, 3, Diverged)
        with pytest.raises(
            Diverged, match="kept in .*Load Training State has .*step_000003"
        ) as told:
            train(request_of())
        assert "unchanged" not in str(told.value)


def test_who_starts_fresh_is_told_how_to_go_on(request_of, output, monkeypatch):
    cut_after(monkeypatch, 2)
    with pytest.raises(Cut, match="With when_found 'continue' the same run goes on"):
        train(request_of(when_found="start fresh"))


def test_other_settings_begin_anew_and_what_changes_nothing_does_not(
    request_of, output, monkeypatch
):
    cut_after(monkeypatch, 4)
    with pytest.raises(Cut):
        train(request_of())
    assert len(train(request_of(steps=5)).loss_map["loss"]) == 5
    assert len(states(output)) == 1
    seen = []
    watch(monkeypatch, seen)
    train(request_of(autosave_minutes=3.0, keep_states=1))
    assert seen == [4, 5]


def watch(monkeypatch, seen):
    """Note the steps that are trained, from 0."""
    from graft.trainers.loop import Loop

    real = Loop._accumulate

    def note(loop):
        seen.append(loop.step)
        return real(loop)

    monkeypatch.setattr(Loop, "_accumulate", note)


def test_a_user_may_start_fresh(request_of, output, monkeypatch):
    cut_after(monkeypatch, 4)
    with pytest.raises(Cut):
        train(request_of())
    seen = []
    watch(monkeypatch, seen)
    train(request_of(when_found="start fresh"))
    assert seen == [0, 1, 2, 3, 4, 5]
    assert states(output) == []


def test_a_part_of_a_plan_goes_on_too(request_of, output, monkeypatch):
    """3 + 3 of 6 steps, the second part cut off after one of its steps."""
    whole = train(request_of())
    head = train(request_of(steps=3, total_steps=6))
    part = dataclasses.replace(request_of(steps=3, total_steps=6), state=head.state)
    cut_after(monkeypatch, 4)
    with pytest.raises(Cut):
        train(part)
    tail = train(part)
    assert tail.loss_map["loss"] == whole.loss_map["loss"]
    assert all(torch.equal(v, tail.lora_model[k]) for k, v in whole.lora_model.items())


def test_parts_of_other_states_are_other_runs(request_of, output):
    from graft.host.runs.identity import begun

    state = train(request_of(steps=3, total_steps=6)).state
    other = {name: tensor + 1 for name, tensor in state.adapter.items()}
    assert begun(state) != begun(dataclasses.replace(state, adapter=other))


def test_states_are_written_by_steps_and_the_last_ones_kept(request_of, output, monkeypatch):
    cut_after(monkeypatch, 5)
    with pytest.raises(Cut):
        train(request_of(autosave_every=2, keep_states=2))
    assert states(output) == ["step_000004.state.safetensors", "step_000005.state.safetensors"]


def test_a_broken_state_is_told_and_the_one_before_it_taken(request_of, output, monkeypatch):
    whole = train(request_of())
    cut_after(monkeypatch, 5)
    with pytest.raises(Cut):
        train(request_of(autosave_every=2))
    (newest,) = output.rglob("step_000005.state.safetensors")
    newest.write_bytes(newest.read_bytes()[:-9])
    seen = []
    watch(monkeypatch, seen)
    again = train(request_of())
    assert seen == [4, 5] and options.same(again, whole)


def test_minutes_count_from_the_last_one(comfy, tmp_path):
    from graft.host.runs.autosave import Autosave
    from graft.trainers.plan import Plan
    from graft.trainers.state import State

    now = [0.0]
    autosave = Autosave(tmp_path, Plan(autosave_minutes=0.5), lambda: now[0])
    due = []
    for step in range(10):
        now[0] += 12
        if autosave.is_due(step):
            autosave.save(State(step, 10, 0, {}, {}), lambda event: None)
            due.append(step)
    assert due == [2, 5, 8]
    assert not Autosave(tmp_path, Plan(autosave_minutes=0.0), lambda: 1e9).is_due(5)


def test_a_full_disk_is_a_warning_and_leaves_the_older_state(
    request_of, output, monkeypatch, tmp_path
):
    from graft.host.runs.autosave import Autosave
    from graft.loaders import lora_file
    from graft.trainers.plan import Plan
    from graft.trainers.state import State

    autosave, told = Autosave(tmp_path, Plan(keep_states=1)), []
    good = State(1, 10, 0, {"a": torch.zeros(2)}, {})
    monkeypatch.setattr("graft.host.files.paths.relative_to_output", lambda path: path.name)
    assert autosave.save(good, told.append) == "step_000001.state.safetensors"

    def full(path, tensors, metadata):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lora_file, "write", full)
    assert autosave.save(dataclasses.replace(good, step=2), told.append) == ""
    assert "No space left" in told[-1].text
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [
        "step_000001.state.safetensors"
    ]
    assert autosave.found(told.append).step == 1


def test_weights_that_are_no_numbers_replace_no_state(output, tmp_path):
    from graft.host.runs.autosave import Autosave
    from graft.trainers.plan import Plan
    from graft.trainers.state import State

    autosave = Autosave(tmp_path, Plan(keep_states=1))
    nan = State(2, 10, 0, {"a": torch.tensor([float("nan")])}, {})
    assert autosave.save(nan, lambda event: None) == ""
    assert states(tmp_path) == []
