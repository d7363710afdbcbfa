# SPDX-License-Identifier: Apache-2.0
"""The project's promises as a table, measured now: one line a promise, `ok` or `SHORT`.

    make figures TOPIC=skeleton
    python -m benchmarks.figures skeleton --only concept --fresh
    python -m benchmarks.figures --readme        put what was measured into docs/figures.md, headlines into README.md

A measurement that is done is kept in .figures until a file that it depends on changes, so a run that was stopped goes
on where it was. Exit status 1 when a promise falls short, or something could not be measured.
"""

import argparse
import hashlib
import importlib
import json
import operator
import os
import platform
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.host import inprocess

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".figures"
TOPICS = {
    "skeleton": "graft.benchmarks.skeleton.rows",
    "data": "graft.benchmarks.data.rows",
    "trainer": "graft.benchmarks.trainer.rows",
    "browser": "graft.benchmarks.browser.rows",
}
START, END = (
    "<!-- figures: made by `python -m benchmarks.figures --readme` -->",
    "<!-- /figures -->",
)
_COMPARE = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of `make figures`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("topic", nargs="?", default="", help=f"of {', '.join(TOPICS)}; all of them")
    parser.add_argument("--only", default="", help="measurements or rows whose name has this in it")
    parser.add_argument("--fresh", action="store_true", help="measure again what is known")
    parser.add_argument("--readme", action="store_true", help="write what is known into README.md")
    options = parser.parse_args(arguments)
    if options.topic and options.topic not in TOPICS:
        parser.error(f"there is no topic {options.topic}; there are {', '.join(TOPICS)}")
    inprocess.start()
    if options.readme:
        return write_readme()
    topics = [options.topic] if options.topic else list(TOPICS)
    kept = [figures(topic, options.only, options.fresh) for topic in topics]
    return 0 if all(kept) else 1


def figures(topic: str, only: str = "", fresh: bool = False) -> bool:
    """Measure a topic and print its table; whether every promise is kept.

    Args:
        topic: A name in ``TOPICS``.
        only: Measurements or rows whose name has this in it.
        fresh: Measure again what is known.
    """
    module = importlib.import_module(TOPICS[topic])
    chosen = [m for m in module.MEASUREMENTS if any(only in name for name in (m.name, *m.bounds))]
    if not chosen:
        raise SystemExit(f"nothing in {topic} is called '{only}'")
    print(f"{'topic':10}{'name':44}{'value':>12}  {'bound':10}", flush=True)
    is_ok = True
    with module.Bench() as bench:
        for measurement in chosen:
            known = None if fresh else recall(topic, measurement)
            if known is None:
                try:
                    known = measured(topic, measurement, bench)
                except Exception as error:
                    traceback.print_exc(file=sys.stderr)
                    known = dict.fromkeys(measurement.bounds, float("nan"))
                    print(f"{measurement.name} could not be measured: {error}", file=sys.stderr)
            for line, kept in lines(topic, measurement.bounds, known):
                is_ok = is_ok and kept
                print(line, flush=True)
    return is_ok


def measured(topic: str, measurement: Any, bench: Any) -> dict[str, float]:
    """Measure, and keep the values."""
    key = digest(
        topic, measurement
    )  # before: a file that changes meanwhile must not count as measured
    started = time.monotonic()
    values = {name: float(value) for name, value in measurement.measure(bench).items()}
    missing = set(measurement.bounds) ^ set(values)
    if missing:
        raise RuntimeError(f"{measurement.name} gives other rows than promised: {sorted(missing)}")
    seconds = round(time.monotonic() - started, 1)
    print(f"{measurement.name}: {seconds} s", file=sys.stderr)
    CACHE.mkdir(exist_ok=True)
    facts = {"topic": topic, "name": measurement.name, "values": values, "seconds": seconds}
    partial = CACHE / f"{key}.partial"
    partial.write_text(json.dumps(facts | {"machine": machine()}, indent=1), encoding="utf-8")
    partial.replace(CACHE / f"{key}.json")
    return values


def recall(topic: str, measurement: Any) -> dict[str, float] | None:
    """The values of a measurement whose inputs are as they were."""
    path = CACHE / f"{digest(topic, measurement)}.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))["values"]
    except (OSError, ValueError, KeyError):
        return None
    return values if set(values) == set(measurement.bounds) else None


def digest(topic: str, measurement: Any) -> str:
    """What a measurement depends on: its inputs' bytes, the host, torch and the kind of machine."""
    sha = hashlib.sha256(json.dumps([topic, measurement.name, machine()]).encode())
    paths = {path for pattern in measurement.inputs for path in ROOT.glob(pattern)}
    for path in sorted(path for path in paths if path.is_file() and path.suffix != ".pyc"):
        sha.update(path.relative_to(ROOT).as_posix().encode() + b"\0")
        sha.update(hashlib.sha256(path.read_bytes()).digest())
    return sha.hexdigest()[:32]


def machine() -> dict[str, Any]:
    """What the values may depend on beside the code."""
    import comfyui_version
    import torch

    return {
        "torch": torch.__version__,
        "comfyui": comfyui_version.__version__,
        "python": platform.python_version(),
        "cpu": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def lines(
    topic: str, bounds: dict[str, str], values: dict[str, float]
) -> Iterator[tuple[str, bool]]:
    """The rows of the table, and whether each promise is kept."""
    for name, bound in bounds.items():
        kept = keeps(values[name], bound)
        said = "ok" if kept else "SHORT"
        yield f"{topic:10}{name:44}{number(values[name]):>12}  {bound:10}{said}", kept


def keeps(value: float, bound: str) -> bool:
    """Whether a value is within a bound such as ``<= 0.15``; one that is not a number never is."""
    sign, limit = bound.split()
    return _COMPARE[sign](value, float(limit))


def number(value: float) -> str:
    """Four digits at most, without needless zeros."""
    if value == 0 or 1e-2 <= abs(value) < 1e4:
        return f"{value:.4g}"
    return f"{value:.1e}"


def write_readme(root: Path = ROOT) -> int:
    """Put the table of what is known, as Markdown, into docs/figures.md, and its headlines into README.md."""
    head = ["| promise | measured | bound | |", "|---|---:|---:|---|"]
    whole, few, unknown = [*head], [*head], []
    for topic, name in TOPICS.items():
        for measurement in importlib.import_module(name).MEASUREMENTS:
            values = recall(topic, measurement)
            if values is None:
                unknown.append(measurement.name)
                continue
            for row, bound in measurement.bounds.items():
                said = "ok" if keeps(values[row], bound) else "**SHORT**"
                line = f"| {row} | {number(values[row])} | {bound} | {said} |"
                whole.append(line)
                few += [line] if measurement.is_headline else []
    for path, rows in ((root / "docs" / "figures.md", whole), (root / "README.md", few)):
        text = between(path.read_text(encoding="utf-8"), START, END, "\n".join(rows))
        path.write_text(text, encoding="utf-8")
    if unknown:
        print(f"not measured for the present files: {', '.join(unknown)}", file=sys.stderr)
    return 0


def between(text: str, start: str, end: str, block: str) -> str:
    """The text with what is between two marks replaced; each mark occurs once."""
    head, rest = text.split(start)
    return f"{head}{start}\n{block}\n{end}{rest.split(end)[1]}"


if __name__ == "__main__":
    sys.exit(main())
