# SPDX-License-Identifier: Apache-2.0
"""Our trainer against ComfyUI's TrainLoraNode: seconds a step and peak memory, as a table and as JSON.

`make bench`, or `python -m benchmarks.bench --models mini --steps 6`. Steps are timed in one process, the trainers
alternating in short rounds, each on a model of its own. Memory is measured in a fresh process each: the highest
resident set size while training minus that with the model loaded and everything imported.
"""

import argparse
import contextlib
import ctypes
import gc
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from .subjects import ROOT, SUBJECTS, start

MODELS = ("mini", "sdxl64")
ROUND = 3  # timed steps of one trainer before the other one's turn
SAMPLE_S = 0.002
MEMORY_STEPS = 3  # the optimizer's state is there from the second step on
FASTER = 1.5
SMALLER = 0.7
OUT = ROOT / "out" / "bench.json"
# Graft with checkpointing, too; core's own is timed and weighed off, as ours is.
MEMORY_CASES = (("graft", False), ("graft", True), ("core", False))


def speed(model_name: str, steps: int = 12, *, verbose: bool = False) -> dict[str, Any]:
    """Time both trainers in this process, alternating, without checkpointing.

    Args:
        model_name: a name in ``SUBJECTS``.
        steps: timed steps of each trainer; the first step of every round is not counted.
        verbose: write a line a round to stderr.

    Returns:
        By trainer ``median`` and ``iqr`` (seconds a step) and ``steps``; ``ratio``: the median over rounds of core's
        median step over ours; ``ratios`` of all rounds.
    """
    start()
    import comfy.utils

    from .contenders import CONTENDERS

    comfy.utils.PROGRESS_BAR_ENABLED = False
    subject = SUBJECTS[model_name]
    pictures = subject.pictures(max(4, subject.batch))
    models = {name: subject.model() for name in CONTENDERS}
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    ratios = []
    for turn in range(max(1, round(steps / ROUND))):
        inside = {}
        for name in sorted(CONTENDERS, reverse=turn % 2 == 0):
            marks = CONTENDERS[name](subject, models[name], pictures, ROUND + 1, False)
            times = [b - a for a, b in zip(marks, marks[1:], strict=False)]
            seconds[name] += times
            inside[name] = median(times)
        ratios.append(inside["core"] / inside["graft"])
        if verbose:
            print(
                f"{model_name} round {turn + 1}: {inside}, ratio {ratios[-1]:.2f}", file=sys.stderr
            )
    return {name: _spread(times) for name, times in seconds.items()} | {
        "ratio": median(ratios),
        "ratios": ratios,
    }


def memory(model_name: str, trainer: str, checkpointing: bool = False) -> int:
    """Bytes at the peak of a training, above the loaded model, in a fresh process.

    Args:
        model_name: a name in ``SUBJECTS``.
        trainer: ``graft`` or ``core``.
        checkpointing: with gradient checkpointing.

    Raises:
        RuntimeError: the process failed; with the end of what it wrote.
    """
    case = [model_name, trainer, "on" if checkpointing else "off"]
    command = [sys.executable, "-m", "benchmarks.bench", "--weigh", *case]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"weighing {' '.join(case)} failed: {done.stderr[-2000:]}")
    return int(json.loads(done.stdout.splitlines()[-1])["peak"])


def _weigh(model_name: str, trainer: str, checkpointing: bool) -> dict[str, int]:
    """Measure this process, which has to be a fresh one."""
    start()
    import comfy.utils

    from .contenders import CONTENDERS

    comfy.utils.PROGRESS_BAR_ENABLED = False
    train = CONTENDERS[trainer]
    # What is imported at the first step (torch's compiler, for one) is no memory of the training.
    toy = SUBJECTS["tiny"]
    train(toy, toy.model(), toy.pictures(), 1, checkpointing)
    subject = SUBJECTS[model_name]
    model, pictures = subject.model(), subject.pictures(max(4, subject.batch))
    _settle()
    with _Peak() as peak:
        train(subject, model, pictures, MEMORY_STEPS, checkpointing)
    return {"loaded": peak.before, "peak": peak.highest - peak.before}


class _Peak:
    """Watches the resident set size of this process from a thread."""

    def __enter__(self) -> "_Peak":
        import psutil

        process = psutil.Process()
        self._rss = lambda: process.memory_info().rss
        self.before = self.highest = self._rss()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(SAMPLE_S):
            self.highest = max(self.highest, self._rss())

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()
        self.highest = max(self.highest, self._rss())


def _settle() -> None:
    """Give back what was freed, where the C library can, so that the reading before is the model's."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _spread(values: Sequence[float]) -> dict[str, float]:
    low, middle, high = (
        quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    )
    return {"median": middle, "iqr": high - low, "steps": len(values)}


def compare(
    model_name: str, steps: int = 12, repeats: int = 1, *, verbose: bool = True
) -> dict[str, Any]:
    """Speed and memory on one model, with the two bars of the comparison.

    Args:
        model_name: a name in ``SUBJECTS``.
        steps: timed steps of each trainer.
        repeats: fresh processes for each reading of memory; the median counts.
        verbose: write progress to stderr.
    """
    result: dict[str, Any] = {"about": SUBJECTS[model_name].about}
    result["speed"] = speed(model_name, steps, verbose=verbose)
    peaks = {}
    for trainer, checkpointing in MEMORY_CASES:
        name = trainer + (" checkpointed" if checkpointing else "")
        peaks[name] = int(
            median(memory(model_name, trainer, checkpointing) for _ in range(repeats))
        )
        if verbose:
            print(f"{model_name}: {name} {peaks[name] / 2**20:.0f} MiB", file=sys.stderr)
    result["memory"] = peaks | {
        "ratio": peaks["graft"] / peaks["core"],
        "checkpointed": peaks["graft checkpointed"] / peaks["graft"],
    }
    result["ok"] = {
        "speed": result["speed"]["ratio"] >= FASTER,
        "memory": result["memory"]["ratio"] <= SMALLER,
        "checkpointed": result["memory"]["checkpointed"] < 1.0,
    }
    return result


def table(results: dict[str, dict[str, Any]]) -> str:
    """The results as a table."""
    lines = []
    for name, result in results.items():
        times, peaks, ok = result["speed"], result["memory"], result["ok"]
        lines += [
            f"{name}: {result['about']}; rank 8, all linear and convolution layers, fp32",
            f"  {'':22}{'s/step':>9}{'IQR':>9}{'steps':>7}{'peak above the model':>23}",
        ]
        for trainer in peaks:
            if trainer in ("ratio", "checkpointed"):
                continue
            line = f"  {trainer:22}"
            if trainer in times:
                one = times[trainer]
                line += f"{one['median']:9.3f}{one['iqr']:9.3f}{one['steps']:7}"
            else:
                line += " " * 25
            lines.append(line + f"{peaks[trainer] / 2**20:19.0f} MiB")
        rounds = times["ratios"]
        said = {key: "ok" if value else "SHORT" for key, value in ok.items()}
        lines += [
            f"  steps a second, graft / core      {times['ratio']:6.2f}  (rounds {min(rounds):.2f} to "
            f"{max(rounds):.2f})  >= {FASTER}  {said['speed']}",
            f"  peak memory, graft / core         {peaks['ratio']:6.2f}  <= {SMALLER}  {said['memory']}",
            f"  peak memory, checkpointed / not   {peaks['checkpointed']:6.2f}  < 1  {said['checkpointed']}",
            "",
        ]
    return "\n".join(lines)


def _machine() -> dict[str, Any]:
    import torch

    start()
    import comfyui_version

    return {
        "comfyui": comfyui_version.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--models", default=",".join(MODELS), help=f"of {', '.join(SUBJECTS)}")
    parser.add_argument("--steps", type=int, default=12, help="timed steps of each trainer")
    parser.add_argument("--repeats", type=int, default=1, help="processes for a reading of memory")
    parser.add_argument("--out", type=Path, default=OUT, help="where the JSON goes")
    parser.add_argument("--weigh", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.weigh:
        name, trainer, checkpointing = options.weigh
        print(json.dumps(_weigh(name, trainer, checkpointing == "on")))
        return 0
    began = time.perf_counter()
    results = {
        name: compare(name, options.steps, options.repeats) for name in options.models.split(",")
    }
    print(table(results))
    report = {"machine": _machine(), "models": results}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"{options.out.name} written; {time.perf_counter() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
