# SPDX-License-Identifier: Apache-2.0
"""A process that is killed at any moment, also in the middle of a write, leaves a state from which the run goes on."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.host import killed

pytestmark = pytest.mark.comfy


def start(output: Path) -> subprocess.Popen:
    """Start a run and wait for its first step."""
    command = [sys.executable, str(ROOT / "tests/host/killed.py"), str(output)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
    )
    assert process.stdout.readline() == "ready\n"
    return process


def finish(process: subprocess.Popen) -> str:
    """Let a run end; the hash of its LoRA."""
    said = process.communicate(timeout=240)[0].split()
    assert process.returncode == 0 and said[0] == "done"
    return said[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return finish(start(tmp_path_factory.mktemp("whole")))


@pytest.mark.parametrize(
    "kills", [2, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])]
)
def test_a_run_that_is_killed_again_and_again_gives_the_same_file(comfy, whole, tmp_path, kills):
    from graft.host import states

    moments, reached = random.Random(kills), []
    longest = 12.0 / kills
    for _ in range(kills):
        process = start(tmp_path)
        try:
            process.wait(moments.uniform(0, longest))
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()
        found = [states.load(path).step for path in tmp_path.rglob("*.state.safetensors")]
        reached.append(max(found, default=0))
        assert process.returncode == 0 or reached == sorted(reached)
    assert 0 < max(reached) < killed.STEPS, "the moments have to be in the run"
    assert finish(start(tmp_path)) == whole
    assert not list(tmp_path.rglob("*.state.safetensors"))
    assert not list(tmp_path.rglob(".graft-*.tmp"))
