# SPDX-License-Identifier: Apache-2.0
"""A full disk at each write: nothing is seen half-written, and what was trained is not lost."""

import dataclasses
import os
import shutil
import stat
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT
from tests.host import full_disk
from tests.host.test_engine import output, request, wires  # noqa: F401

pytestmark = pytest.mark.comfy
# Every kind of file that a run writes, by its name below the output folder, and what is said when one cannot be.
FILES = {
    r"^loras/disk_step": "The LoRA after step 2 could not be saved",
    r"^graft/\w+/disk.safetensors": "as its own folder could not be used",
    r"^graft/\w+/disk_raw": "disk_raw could not be saved",
    r"^graft/\w+/step_\d+.state": "The state after step 2 could not be saved",
    r"^graft/\w+/samples/.*png": "The pictures after step 0 could not be saved",
    r"^graft/\w+/log.jsonl": "log.jsonl is left out from here on",
    r"^graft/\w+/run.json": "run.json is left out from here on",
    r"^graft/cache/latents/": "No space left on device",
    r"^graft/cache/texts/": "No space left on device",
    r"^graft/cache/priors/": "No space left on device",
    r"^graft/cache/files/": "Which pictures are known could not be kept",
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two pictures that have not changed for long, so that their digests are kept."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    for i in range(2):
        Image.new("RGB", (64, 64), (80 * i, 10, 10)).save(folder / f"{i}.png")
        os.utime(folder / f"{i}.png", (1.5e9, 1.5e9))
    return folder


@pytest.fixture
def asked(wires, pictures):  # noqa: F811
    """A run that writes every kind of file; its previews have one picture."""
    from graft.trainers.data import Dataset, Item
    from graft.trainers.objectives import Objective
    from graft.trainers.optimizers import Optimizer
    from graft.trainers.optimizers.adamw import AdamW
    from graft.trainers.preview import Preview

    items = [Item("a zork", path=str(path)) for path in sorted(pictures.iterdir())]
    return request(
        wires,
        plan={"batch_size": 1, "save_every": 2, "autosave_every": 2},
        steps=3,
        dataset=Dataset(tuple(items), trigger="zork"),
        objective=Objective(preserve=1.0, preserve_prompts=("a cat",)),
        optimizer=Optimizer(AdamW(1e-3), ema_decay=0.5),
        preview=Preview(("a zork",), steps=1, every=2),
        name="disk",
    )


@pytest.fixture
def heard(monkeypatch):
    """The texts of warnings and of the end, as the log and the browser get them."""
    from graft.host.runs import progress
    from graft.trainers.events import Ended, Warned

    said, real = [], progress.RunSink._tell

    def hear(sink, event):
        if isinstance(event, (Warned, Ended)):
            said.append(event.text)
        real(sink, event)

    monkeypatch.setattr(progress.RunSink, "_tell", hear)
    return said


def train(asked):
    from graft.host import engine

    with torch.inference_mode():
        return engine.train(asked)


@pytest.fixture(scope="module")
def runs():
    """What was found of the run without a fault."""
    return {}


@pytest.fixture
def whole(asked, output, monkeypatch, runs):  # noqa: F811
    """The run without a fault: what it wrote, and its outcome; the output folder is empty."""
    if "whole" not in runs:
        runs["whole"] = _whole(asked, output, monkeypatch)
    return runs["whole"]


def _whole(asked, output, monkeypatch):  # noqa: F811
    with full_disk.Disk(output).patch(monkeypatch) as disk:
        outcome = train(asked)
    assert not full_disk.damaged(output)
    empty(output)
    return disk, outcome


def empty(folder):
    for path in folder.iterdir():
        shutil.rmtree(path)


def same(one, other):
    return one.loss_map == other.loss_map and all(
        torch.equal(value, other.lora_model[key]) for key, value in one.lora_model.items()
    )


def test_the_list_of_files_is_complete(whole):
    """A new kind of file has to be put into the list above."""
    disk, _ = whole
    unknown = [n for n in disk.names if not any(full_disk.re.search(kind, n) for kind in FILES)]
    assert not [
        n for n in unknown if not n.endswith(".tmp")
    ]  # those probe the folders before a run
    assert len([n for n in unknown if n.endswith(".tmp")]) == 2
    for kind in FILES:
        assert disk.number_of(kind) >= 0


QUICK = (r"^graft/\w+/disk.safetensors", r"^graft/\w+/log.jsonl", r"^graft/cache/latents/")


def cases():
    """Every kind of file with every fault; few of them in the quick tests."""
    for kind in FILES:
        for fault in full_disk.FAULTS:
            in_place = (
                kind.endswith("jsonl") or "cache" in kind
            )  # the cache may lose a file, it has a checksum
            if fault in ("write", "half") or not in_place:
                is_quick = fault == "half" and kind in QUICK
                yield pytest.param(kind, fault, marks=() if is_quick else pytest.mark.slow)


@pytest.mark.parametrize(("kind", "fault"), list(cases()))
def test_a_file_that_cannot_be_written_costs_nothing_else(
    whole,
    asked,
    output,  # noqa: F811
    monkeypatch,
    heard,
    caplog,
    kind,
    fault,
):
    watched, wanted = whole
    number = watched.number_of(kind)
    size = watched.sizes[number]
    with full_disk.Disk(output, number, fault, size).patch(monkeypatch) as disk:
        outcome = train(asked)
    assert disk.hit
    assert not full_disk.damaged(output)
    assert same(outcome, wanted)
    told = [*heard, *(record.getMessage() for record in caplog.records)]
    assert any(FILES[kind] in one for one in told), told
    assert sum(FILES[kind] in one for one in heard[:-1]) <= 1, heard
    assert "kept in output/" in outcome.report


@pytest.mark.parametrize("first", ["the first step", "the end"])
def test_a_disk_that_stays_full_leaves_the_outputs(
    whole,
    asked,
    output,  # noqa: F811
    monkeypatch,
    heard,
    first,
):
    watched, wanted = whole
    kind = r"log.jsonl" if first == "the first step" else r"disk.safetensors"
    number = watched.number_of(kind)
    with full_disk.Disk(output, number, "write", stays=True).patch(monkeypatch):
        outcome = train(asked)
    assert not full_disk.damaged(output)
    assert same(outcome, wanted)
    assert "NOT on disk (" in outcome.report and "still in memory" in outcome.report
    assert (
        sum("NOT on disk" in text for text in heard) == 2
    )  # the warning, and the report at the end
    kept = list(output.rglob("*.state.safetensors"))
    assert len(kept) == (0 if first == "the first step" else 1), "the state is all that is on disk"


def test_the_lora_is_saved_from_the_wire_when_there_is_room_again(
    whole,
    asked,
    output,  # noqa: F811
    monkeypatch,
):
    from graft.host.files import paths, result

    watched, wanted = whole
    with full_disk.Disk(output, 3, "write", stays=True).patch(monkeypatch):
        outcome = train(asked)
        with pytest.raises(OSError, match="No space left on the disk of '.*loras'; make room"):
            result.save_lora(paths.loras_folder() / "later.safetensors", outcome.adapter)
    assert not full_disk.damaged(output)
    saved = result.save_lora(paths.loras_folder() / "later.safetensors", outcome.adapter)
    assert result.self_check(saved, asked.model).complete


@pytest.mark.parametrize("fault", full_disk.FAULTS)
def test_saving_from_the_wire_is_whole_or_not_at_all(output, monkeypatch, fault):  # noqa: F811
    """Save LoRA, Save Training State and the pictures of a class."""
    from graft.adapters.file import AdapterFile
    from graft.host.data import class_images
    from graft.host.files import paths, result, states
    from graft.trainers.state import State

    tensors = {"a.lora_up.weight": torch.rand(64, 64)}
    lora = AdapterFile(tensors, {"graft.format": "1"}, "one")
    state = State(1, 2, 0, tensors, {"a": {"step": torch.ones(1)}})
    folder = paths.class_folder("cats")
    actions = {
        "lora": lambda: result.save_lora(paths.loras_folder() / "one.safetensors", lora),
        "state": lambda: states.save(states.states_folder(), "one", state),
        "picture": lambda: class_images._write(folder / "one", torch.rand(64, 64, 3), "a cat"),
    }
    for action in actions.values():
        empty(output)
        folder.mkdir(parents=True)
        with full_disk.Disk(output).patch(monkeypatch) as watched:
            action()
        for number, size in enumerate(watched.sizes):
            empty(output)
            folder.mkdir(parents=True)
            with (
                full_disk.Disk(output, number, fault, size).patch(monkeypatch) as disk,
                pytest.raises(OSError, match="No space left on the disk of"),
            ):
                action()
            assert disk.hit and not full_disk.damaged(output)


def test_an_older_file_stays_when_a_new_one_cannot_be_written(output, monkeypatch):  # noqa: F811
    from graft.host.files import paths

    path = output / "kept.txt"
    path.write_text("old")
    for fault in full_disk.FAULTS:
        with (
            full_disk.Disk(output, 0, fault, 3).patch(monkeypatch),
            pytest.raises(OSError, match="No space left"),
        ):
            paths.atomic_write(path, lambda file: file.write_text("new") and None)
        assert path.read_text() == "old" and len(list(output.iterdir())) == 1


def test_a_run_folder_that_is_deleted_in_mid_run_is_made_anew(asked, output, monkeypatch, heard):  # noqa: F811
    from graft.trainers.loop import Loop

    real, wanted = Loop._update, train(asked)
    empty(output)

    def delete(loop):
        if loop.step == 1:
            for path in (output / "graft").iterdir():
                shutil.rmtree(path)
        return real(loop)

    monkeypatch.setattr(Loop, "_update", delete)
    outcome = train(dataclasses.replace(asked, plan=dataclasses.replace(asked.plan, keep_states=1)))
    assert same(outcome, wanted)
    assert not full_disk.damaged(output)
    there = {path.name for path in (output / "graft" / outcome.run).iterdir()}
    assert there == {"disk.safetensors", "disk_raw.safetensors", "samples", "log.jsonl", "run.json"}
    rows = (output / "graft" / outcome.run / "log.jsonl").read_text().splitlines()
    assert '"kind": "progress", "step": 2' in "".join(rows) and '"ended"' in rows[-1]


def test_a_folder_that_becomes_read_only_is_named_and_another_one_taken(
    asked,
    output,  # noqa: F811
    monkeypatch,
    heard,
):
    """Permissions do not stop the administrator, so the folder's file system says no in its place."""
    from graft.host.files import result

    real = result.save_lora

    def save(path, *args, **kwargs):
        if path.parent.parent.name == "graft":
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(result, "save_lora", save)
    outcome = train(asked)
    assert (
        "kept in output/loras/disk.safetensors, as its own folder could not be used"
        in outcome.report
    )
    assert (output / "loras" / "disk.safetensors").is_file()
    assert not list(output.rglob("*.state.safetensors"))


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are others there")
@pytest.mark.skipif(getattr(os, "geteuid", int)() == 0, reason="the administrator may write anyway")
def test_a_read_only_folder_is_refused_before_a_run(asked, output):  # noqa: F811
    output.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(PermissionError, match="cannot be written .*--output-directory"):
            train(asked)
    finally:
        output.chmod(stat.S_IRWXU)


@pytest.mark.slow
def test_a_read_only_file_system_is_refused_before_a_run(asked, output):  # noqa: F811
    """It stops the administrator, too."""
    command = ["mount", "-t", "tmpfs", "-o", "ro,size=64k", "tmpfs", str(output)]
    if sys.platform == "win32" or subprocess.run(command, check=False).returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        with pytest.raises(PermissionError, match="cannot be written .*--output-directory"):
            train(asked)
    finally:
        subprocess.run(["umount", str(output)], check=True)


LIMITED = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from tests.host import inprocess
inprocess.start()
import folder_paths, torch
folder_paths.output_directory = sys.argv[2]
from graft.host import engine
from tests.host import test_engine, tiny
torch.set_num_threads(1)
with torch.inference_mode():
    wires = {"sdxl": tiny.model("sdxl"), "vae_sdxl": tiny.vae("sdxl"), "clip_sdxl": tiny.clip("sdxl")}
    request = test_engine.request(wires, steps=2, plan={"autosave_every": 1, "save_every": 1})
    if sys.argv[3] != "0":
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
    print(engine.train(request).report.replace(chr(10), " "))
"""


def limited(output, limit):  # noqa: F811
    command = [sys.executable, "-c", LIMITED, str(ROOT), str(output), str(limit)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there are no limits of that kind")
def test_the_systems_own_limit_leaves_the_outputs(comfy, tmp_path):
    """Files of more than 16 KiB cannot be written: what the kernel does, not what a test thinks that it does."""
    said = limited(tmp_path, 16 * 1024)
    assert "NOT on disk ([Errno 27] No space left on the disk of" in said
    assert "tensors applied" in said
    assert not full_disk.damaged(tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert list(tmp_path.rglob("log.jsonl"))


@pytest.mark.slow
def test_a_small_disk_that_fills_up_leaves_the_outputs(comfy, tmp_path):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], check=False
    )
    if mounted.returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        said = limited(tmp_path, 0)
        assert "NOT on disk (" in said and "No space left on the disk of" in said
        assert not full_disk.damaged(tmp_path)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
