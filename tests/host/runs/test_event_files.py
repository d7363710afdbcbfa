# SPDX-License-Identifier: Apache-2.0
"""TensorBoard: what is written by name and step, off without the package, and never the end of a run."""

import importlib.util
import logging

import pytest

from graft.trainers.events import Ended, Epoch, Started, Validated, Warned
from tests.host.runs.test_progress import RUN, World, log_rows, world  # noqa: F401 - a fixture
from tests.host.test_engine import output, train, wires  # noqa: F401 - fixtures

pytestmark = pytest.mark.comfy
needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="tensorboard is optional"
)


class Writer:
    """Stands in for SummaryWriter."""

    made: list["Writer"] = []

    def __init__(self, folder, step):
        self.folder, self.first, self.rows, self.is_closed = folder, step, [], False
        Writer.made.append(self)

    def add_scalar(self, name, value, step):
        assert not self.is_closed
        self.rows.append((name, step, value))

    def close(self):
        self.is_closed = True


@pytest.fixture
def writers(monkeypatch):
    from graft.host.runs import event_files

    monkeypatch.setattr(Writer, "made", [])
    monkeypatch.setattr(event_files, "is_installed", lambda: True)
    monkeypatch.setattr(event_files, "open_writer", Writer)
    return Writer.made


def whole_run(world, steps=3):  # noqa: F811
    sink = world.sink(steps)
    sink(Started(steps))
    for step in range(1, steps + 1):
        if step == 2:
            sink(Epoch(1, 2, 0.75))
        world.step(sink, step, total=steps, loss=1.0 / step)
    sink(Validated(3, 0.5, ((1.0, 0.5),)))
    sink(Validated(3, 0.25, ((1.0, 0.25),), weights="averaged"))
    sink(Warned("nothing to draw"))
    sink(Ended("done"))


def test_every_number_has_its_name_and_step(world, writers):  # noqa: F811
    from graft.host.files import paths

    whole_run(world)
    (writer,) = writers
    assert writer.folder == paths.run_folder(RUN) and writer.first == 0 and writer.is_closed
    of = {name: [row[1:] for row in writer.rows if row[0] == name] for name, *_ in writer.rows}
    assert of == {
        "train/loss": [(1, 1.0), (2, 0.5), (3, 1.0 / 3)],
        "train/learning_rate": [(1, 1e-4), (2, 1e-4), (3, 1e-4)],
        "train/gradient_norm": [(1, 1.0), (2, 1.0), (3, 1.0)],
        "train/seconds_per_step": [(1, 0.05), (2, 0.05), (3, 0.05)],
        "train/epoch_loss": [(2, 0.75)],
        "validation/loss": [(3, 0.5)],
        "validation/loss_averaged": [(3, 0.25)],
    }


def test_an_epoch_is_a_line_of_the_log_and_no_message(world, writers):  # noqa: F811
    whole_run(world)
    (row,) = [row for row in log_rows() if row["kind"] == "epoch"]
    assert (row["epoch"], row["step"], row["loss"]) == (1, 2, 0.75)
    assert "epoch" not in {message["kind"] for _, message in world.server.messages}


def test_without_the_package_nothing_is_imported_and_nothing_said(world, monkeypatch, caplog):  # noqa: F811
    from graft.host.runs import event_files

    def never(*args):
        raise AssertionError("opened without the package")

    monkeypatch.setattr(event_files.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(event_files, "open_writer", never)
    with caplog.at_level(logging.WARNING):
        whole_run(world)
    assert "TensorBoard" not in caplog.text and len(log_rows()) == 9


@pytest.mark.parametrize("where", ["open", "write", "close"])
def test_a_broken_writer_is_one_warning(world, writers, monkeypatch, caplog, where):  # noqa: F811
    from graft.host.runs import event_files

    def broken(*args, **kwargs):
        raise OSError(28, "No space left on device")

    if where == "open":
        monkeypatch.setattr(event_files, "open_writer", broken)
    else:
        monkeypatch.setattr(Writer, "add_scalar" if where == "write" else "close", broken)
    with caplog.at_level(logging.WARNING):
        whole_run(world)
    said = [r.getMessage() for r in caplog.records if "TensorBoard" in r.getMessage()]
    assert said == ["TensorBoard is left out from here on: [Errno 28] No space left on device"]
    assert len(log_rows()) == 9
    if where == "write":
        assert writers[0].is_closed  # it has a thread and an open file


@needs_tensorboard
def test_the_real_writer_is_read_back_by_tensorboard(world):  # noqa: F811
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from graft.host.files import paths

    for _ in range(2):  # the second run of the same id takes the place of the first one
        whole_run(world)
    read = EventAccumulator(str(paths.run_folder(RUN)))
    read.Reload()
    assert [(e.step, e.value) for e in read.Scalars("train/loss")] == [
        (1, 1.0),
        (2, 0.5),
        (3, pytest.approx(1 / 3)),
    ]
    assert [(e.step, e.value) for e in read.Scalars("train/epoch_loss")] == [(2, 0.75)]
    assert [(e.step, e.value) for e in read.Scalars("validation/loss_averaged")] == [(3, 0.25)]


@needs_tensorboard
def test_a_training_is_read_back_by_tensorboard(wires, output):  # noqa: F811
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    outcome = train(wires, steps=4)
    read = EventAccumulator(str(output / "graft" / outcome.run))
    read.Reload()
    losses = outcome.loss_map["loss"]
    assert [e.value for e in read.Scalars("train/loss")] == pytest.approx(losses, rel=1e-6)
    means = [(losses[0] + losses[1]) / 2, (losses[2] + losses[3]) / 2]
    assert [e.value for e in read.Scalars("train/epoch_loss")] == pytest.approx(means, rel=1e-6)
    assert [e.step for e in read.Scalars("train/epoch_loss")] == [2, 4]
