# SPDX-License-Identifier: Apache-2.0
"""MODEL patches that are no weights are part of what a run is known by, the same in every process."""

import functools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.conftest import ROOT
from tests.host import patched

pytestmark = pytest.mark.comfy
each = pytest.mark.parametrize("name", sorted(patched.NODES))


@pytest.fixture(scope="module")
def model():
    from tests.host import tiny

    with torch.inference_mode():
        return tiny.model("sdxl")


@pytest.fixture(scope="module")
def digest():
    from graft.host.runs import identity

    return identity.model_digest


def test_every_node_gives_a_digest_of_its_own(model):
    found = patched.digests(model)
    assert len(set(found.values())) == len(patched.NODES) + 1


@each
def test_equal_settings_are_equal_and_another_one_is_not(model, digest, name):
    one = digest(patched.patched(name, model))
    assert digest(patched.patched(name, model)) == one
    assert digest(patched.patched(name, model, is_other=True)) != one


@each
def test_sampling_changes_nothing(model, digest, name):
    from tests.host import tiny

    wire = patched.patched(name, model)
    before, base = digest(wire), digest(model)
    tiny.sample(wire, "sdxl")
    assert digest(wire) == before
    assert digest(model) == base, "also while the other is loaded"


def test_a_new_process_gives_the_same_digests(model):
    command = [sys.executable, str(ROOT / "tests/host/patched.py")]
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    said = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240, check=True
    )
    assert json.loads(said.stdout.splitlines()[-1]) == patched.digests(model)


def test_a_model_without_patches_has_nothing_to_tell(model):
    from graft.host.model import model_patches

    assert list(model_patches.told(model)) == []
    bare = model.clone()
    bare.model_options["transformer_options"]["patches"] = {}
    assert list(model_patches.told(bare)) == []


def counted(start, step):
    """A function with a setting, one that counts its calls, and one that reads the count."""
    count = start

    def count_up():
        nonlocal count
        count += step
        return count

    return [count_up, lambda: count]


def test_what_functions_write_is_no_setting():
    from graft.host.model.model_patches import tell

    pair = counted(0, 1)
    before = tell(pair)
    pair[0]()
    assert tell(pair) == before == tell(counted(5, 1)) != tell(counted(0, 2))
    assert "0x" not in before


class Wrapper:
    def __init__(self, strength, model=None, limit=3):
        self.strength, self._limit, self.model = strength, limit, model
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        return self.strength * x


class Slotted:
    __slots__ = ("strength",)

    def __init__(self, strength):
        self.strength = strength


class Shy:
    @property
    def model_options(self):
        raise RuntimeError("not before it is loaded")


def test_an_object_is_its_class_and_what_it_was_given(model):
    from graft.host.model.model_patches import tell

    one = Wrapper(2.0, model)
    before = tell(one)
    assert one(3) == 6
    assert tell(one) == before == tell(Wrapper(2.0, model))
    others = [Wrapper(2.5, model), Wrapper(2.0, model, limit=4), one.__call__, Wrapper(2.0)]
    assert len({before, *map(tell, others)}) == 5
    assert "0x" not in before


def test_all_kinds_of_values_are_told():
    from graft.host.model.model_patches import tell

    def itself():
        return itself

    values = [
        None,
        1,
        1.0,
        "1",
        torch.float16,
        torch.zeros(2),
        torch.ones(2),
        torch.zeros(2, dtype=torch.int32),
        [1],
        [2],
        {"a": 1},
        {"a": 2},
        {1, 2},
        len,
        torch.nn.ReLU(),
        torch.nn.LeakyReLU(0.1),
        torch.nn.LeakyReLU(0.2),
        functools.partial(max, 1),
        functools.partial(max, 2),
        functools.partial(max, key=len),
        np.zeros(2),
        np.ones(2),
        np.float32(1.5),
        np.array([object()]),
        Slotted(1),
        Slotted(2),
        Shy(),
        Wrapper,
        itself,
        lambda x=1: x,
        lambda x=2: x,
    ]
    texts = [tell(value) for value in values]
    assert len(set(texts)) == len(values)
    assert not any("0x" in text for text in texts)
    assert tell({"b": 1, "a": {3, 1, 2}}) == tell({"a": {2, 3, 1}, "b": 1})
    assert tell({"a": {torch.device("cpu"): True}}) == tell({"a": {}})  # a note of where


def test_the_folder_of_a_pack_is_not_told():
    from graft.host.model.model_patches import tell

    def patch():
        return 0

    texts = []
    for separator in "/\\":
        patch.__module__ = separator.join([str(ord(separator)), "custom_nodes", "pack.nodes"])
        texts.append(tell(patch))
    assert texts[0] == texts[1] and "pack.nodes" in texts[0]


def test_wrappers_and_injections_count(model, digest):
    from comfy.patcher_extension import WrappersMP

    base, found = digest(model), []
    for strength in (1.0, 2.0):
        wire = model.clone()
        wire.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "mine", Wrapper(strength))
        found.append(digest(wire))
    assert len({base, *found}) == 3


def test_runs_that_differ_in_a_patch_alone_share_no_folder(model, digest):
    from graft.host.runs import identity

    wires = [model, patched.patched("freeu", model), patched.patched("freeu", model, True)]
    assert len({identity.run_id(digest(wire), "data") for wire in wires}) == 3
