# SPDX-License-Identifier: Apache-2.0
"""Reads the browser's scripts and holds their rules: what they import, what they never call, how long they are."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT / "web" / "js").rglob("*.js"))
LINES, FUNCTION_LINES = 400, 50
HOST = {"../../../scripts/app.js", "../../../scripts/api.js"}
IMPORT = re.compile(
    r"""(?:^|\s)(?:import|export)\b[^;'"]*?\bfrom\s*["']([^"']+)["']|import\(\s*["']([^"']+)"""
)
# Markup from text; code from text; and the words that the registry's scanner takes for network calls.
NEVER = re.compile(
    r"\.(innerHTML|outerHTML|insertAdjacentHTML|srcdoc)\b|document\.write|\beval\s*\(|new Function|"
    r"\.(connect|bind|send|sendall)\s*\(|javascript:|https?://(?!www\.w3\.org/)"
)


def find(source: str) -> list[str]:
    """What is wrong with one script."""
    found = []
    if not source.startswith("// SPDX-License-Identifier: Apache-2.0\n"):
        found.append("no licence line")
    lines = source.splitlines()
    if len(lines) > LINES:
        found.append(f"{len(lines)} lines, at most {LINES}")
    for number, line in enumerate(lines, 1):
        if hit := NEVER.search(line):
            found.append(f"line {number}: {hit.group()}")
        if len(line) > 120:
            found.append(f"line {number}: {len(line)} characters, at most 120")
    for one in IMPORT.findall(source):
        name = one[0] or one[1]
        if name not in HOST and not re.fullmatch(r"\.\.?/[\w./-]+\.js", name):
            found.append(f"import of {name}")
    return found + long_functions(lines)


def long_functions(lines: list[str]) -> list[str]:
    """Functions and methods over the limit: from an opening line to the brace of the same indent."""
    found, opening = (
        [],
        re.compile(r"^( *)(?!if|for|while|switch|else|try)[\w#$.\s=({:,]*\(.*(\{|=> \{)$"),
    )
    for number, line in enumerate(lines):
        if not (match := opening.match(line)):
            continue
        end = next(
            (i for i in range(number + 1, len(lines)) if re.match(rf"{match[1]}\}}", lines[i])),
            number,
        )
        if end - number + 1 > FUNCTION_LINES and not line.lstrip().startswith(
            "app.registerExtension"
        ):
            found.append(f"line {number + 1}: {end - number + 1} lines, at most {FUNCTION_LINES}")
    return found


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_keeps_the_rules(path):
    assert not find(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_what_a_script_imports_is_there(path):
    for one in IMPORT.findall(path.read_text(encoding="utf-8")):
        name = one[0] or one[1]
        if name not in HOST:
            assert (path.parent / name).is_file(), name


def test_only_thin_scripts_know_the_host():
    thin = [path for path in SCRIPTS if "scripts/app.js" in path.read_text(encoding="utf-8")]
    for path in thin:
        text = path.read_text(encoding="utf-8")
        assert "registerExtension" in text, f"{path.name} imports the app and registers nothing"
        assert "getContext(" not in text, f"{path.name} draws"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("box.innerHTML = name;", "innerHTML"),
        ("node.connect(0, other, 0);", r"\.connect\("),
        ("run = run.bind(this);", r"\.bind\("),
        ("eval(text);", "eval"),
        ('import x from "https://cdn.example/x.js";', "https://"),
        ('import { x } from "three";', "import of three"),
    ],
)
def test_the_rules_are_noticed(line, said):
    source = f"// SPDX-License-Identifier: Apache-2.0\n{line}\n"
    assert re.search(said, "\n".join(find(source)))
    assert find(line) and not find("// SPDX-License-Identifier: Apache-2.0\nconst x = 1;\n")


def test_a_long_function_is_noticed():
    body = "\n".join("  x += 1;" for _ in range(60))
    for head in (
        "function f(x) {",
        "export const f = (x) => {",
        "async function f(a, { b } = {}) {",
    ):
        assert long_functions(f"{head}\n{body}\n}}".splitlines()), head
