# SPDX-License-Identifier: Apache-2.0
"""States taken apart and put together: every bit comes back, and what is no state is named."""

import dataclasses
import json
import math

import pytest
import torch

from graft.trainers.optimizers import OPTIMIZERS, Optimizer
from graft.trainers.state import Best, State
from graft.trainers.state_pack import FORMAT, pack, unpack, weights
from tests.trainers.optimizers.test_conformance import HERE
from tests.trainers.test_loop import make


def same(one, other):
    """Whether two values are equal in kind and bits."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if dataclasses.is_dataclass(one):
        names = [field.name for field in dataclasses.fields(one)]
        return all(same(getattr(one, name), getattr(other, name)) for name in names)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(v, other[k]) for k, v in one.items())
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and all(map(same, one, other)) and len(one) == len(other)
    return type(one) is type(other) and one == other


def trained(name="adamw", **settings):
    optimizer = Optimizer(OPTIMIZERS.get(name)(), **settings)
    loop = make(steps=3, optimizer=optimizer)
    loop.run()
    best = Best(2, 0.25, loop.network.tensors())
    rows = ((0, 0.5), (2, 0.1 + 0.2))
    own = {"model": "m", "settings": 's\u00e9t "q"', "best": best, "looked": 2}
    return dataclasses.replace(loop.state(), validation=rows, **own)


@pytest.mark.parametrize("name", HERE)
def test_a_state_comes_back_bit_for_bit(name):
    decay = 0.0 if getattr(OPTIMIZERS.get(name), "averages", False) else 0.9
    state = trained(name, ema_decay=decay)
    tensors, text = pack(state)
    assert same(unpack(tensors, text), state)
    assert same(unpack(dict(reversed(tensors.items())), text), state)
    assert json.loads(text)["format"] == FORMAT


def test_the_smallest_state_and_odd_numbers():
    state = State(0, 1, 2**64 - 1, {}, {}, losses=(1e-45, 0.1, 3e38), record=(((), ()),))
    state = dataclasses.replace(state, optimizer={"a": {"k": math.inf, "on": True, "n": None}})
    assert same(unpack(*pack(state)), state)


def test_steps_without_a_record_keep_their_places():
    rows = (((0.5, 1.0), (0.1, 0.2)), ((), ()), ((2.0,), (0.3,)))
    assert unpack(*pack(State(3, 3, 0, {}, {}, record=rows))).record == rows


def changed(change):
    tensors, text = pack(trained())
    told = json.loads(text)
    change(told, tensors)
    return tensors, json.dumps(told)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda told, tensors: told.update(format=FORMAT + 1), "update Graft"),
        (lambda told, tensors: told.update(format="1"), "not int"),
        (lambda told, tensors: told.pop("state"), "KeyError: 'state'"),
        (lambda told, tensors: told["state"].update(step=True), "not int"),
        (lambda told, tensors: told["state"].update(step=1.5), "not int"),
        (lambda told, tensors: told["state"].update(model=None), "not str"),
        (lambda told, tensors: told["state"].update(optimizer=[1]), "not dict"),
        (lambda told, tensors: told["state"].update(groups={"a": 1}), "not list"),
        (lambda told, tensors: told["state"].update(losses=[0.1]), "not Tensor"),
        (lambda told, tensors: told["state"].update(adapter={"a": 1}), "not Tensor"),
        (lambda told, tensors: told["state"].update(best={"step": 1}), "KeyError"),
        (lambda told, tensors: told["state"]["record"].update(levels={"tensor": "x"}), "KeyError"),
        (lambda told, tensors: tensors.update({"record/pictures": torch.tensor([9])}), "of 9 pict"),
        (lambda told, tensors: tensors.pop("losses"), "KeyError: 'losses'"),
        (lambda told, tensors: told["state"].update(step={"tensor": []}), "TypeError"),
        (
            lambda told, tensors: told["state"]["optimizer"].update({"a\x1b": {}}),
            r"called 'a\\x1b'",
        ),
        (lambda told, tensors: told["state"].update(algorithm="a\nb"), r"called 'a\\nb'"),
        (lambda told, tensors: told.update(format=0), "no version of Graft wrote"),
        (lambda told, tensors: told["state"].update(step=-1), "step is -1"),
        (lambda told, tensors: told["state"].update(step=10**12), "step is 1000000000000"),
        (lambda told, tensors: told["state"].update(seed=2**64), "seed is"),
        (lambda told, tensors: told["state"].update(best=[]), "list indices"),
        (lambda told, tensors: told["state"]["best"].update(tensors={}), "best weights are of"),
        (lambda told, tensors: told["state"].update(groups=[{"names": "ab"}]), "not list"),
        (
            lambda told, tensors: tensors.update(
                validation=torch.tensor([math.inf, 1.0], dtype=torch.float64)
            ),
            "no list of steps",
        ),
        (
            lambda told, tensors: tensors.update(
                validation=torch.tensor([math.nan, 1.0], dtype=torch.float64)
            ),
            "no list of steps",
        ),
        (lambda told, tensors: tensors.update(validation=torch.ones(3).double()), "no list of st"),
        (lambda told, tensors: tensors.update(losses=torch.ones(2, 2).double()), "is no list of"),
        (lambda told, tensors: tensors.update(losses=torch.ones(2)), "is no list of"),
        (
            lambda told, tensors: tensors.update({"record/pictures": torch.tensor([-1, 5])}),
            "less than no pictures",
        ),
    ],
)
def test_what_is_no_state_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        unpack(*changed(change))


@pytest.mark.parametrize("text", ["", "{", "[]", "1", '"state"', "[" * 100_000])
def test_text_that_is_no_state_is_named(text):
    with pytest.raises(ValueError):
        unpack({}, text)


@pytest.mark.parametrize("text", ['{"format":1,"state":[' + "{}," * 600_000, " " * 2**24 + "{}"])
def test_a_text_beyond_all_sense_is_refused_before_it_is_parsed(monkeypatch, text):
    monkeypatch.setattr(json, "loads", lambda text: pytest.fail("it was parsed"))
    with pytest.raises(ValueError, match="members are read"):
        unpack({}, text)


def test_history_may_have_losses_that_are_no_numbers():
    """A validation can overflow where training goes on; only weights have to be numbers."""
    rows, record = ((2, math.nan), (4, math.inf)), (((1.0,), (math.nan,)),)
    state = State(4, 4, 0, {"a": torch.ones(1)}, {}, validation=rows, record=record)
    tensors, text = pack(state)
    assert set(weights(tensors)) == {"adapter/a"}
    assert repr(unpack(tensors, text).validation) == repr(rows)
    assert repr(unpack(tensors, text).record) == repr(record)


def test_what_a_file_cannot_hold_is_refused():
    with pytest.raises(TypeError, match="optimizer/a/f is function"):
        pack(State(0, 1, 0, {}, {"a": {"f": test_what_a_file_cannot_hold_is_refused}}))
    with pytest.raises(TypeError, match="a member called tensor"):
        pack(State(0, 1, 0, {}, {"a": {"tensor": 1}}))
