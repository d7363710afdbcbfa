# SPDX-License-Identifier: Apache-2.0
"""The table of promises: bounds, what is remembered, and the README's copy of it."""

import importlib

import pytest

from graft.benchmarks import figures

pytestmark = pytest.mark.comfy


@pytest.fixture
def rows(comfy):
    from graft.benchmarks.skeleton import rows

    return rows


@pytest.mark.parametrize(
    ("value", "bound", "kept"),
    [
        (0.15, "<= 0.15", True),
        (0.16, "<= 0.15", False),
        (0.7, ">= 0.70", True),
        (0.69, ">= 0.70", False),
        (1.0, "< 1", False),
        (float("nan"), "<= 1", False),
        (float("nan"), ">= 1", False),
    ],
)
def test_a_bound_holds_or_is_short(value, bound, kept):
    assert figures.keeps(value, bound) is kept
    ((line, said),) = figures.lines("t", {"a": bound}, {"a": value})
    assert said is kept and line.endswith("ok" if kept else "SHORT")


def test_every_row_has_a_name_of_its_own_and_a_bound_that_can_be_read(comfy):
    modules = map(importlib.import_module, figures.TOPICS.values())
    found = [m for module in modules for m in module.MEASUREMENTS]
    names = [name for m in found for name in m.bounds]
    assert len(names) == len(set(names))
    assert len({m.name for m in found}) == len(found)
    for m in found:
        assert all(figures.keeps(0.0, bound) in (True, False) for bound in m.bounds.values())
        assert all(any(figures.ROOT.glob(pattern)) for pattern in m.inputs), m.name


def test_what_was_measured_is_known_until_an_input_changes(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    monkeypatch.setattr(figures, "CACHE", tmp_path / ".figures")
    (tmp_path / "one.py").write_text("a = 1")
    calls = []
    m = rows.Measurement("m", {"x": "<= 2"}, ("*.py",), lambda bench: calls.append(1) or {"x": 1})
    assert figures.recall("t", m) is None
    assert figures.measured("t", m, None) == {"x": 1.0}
    assert figures.recall("t", m) == {"x": 1.0} and len(calls) == 1
    (tmp_path / "one.py").write_text("a = 2")
    assert figures.recall("t", m) is None


def test_a_measurement_that_forgets_a_row_is_an_error(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "CACHE", tmp_path)
    m = rows.Measurement("m", {"x": "<= 2", "y": "<= 1"}, (), lambda bench: {"x": 1})
    with pytest.raises(RuntimeError, match="y"):
        figures.measured("t", m, None)


def test_the_loss_is_the_networks_own_in_small(rows):
    for kind in ("eps", "edm", "flow-flux"):
        errors = rows.errors(rows.FAMILIES[kind], many=6)
        assert len(errors) == 6
        assert all(error <= (1e-5 if sigma >= 2e-2 else 3e-4) for sigma, error in errors)


@pytest.mark.parametrize("page", ["README.md", "docs/figures.md"])
def test_a_page_has_rows_of_this_table_only(page):
    text = (figures.ROOT / page).read_text(encoding="utf-8")
    block = text.split(figures.START)[1].split(figures.END)[0]
    modules = map(importlib.import_module, figures.TOPICS.values())
    found = [m for module in modules for m in module.MEASUREMENTS]
    bounds = {name: bound for m in found for name, bound in m.bounds.items()}
    rows = [line for line in block.splitlines() if line.startswith("| ")]
    assert len(rows) > 10
    for line in rows[1:]:
        name, _, bound, _ = (cell.strip() for cell in line.strip("|").split("|"))
        assert bounds[name] == bound


def test_the_readme_is_short():
    assert len((figures.ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200
