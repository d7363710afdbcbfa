# SPDX-License-Identifier: Apache-2.0
"""Files of states: bit for bit, checked, listed, and nothing but states is read."""

import os
from pathlib import Path

import pytest
import torch

from graft.trainers.optimizers import OPTIMIZERS, Optimizer
from tests.trainers.test_loop import make
from tests.trainers.test_state_pack import same, trained

pytestmark = pytest.mark.comfy


@pytest.fixture
def states(comfy, tmp_path, monkeypatch):
    import folder_paths

    from graft.host.files import states

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return states


def test_a_state_is_read_as_it_was_saved(states, tmp_path):
    state = trained("prodigy", ema_decay=0.9)
    path = states.save(states.states_folder(), "mine", state)
    assert path == tmp_path.resolve() / "graft/states/mine.state.safetensors"
    assert same(states.load(path), state)
    assert states.save(states.states_folder(), "mine", state) == path
    other = states.save(states.states_folder(), "mine", trained("lion"))
    assert other.name == "mine_00002.state.safetensors"
    (tmp_path / "graft" / ("ab" * 16)).mkdir()
    states.save(tmp_path / "graft" / ("ab" * 16), "step_000003", state)
    assert states.names() == [
        "states/mine.state.safetensors",
        "states/mine_00002.state.safetensors",
        f"{'ab' * 16}/step_000003.state.safetensors",
    ]
    assert all(states.load(states.find(name)).step == 3 for name in states.names())


@pytest.mark.parametrize("where", ["head", "data", "end", "cut"])
def test_a_changed_file_is_refused(states, where):
    path = states.save(states.states_folder(), "mine", trained())
    data = bytearray(path.read_bytes())
    if where == "cut":
        data = data[:-1]
    elif where == "head":
        at = data.index(b'"step')
        data[at + 1 : at + 5] = b"stop"
    else:
        data[{"data": len(data) // 2, "end": -1}[where]] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"mine\.state\.safetensors"):
        states.load(path)


def test_a_state_of_format_1_is_read_for_ever(states):
    """A file that version 0.1.0 wrote; the numbers are what it was saved with."""
    path = Path(__file__).resolve().parents[2] / "golden/format_1.state.safetensors"
    state = states.load(path)
    assert (state.step, state.total_steps, state.seed, state.algorithm) == (3, 3, 3, "prodigy")
    assert state.validation == ((0, 0.5), (2, 0.1 + 0.2)) and state.looked == 2
    assert state.record == (((0.5, 1.0), (0.25, 0.125)), ((), ()), ((2.0,), (4.0,)))
    assert len(state.losses) == 3 and state.ema_updates == 3
    assert state.best.step == 2 and state.best.loss == 0.25
    assert (
        state.adapter.keys() == state.best.tensors.keys()
        and state.ema.keys() == state.optimizer.keys()
    )
    loop = make(steps=3, optimizer=Optimizer(OPTIMIZERS.get("prodigy")(), ema_decay=0.9))
    loop.resume(state)
    loop.run()
    assert loop.step == 6


def written(states, path, change):
    """A state's file after a change of its tensors and text, with the checksum that is right for them."""
    from graft.loaders import lora_file
    from graft.trainers.state_pack import pack

    tensors, text = pack(trained(ema_decay=0.9))
    text = change(tensors, text) or text
    metadata = {states._STATE: text, states._CHECKSUM: states._checksum(tensors, text)}
    lora_file.write(path, tensors, metadata)
    return path


@pytest.mark.parametrize("kind", ["adapter/", "optimizer/", "ema/", "best/"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(states, tmp_path, kind, value):
    changed = []

    def spoil(tensors, text):
        name = next(n for n in sorted(tensors) if n.startswith(kind) and tensors[n].ndim)
        tensors[name] = torch.full_like(tensors[name], value)
        changed.append(name)

    path = written(states, tmp_path / "bad.state.safetensors", spoil)
    with pytest.raises(ValueError, match=r"'bad\.state\.safetensors' has .* in 1 of its") as caught:
        states.load(path)
    assert f"the first is {changed[0]}." in str(caught.value)


def test_losses_that_are_no_numbers_are_history(states, tmp_path):
    def spoil(tensors, text):
        tensors["validation"][1] = float("nan")

    state = states.load(written(states, tmp_path / "good.state.safetensors", spoil))
    assert state.validation[0][1] != state.validation[0][1]


@pytest.mark.parametrize("version", [0, 2, 99])
def test_another_format_says_what_to_do(states, tmp_path, version):
    def newer(tensors, text):
        return text.replace('"format": 1', f'"format": {version}')

    path = written(states, tmp_path / "other.state.safetensors", newer)
    with pytest.raises(ValueError, match="no version of Graft" if version < 1 else "update Graft"):
        states.load(path)


def test_a_lora_is_no_state(states, tmp_path):
    from graft.loaders import lora_file

    path = tmp_path / "lora.safetensors"
    lora_file.write(path, {"a": torch.zeros(1)})
    with pytest.raises(ValueError, match="Load LoRA"):
        states.load(path)


@pytest.mark.parametrize(
    "name", ["../x.state.safetensors", "states/none.state.safetensors", "", "states", "/etc/passwd"]
)
def test_only_states_in_the_folder_are_found(states, tmp_path, name):
    (tmp_path / "x.state.safetensors").write_bytes(b"")
    states.states_folder().mkdir(parents=True)
    with pytest.raises(ValueError):
        states.find(name)


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs links")
def test_a_link_that_leads_out_is_not_read(states, tmp_path):
    folder = states.states_folder()
    folder.mkdir(parents=True)
    (tmp_path / "x.state.safetensors").write_bytes(b"secret")
    (folder / "x.state.safetensors").symlink_to(tmp_path / "x.state.safetensors")
    with pytest.raises(ValueError, match="leads out"):
        states.find("states/x.state.safetensors")


def test_there_may_be_none(states):
    assert states.names() == []
