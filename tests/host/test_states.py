# SPDX-License-Identifier: Apache-2.0
"""Files of states: bit for bit, checked, listed, and nothing but states is read."""

import os

import pytest
import torch

from tests.trainers.test_state_pack import same, trained

pytestmark = pytest.mark.comfy


@pytest.fixture
def states(comfy, tmp_path, monkeypatch):
    import folder_paths

    from graft.host import states

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
