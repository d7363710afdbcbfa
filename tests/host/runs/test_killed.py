# SPDX-License-Identifier: Apache-2.0
"""A process that is killed at any moment, also in the middle of a write, leaves a state from which the run goes on."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.host import killed

pytestmark = pytest.mark.comfy
STEP_S = 0.15  # about what a step takes, with its state


def start(output: Path) -> subprocess.Popen:
    """Start a run, or go on with it."""
    command = [sys.executable, str(ROOT / "tests/host/killed.py"), str(output)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
    )


def finish(process: subprocess.Popen) -> str:
    """Let a run end; the hash of its LoRA."""
    said = process.communicate(timeout=240)[0].split()
    assert process.returncode == 0 and said[-2] == "done"
    return said[-1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return finish(start(tmp_path_factory.mktemp("whole")))


@pytest.mark.parametrize(
    "kills", [2, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])]
)
def test_a_run_that_is_killed_again_and_again_gives_the_same_file(comfy, whole, tmp_path, kills):
    from graft.host.files import states

    moments, reached = random.Random(kills), []
    for _ in range(kills):
        process = start(tmp_path)
        for _ in range(moments.randint(1, 1 + 40 // kills)):
            assert process.stdout.readline() == "step\n"
        time.sleep(moments.uniform(0, STEP_S))
        process.kill()
        process.communicate()
        found = [states.load(path).step for path in tmp_path.rglob("*.state.safetensors")]
        reached.append(max(found, default=0))
    assert reached == sorted(reached) and 0 < reached[-1] < killed.STEPS
    assert finish(start(tmp_path)) == whole
    assert not list(tmp_path.rglob("*.state.safetensors"))
    assert not list(tmp_path.rglob(".graft-*.tmp"))
