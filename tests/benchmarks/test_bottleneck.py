# SPDX-License-Identifier: Apache-2.0
"""The page on adapter positions, from numbers that are made up, and what its cases are."""

from dataclasses import astuple

import pytest

from graft.benchmarks import bottleneck

pytestmark = pytest.mark.comfy


def key(cell, seed):
    return " ".join(map(str, ("cell", *astuple(cell), seed)))


def test_the_page_has_grid_studies_cross_table_and_cka(comfy, tmp_path, monkeypatch):
    monkeypatch.setattr(bottleneck, "PICTURE", tmp_path / "grid.png")
    known = {f"rate {rate:g}": {"concept": 1 - rate, "kept": 1.0} for rate in (1e-3, 1e-2)}
    known["rate 0.003"] = {"concept": 1.0, "kept": 1.0}
    names = bottleneck._grid()
    for number, name in enumerate(names):
        for seed in (0, 1):
            found = {"concept": 0.4 + number / 100, "kept": 0.9, "parameters": 1234}
            known[key(bottleneck.Cell(name), seed)] = found
    found = {"concept": 0.25, "kept": 0.5, "parameters": 99}
    known[key(bottleneck.Cell("attn2o-ffni;ffni-transo", 8), 0)] = found
    known["cross 0"] = {"steps": [0, 100], "table": [[0.0, 0.1], [0.2, 0.3]]}
    known["cka 0"] = {"input_blocks.0": 1.0, "output_blocks.8": 0.5}
    lines = bottleneck.page(known)
    assert lines[0] == "Learning rate 0.003." and (tmp_path / "grid.png").stat().st_size > 1000
    assert f"| {names[-1]} | 1,234 | 59% ± 0% | 90% ± 0% | 2 |" in lines
    assert "| attn2o-ffni and ffni-transo | 8 | relu | 1 | zero-up | 99 | 25% | 50% | 1 |" in lines
    assert "| adapter of step 100 | 20% | 30% |" in lines
    assert "| output_blocks.8 | 0.5000 |" in lines
    assert any(line.startswith("by input: F(9, 10) = ") for line in lines)


def test_studies_compare_what_they_say(comfy):
    from graft.host.model.mini import load_mini

    assert len(bottleneck._grid()) == 20
    for cells in bottleneck.STUDIES.values():
        assert len(set(cells)) == len(cells)
        for cell in cells:
            bottleneck._network(cell)
    model = load_mini()[0]
    one, two = (
        bottleneck.networks.parameters(model, bottleneck._network(cell))
        for cell in (bottleneck.Cell(), bottleneck.Cell("attn2o-ffni;ffni-transo", 8))
    )
    assert abs(two / one - 1) < 0.1
