# SPDX-License-Identifier: Apache-2.0
"""Some blocks checkpointed against all of them and none, on a toy: what is compared is what it says."""

import pytest

pytestmark = pytest.mark.comfy


def test_some_blocks_take_less_than_all_and_more_memory(capsys):
    from graft.benchmarks import checkpointing

    found = checkpointing.compare("tiny", share=0.5, turns=1, steps=1)
    blocks = {name: row["blocks"] for name, row in found.items()}
    assert blocks["none"] == 0 and blocks["all"] == 15 and 0 < blocks["some"] < 15
    sizes = {name: row["MiB"] for name, row in found.items()}
    assert sizes["all"] < sizes["some"] <= (sizes["all"] + sizes["none"]) / 2
    assert all(row["seconds"] > 0 for row in found.values()) and found["all"]["of all"] == 1
