# SPDX-License-Identifier: Apache-2.0
"""What is noted of the pictures of a run."""

import pytest
import torch

from graft.trainers.record import Record
from tests.trainers.test_loop import make


def test_steps_are_rows_and_a_step_that_failed_is_forgotten():
    record = Record(steps=1)
    record.begin()
    record.note(torch.tensor([9.0]), torch.tensor([9.0]))
    record.begin()
    record.note(torch.tensor([0.5, 1.0]), torch.tensor([0.25, 4.0], requires_grad=True))
    record.note(torch.tensor([2.0]), torch.tensor([8.0]))
    record.end()
    assert record.columns() == {
        "sigma": [[], [0.5, 1.0, 2.0]],
        "sample_loss": [[], [0.25, 4.0, 8.0]],
    }


def test_a_run_notes_every_picture_and_the_mean_is_its_loss():
    loop = make(steps=3, batch=2, accumulate=2, preserve=0.0)
    loop.run()
    for loss, (levels, losses) in zip(loop.losses, loop.record.rows, strict=True):
        assert len(levels) == len(losses) == 4
        assert loss == pytest.approx(sum(losses) / 4, rel=1e-5)
    assert set(loop.record.rows[0][0]) <= set(loop.denoiser.sigmas.tolist())


def test_pictures_to_stay_as_they_are_are_not_noted():
    loop = make(steps=1, batch=2, accumulate=2, preserve=1.0)
    loop.run()
    assert len(loop.record.rows[0][0]) == 4


def test_a_run_that_goes_on_has_the_record_of_both():
    whole, head, tail = make(steps=4), make(steps=2, total_steps=4), make(steps=2, total_steps=4)
    whole.run()
    head.run()
    tail.resume(head.state())
    tail.run()
    assert tail.record.rows == whole.record.rows
