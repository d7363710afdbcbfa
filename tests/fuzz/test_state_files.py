# SPDX-License-Identifier: Apache-2.0
"""State files with anything in their text and tensors, and the checksum that is right for it; then a step with them."""

import json

import pytest
import torch
from hypothesis import strategies as st

from graft.trainers.optimizers import OPTIMIZERS, Optimizer
from graft.trainers.state_pack import pack
from tests.fuzz.fuzzing import fuzz, tiers
from tests.trainers.test_loop import make
from tests.trainers.test_state_pack import trained

pytestmark = pytest.mark.comfy
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        [-1, 0, 2**31, 2**63, 2**64, 10**30, 1e308, "NaN", {"tensor": "losses"}, {"tensor": []}]
    ),
    st.sampled_from([[], {}, [[]], [None], {"tensor": {}}, {"names": []}]),
)
TENSORS = st.sampled_from(
    [
        torch.zeros(0),
        torch.zeros(()),
        torch.ones(3),
        torch.ones(2, 2, dtype=torch.int64),
        torch.tensor([float("nan")]),
        torch.tensor([-1, 2**62]),
        torch.tensor([True]),
        torch.tensor([1e300, -1e300], dtype=torch.float64),
        torch.ones(4, dtype=torch.float8_e4m3fn),
        torch.tensor(float("inf")),
    ]
)
NAMES = ("adamw", "prodigy", "schedule-free-adamw", "adafactor")


def places(tree, path=()):
    """The path of everything in a tree."""
    yield path
    items = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for key, inner in items:
        yield from places(inner, (*path, key))


def changed(draw, tree):
    """A tree in which one thing is otherwise."""
    path = draw(st.sampled_from(sorted(places(tree), key=lambda p: (len(p), str(p)))))
    if not path:
        return draw(LEAVES)
    made = json.loads(json.dumps(tree))
    owner = made
    for key in path[:-1]:
        owner = owner[key]
    harm = draw(st.sampled_from(["value", "remove", "deep", "more"]))
    if harm == "remove":
        del owner[path[-1]]
    elif harm == "more" and isinstance(owner[path[-1]], dict):
        owner[path[-1]][draw(st.text(max_size=5))] = draw(LEAVES)
    elif harm == "deep":
        owner[path[-1]] = [[owner[path[-1]]]]
    else:
        owner[path[-1]] = draw(LEAVES)
    return made


@tiers(60, 2000)
def test_any_state(comfy, tmp_path, cases):
    from graft.host.files import states
    from graft.loaders import lora_file

    known = {name: pack(trained(name, ema_decay=0.0 if "free" in name else 0.9)) for name in NAMES}

    @st.composite
    def files(draw):
        name = draw(st.sampled_from(NAMES))
        tensors, text = known[name]
        tree, tensors = json.loads(text), dict(tensors)
        for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2, 4]))):
            if draw(st.booleans()):
                tree = changed(draw, tree)
            else:
                key = draw(st.sampled_from(sorted(tensors)))
                tensors[key] = draw(TENSORS)
                if draw(st.integers(0, 9)) == 0:
                    del tensors[key]
        text = json.dumps(tree)
        if draw(st.integers(0, 19)) == 0:
            at = draw(st.integers(0, len(text)))
            text = text[:at] + draw(st.text(max_size=3)) + text[at + 1 :]
        return name, tensors, text

    path = tmp_path / "x.state.safetensors"

    def check(given):
        name, tensors, text = given
        try:
            metadata = {states._STATE: text, states._CHECKSUM: states._checksum(tensors, text)}
            lora_file.write(path, tensors, metadata)
        except (ValueError, UnicodeError):  # nothing of the kind can be in a file
            return
        state = states.load(path)
        average = 0.0 if "free" in name else 0.9
        loop = make(
            steps=1, optimizer=Optimizer(OPTIMIZERS.get(name)(), ema_decay=average), seed=state.seed
        )
        loop.network.take_alphas(state.adapter)
        loop.resume(state)
        if state.step < 10:
            loop.monitor = lambda event: True
            loop.run()

    taken, refused = fuzz(cases, files(), check)
    assert taken and refused
