# SPDX-License-Identifier: Apache-2.0
"""What optimizers keep: a state of theirs is taken, and one of another form is refused before a step."""

import dataclasses

import pytest
import torch

from graft.trainers.optimizer_form import check_kept
from graft.trainers.optimizers import OPTIMIZERS, Optimizer
from tests.trainers.optimizers.test_conformance import HERE
from tests.trainers.test_loop import make


def stepped(name):
    optimizer = Optimizer(OPTIMIZERS.get(name)())
    loop = make(steps=2, optimizer=optimizer)
    loop.run()
    return loop.state(), make(steps=2, optimizer=optimizer)


def of(values):
    """The name and key of one tensor that has sides."""
    return next(
        (name, key)
        for name, kept in values.items()
        for key, value in kept.items()
        if isinstance(value, torch.Tensor) and value.ndim
    )


@pytest.mark.parametrize("name", HERE)
def test_what_an_optimizer_kept_is_taken(name):
    state, loop = stepped(name)
    loop.resume(state)
    loop.run()
    assert loop.step == 4


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("harm", ["shape", "kind", "text", "absent", "more"])
def test_another_form_is_refused_by_name(name, harm):
    state, loop = stepped(name)
    kept = {owner: dict(values) for owner, values in state.optimizer.items()}
    owner, key = of(kept)
    if harm == "shape":
        kept[owner][key] = torch.zeros(*kept[owner][key].shape, 2)
    elif harm == "kind":
        kept[owner][key] = kept[owner][key].long()
    elif harm == "text":
        kept[owner][key] = "much"
    elif harm == "absent":
        kept[owner]["other"] = kept[owner].pop(key)
    else:
        kept[owner]["more"] = 1
    before = {n: p.detach().clone() for n, p in loop.parameters.items()}
    with pytest.raises(ValueError, match=rf"The state's optimizer .*{owner}"):
        loop.stepper.load(dataclasses.replace(state, optimizer=kept))
    assert all(torch.equal(p, before[n]) for n, p in loop.parameters.items())


@pytest.mark.parametrize("value", [-5, float("nan"), 10**400, True, None])
def test_a_count_beyond_reason_is_refused(value):
    state, loop = stepped("schedule-free-adamw")
    kept = {owner: {**values, "t": value} for owner, values in state.optimizer.items()}
    with pytest.raises(ValueError, match="The state's optimizer"):
        loop.stepper.load(dataclasses.replace(state, optimizer=kept))


@pytest.mark.parametrize("value", ["x", None, float("inf"), [1.0]])
def test_a_running_number_of_a_group_has_to_be_one(value):
    state, loop = stepped("prodigy")
    groups = tuple({**group, "d": value} for group in state.groups)
    assert groups
    with pytest.raises(ValueError, match="no number in reason as d:"):
        loop.stepper.load(dataclasses.replace(state, groups=groups))


def test_the_forms_are_those_of_the_documentation():
    """torch.optim.Adam: exp_avg and exp_avg_sq of the parameter's shape, step without sides."""
    parameter = torch.nn.Parameter(torch.ones(3, 2))
    good = {"step": torch.tensor(1.0), "exp_avg": torch.ones(3, 2), "exp_avg_sq": torch.ones(3, 2)}
    adamw = OPTIMIZERS.get("adamw")()
    check_kept(adamw, {"w": parameter}, {"w": good, "other": good})
    check_kept(adamw, {"w": parameter}, {"w": {}})
    with pytest.raises(ValueError, match=r"shape \[2, 3\] as exp_avg of w, .* shape \[3, 2\]"):
        check_kept(adamw, {"w": parameter}, {"w": good | {"exp_avg": torch.ones(2, 3)}})
