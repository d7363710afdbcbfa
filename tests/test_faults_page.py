# SPDX-License-Identifier: Apache-2.0
"""docs/faults.md quotes what the code says, and names tests that there are."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
FOLDERS = ("host", "trainers", "nodes", "loaders", "adapters")


def literals() -> list[str]:
    """The texts in the code: those of an f-string between its values."""
    found = []
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return found


def rows() -> list[list[str]]:
    """The cells of the table of faults."""
    table = PAGE.split("## The table")[1].split("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def test_every_quoted_sentence_is_in_the_code():
    said = literals()
    quotes = [quote for row in rows() for quote in re.findall(r'"([^"]+)"', row[2])]
    assert len(quotes) > 25
    for quote in quotes:
        for piece in filter(None, (part.strip() for part in quote.split("…"))):
            assert any(piece in text for text in said), piece


def test_every_row_is_whole_and_names_a_test():
    names = set()
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        names.add(path.stem)
        names |= set(re.findall(r"def (test_\w+)", path.read_text(encoding="utf-8")))
    assert len(rows()) > 20
    for row in rows():
        assert len(row) == 5 and all(row), row
        found = re.findall(r"`(test_\w+)`", row[4])
        assert found and set(found) <= names, row
    assert set(re.findall(r"`(test_\w+)`", PAGE)) <= names
