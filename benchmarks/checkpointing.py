# SPDX-License-Identifier: Apache-2.0
"""How much time it saves to checkpoint only the blocks that have to be: `python -m benchmarks.checkpointing`.

The limit lies between what a pass takes with every block checkpointed and with none, and the memory plan chooses. Then
none, those blocks and all take turns of a few steps, in one process and on one model, so that a busy machine is as busy
for each.
"""

import argparse
import statistics
import sys
import time
from typing import Any

from .contenders import training
from .subjects import SUBJECTS, start

MIB = 2**20


def compare(name: str, share: float, turns: int, steps: int) -> dict[str, dict[str, float]]:
    """Plan for a limit, then take turns.

    Args:
        name: of ``SUBJECTS``.
        share: where the limit lies: 0 all blocks checkpointed just fit, 1 none just fits.
        turns: how many of each mode.
        steps: timed steps of a turn.

    Returns:
        By mode: blocks checkpointed, the most bytes of a pass, and the median seconds of a step.
    """
    start()
    from graft.host.memory.plan import _places, _Rehearsal
    from graft.trainers.memory_plan import choose
    from graft.trainers.plan import Plan

    subject = SUBJECTS[name]
    plan = Plan(steps=10**6, batch_size=1, precision="fp32")
    with training(subject, subject.model(), subject.pictures(), plan, _unheard) as (trained, loop):
        tried, blocks = _Rehearsal(loop, trained, 0, lambda: None), len(trained.blocks)
        peaks = {count: tried.measure(count, 1) or 0 for count in (blocks, 0)}
        room = int(peaks[blocks] + share * (peaks[0] - peaks[blocks]))
        choice = choose(tried.measure, 1, 1, room, (0, blocks), tried.look_at)
        some = choice.checkpointed
        peaks[some] = choice.passes[some](1)
        seconds: dict[int, list[float]] = {count: [] for count in (0, some, blocks)}
        for turn in range(turns):
            order = list(seconds)
            for count in order[turn % 3 :] + order[: turn % 3]:
                trained.checkpointing(_places(tried.order, count))
                _steps(loop, 1)
                seconds[count].append(_steps(loop, steps))
        names = {0: "none", some: "some", blocks: "all"}
        return {
            names[count]: {
                "blocks": count,
                "MiB": peaks[count] / MIB,
                "seconds": statistics.median(taken),
                "of all": statistics.median(
                    a / b for a, b in zip(taken, seconds[blocks], strict=True)
                ),
            }
            for count, taken in seconds.items()
        }


def _unheard(_: Any) -> None:
    """A sink that nobody listens to."""


def _steps(loop: Any, count: int) -> float:
    """Seconds of a step, the mean of ``count``."""
    loop.end = loop.step + count
    began = time.perf_counter()
    loop.run()
    return (time.perf_counter() - began) / count


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="mini", help=f"of {', '.join(SUBJECTS)}")
    parser.add_argument("--share", type=float, default=0.5, help="0 all blocks, 1 none")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a turn")
    options = parser.parse_args(arguments)
    found = compare(options.model, options.share, options.turns, options.steps)
    print("| checkpointed | blocks | a pass, MiB | ms a step | of the time of all |")
    print("|---|---:|---:|---:|---:|")
    for name, row in found.items():
        figures = f"{row['MiB']:.1f} | {row['seconds'] * 1000:.0f} | {row['of all']:.2f}"
        print(f"| {name} | {row['blocks']:.0f} | {figures} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
