# SPDX-License-Identifier: Apache-2.0
"""The rows of `make figures TOPIC=browser`: the tests of the page in each mode, and what they measured.

Each mode runs by itself: the host's own frontend, and a recent one from PyPI.
"""

import functools
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from tests.browser.modes import MODES
from tests.host.inprocess import ROOT

from ..skeleton.rows import NODES, Bench, Measurement

INPUTS = (*NODES, "web/js/**/*.js", "tests/browser/*.py", "tests/host/server.py")
BOUNDS = {
    "tests that fail": "<= 0",
    "tests": ">= 40",
    "ms a frame of 10,000 steps": "< 16",
    "messages/s to a client": "< 10",
    "kB/s to a client": "< 20",
}
TIMEOUT_S = 3000


def mode(name: str, bench: Bench) -> dict[str, float]:
    """Run the tests of one mode; what is skipped is not there, which counts as a test that fails."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "tests/browser", "--browser", name]
        run = subprocess.run(
            [*command, f"--junitxml={report}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        if not report.is_file():
            raise RuntimeError(f"the tests did not run:\n{run.stdout[-3000:]}{run.stderr[-1000:]}")
        root = ElementTree.parse(report).getroot()
    bad = sum(len(root.findall(f".//{kind}")) for kind in ("failure", "error", "skipped"))
    if bad:
        print(run.stdout[-4000:], file=sys.stderr)
    said = {one.get("name"): float(one.get("value") or "nan") for one in root.iter("property")}
    values = {"tests that fail": float(bad), "tests": float(len(root.findall(".//testcase")))}
    values |= {key: said.get(key, float("nan")) for key in BOUNDS if key not in values}
    return {f"{name}: {key}": value for key, value in values.items()}


MEASUREMENTS = tuple(
    Measurement(
        f"page {one.name}",
        {f"{one.name}: {key}": bound for key, bound in BOUNDS.items()},
        INPUTS,
        functools.partial(mode, one.name),
        about="the tests in Chromium, and what they measured of the training panel",
    )
    for one in MODES
)
__all__ = ["MEASUREMENTS", "Bench"]
