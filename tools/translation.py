# SPDX-License-Identifier: Apache-2.0
"""What must hold for the translation of the nodes' texts in locales/<language>/nodeDefs.json.

The English file is written from the schemas. A translation is written by hand; tools/translations/<language>.json
says of each of its texts, by a mark, which English text it was made from. So a changed tooltip is found,
and its translation can be looked at and accepted again.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ACCEPT = "python -m tools.make_locales --accept {language} {node}"
LETTERS = {"zh": re.compile(r"[\u4e00-\u9fff]")}

# What a translation leaves as it is: gamma=5, preserve_on, models/diffusers, cat.png, .txt, [trigger], `code`, MODEL.
_KEPT = re.compile(
    r"[\w.*-]+=#?[\w.-]*\w|[\w*.-]*_[\w*./-]*\w|\w+/\w[\w/]*|[\w-]*\.[a-z]\w+|\[\w+\]"
    r"|`[^`]+`|\"[^\"]+\"|\b[A-Z][A-Z0-9]+\b"
)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
# An option and what it does: "random: that is a random crop, too." Sentences begin with a capital.
_OPTIONS = re.compile(r"(?:^|\. )([a-z][\w-]*(?:,? [\w-]+){0,3}): ")
# Characters that mean something to the browser's translation library.
_SYNTAX = re.compile(r"[{}@|]")


class Translation:
    """One language: its texts, and the marks of the English texts that they were made from."""

    def __init__(self, language: str, root: Path = ROOT) -> None:
        self.language = language
        self.path = root / "locales" / language / "nodeDefs.json"
        self.marks_path = root / "tools" / "translations" / f"{language}.json"
        self.content = _read(self.path)
        self.marks: dict[str, str] = _read(self.marks_path)

    def faults(self, english: dict[str, Any]) -> list[str]:
        """Return what is wrong, a line for each text, with what to do about it."""
        wanted, given = dict(entries(english)), dict(entries(self.content))
        names = {one["display_name"]: node for node, one in english.items()}
        found = [
            f"{where}: there is no such English text; any --accept takes it out"
            for where in given
            if where not in wanted
        ]
        first: dict[str, str] = {}
        for where, source in wanted.items():
            command = ACCEPT.format(language=self.language, node=where.split("/")[0])
            if not given.get(where, "").strip():
                do = f"write it into locales/{self.language}/nodeDefs.json, then `{command}`"
                found.append(f"{where}: not translated; {do}. English: {source}")
                continue
            if self.marks.get(where) != mark(source):
                do = f"look at its translation, then `{command}`"
                found.append(
                    f"{where}: the English text is new or changed; {do}. English: {source}"
                )
            found += [f"{where}: {fault}" for fault in self._lost(source, given[where], names)]
            if source.endswith(".") and first.setdefault(source, given[where]) != given[where]:
                found.append(f"{where}: the same English text is translated differently elsewhere")
        return found

    def accept(self, english: dict[str, Any], nodes: list[str]) -> None:
        """Mark the translated texts of these nodes as made from the present English ones.

        Marks and texts are sorted as the English file is, and what is no longer there goes.
        """
        wanted, given = dict(entries(english)), dict(entries(self.content))
        for where in wanted.keys() & given.keys():
            if where.split("/")[0] in nodes:
                self.marks[where] = mark(wanted[where])
        self.marks = {where: self.marks[where] for where in wanted if where in self.marks}
        self.content = _like(english, self.content)
        _write(self.path, self.content)
        _write(self.marks_path, self.marks)

    def _lost(self, source: str, given: str, names: dict[str, str]) -> Iterator[str]:
        """Say what an English text has and its translation has not."""
        if _SYNTAX.search(given):
            yield "has one of {}@|, which the browser reads as syntax"
        if set(_NUMBER.findall(source)) != set(_NUMBER.findall(given)):
            yield f"numbers {_NUMBER.findall(source)} became {_NUMBER.findall(given)}"
        if not source.endswith("."):
            return
        if not LETTERS[self.language].search(given) or given[-1] not in ".。":
            yield f"is no sentence in {self.language}: {given}"
        yield from (f"{one!r} is lost" for one in _kept(source) if one not in given)
        for name, node in names.items():
            called = self.content.get(node, {}).get("display_name", name)
            if " " in name and name in source and called not in given:
                yield f"the node {name} is called {called} in {self.language}"


def entries(content: dict[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Yield each text with its place, GraftTrain/inputs/steps/tooltip."""
    for key, value in content.items():
        where = f"{above}/{key}" if above else key
        if isinstance(value, dict):
            yield from entries(value, where)
        else:
            yield where, value


def mark(source: str) -> str:
    """Return what an English text is recognized by."""
    return hashlib.sha256(source.encode()).hexdigest()[:8]


def text(content: dict[str, Any]) -> str:
    """Return the text of a locale file."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _kept(source: str) -> list[str]:
    options = [one for some in _OPTIONS.findall(source) for one in re.split(r", | and ", some)]
    return _KEPT.findall(source) + options


def _like(pattern: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _like(value, content[key]) if isinstance(value, dict) else content[key]
        for key, value in pattern.items()
        if key in content
    }


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text(content), encoding="utf-8", newline="\n")
