# SPDX-License-Identifier: Apache-2.0
"""Measurements that take hours, case by case: each in a process of its own on one thread, each kept as it is done.

A measurement may be stopped at any time and goes on with what is missing.
"""

import functools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class Cases:
    """The cases of one script of this folder, kept in a JSON file beside it.

    Args:
        name: Of the script; it measures one case when it is called with ``--case`` and the case's parts, and writes
            what it found as the last line.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.kept = ROOT / "benchmarks" / f"{name}.json"
        self._lock = threading.Lock()

    def known(self) -> dict[str, dict[str, Any]]:
        """What was measured, by the case's parts with spaces between them."""
        return json.loads(self.kept.read_text(encoding="utf-8")) if self.kept.exists() else {}

    def found(self, *case: Any, fresh: bool = False) -> dict[str, Any]:
        """What a case gives; measured when it is not known.

        Args:
            case: Its parts.
            fresh: Measure it again.

        Raises:
            RuntimeError: It failed; with the end of what it wrote.
        """
        parts = [str(part) for part in case]
        key = " ".join(parts)
        known = {} if fresh else self.known()
        if key not in known:
            known = {key: self._in_a_process(parts)}
            with self._lock:
                self._keep(self.known() | known)
            print(f"{key}: {known[key]}", file=sys.stderr, flush=True)
        return known[key]

    def measure(self, cases: Iterable[tuple[Any, ...]], jobs: int, fresh: bool = False) -> None:
        """Measure several cases at a time.

        Args:
            cases: In the order in which they are begun.
            jobs: Processes at a time.
            fresh: Measure again what is known.
        """
        at_once(jobs, [functools.partial(self.found, *case, fresh=fresh) for case in cases])

    def _keep(self, found: dict[str, dict[str, Any]]) -> None:
        partial = self.kept.with_suffix(".partial")
        partial.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        partial.replace(self.kept)

    def _in_a_process(self, parts: Sequence[str]) -> dict[str, Any]:
        command = [sys.executable, "-m", f"benchmarks.{self.name}", "--case", *parts]
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=ROOT, env=one_thread, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(parts)} failed: {done.stderr[-2000:]}")
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found


def at_once(jobs: int, work: Sequence[Callable[[], Any]]) -> list[Any]:
    """The results of several functions in their order, ``jobs`` of them at a time."""
    with ThreadPoolExecutor(jobs) as pool:
        return [future.result() for future in [pool.submit(one) for one in work]]


def mini() -> Any:
    """MODEL, CLIP and VAE of graft-mini, in a ComfyUI of this process."""
    from tests.host import inprocess

    inprocess.start()
    import torch

    from graft.host.model.mini import load_mini

    with torch.inference_mode():
        return load_mini()


def spread(shares: Sequence[float]) -> str:
    """Mean and standard deviation of some shares."""
    tail = f" ± {stdev(shares):.0%}" if len(shares) > 1 else ""
    return f"{mean(shares):.0%}{tail}"
