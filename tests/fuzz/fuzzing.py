# SPDX-License-Identifier: Apache-2.0
"""What every case has to keep: it is taken, or refused by one of our own errors, soon and in bounded memory.

An error of ours is a ``ValueError`` (or a class of ours that is one) which a ``raise`` of the pack raised, with a text
in which no line but the first can be taken for one of the log's. What a library raised through us is none.
"""

import linecache
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import UnsatisfiedAssumption

from graft.plain import is_plain

ROOT = Path(__file__).resolve().parents[2]
MOST_SECONDS, MOST_BYTES, MOST_TEXT = 5.0, 1e9, 20_000


def tiers(short, long):
    """Numbers of cases: a few in each run of the tests, many with ``--slow``."""
    slow = (pytest.mark.slow, pytest.mark.timeout(1200))
    return pytest.mark.parametrize("cases", [short, pytest.param(long, marks=slow)])


def fuzz(cases, strategy, check):
    """Give ``check`` so many values of a strategy, always the same ones; it may refuse them by our errors.

    Returns:
        How many were taken, and how many were refused.
    """
    taken, refused = [0], [0]
    before = peak_bytes()

    def case(value):
        began = time.perf_counter()
        try:
            check(value)
        except (AssertionError, UnsatisfiedAssumption):
            raise
        except Exception as error:
            own_error(error)
            refused[0] += 1
        else:
            taken[0] += 1
        took = time.perf_counter() - began
        assert took < MOST_SECONDS, f"it took {took:.1f} s"

    phases = (Phase.explicit, Phase.generate, Phase.shrink)
    strict = settings(
        max_examples=cases,
        derandomize=True,
        database=None,
        deadline=None,
        phases=phases,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    strict(given(strategy)(case))()
    grown = peak_bytes() - before
    assert grown < MOST_BYTES, f"memory grew by {grown / 2**20:.0f} MiB"
    assert taken[0] + refused[0]
    print(f"cases: {taken[0]} taken, {refused[0]} refused, {grown / 2**20:.0f} MiB more")
    return taken[0], refused[0]


def own_error(error):
    """Fail, with the error, unless it is one of ours."""
    is_ours = type(error) is ValueError or type(error).__module__.startswith("graft.")
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    file = Path(trace.tb_frame.f_code.co_filename)
    line = linecache.getline(str(file), trace.tb_lineno).strip()
    is_raised = "site-packages" not in file.parts and file.is_relative_to(ROOT)
    text = str(error)
    lines = text.split("\n")
    is_text = bool(text.strip()) and len(text) < MOST_TEXT and all(map(is_plain, lines))
    is_one = all(not line.strip() or line.startswith(" ") for line in lines[1:])
    if not (is_ours and isinstance(error, ValueError) and is_raised and line.startswith("raise ")):
        raise AssertionError(
            f"{type(error).__name__} by '{line}' of {file}: {text[:300]!r}"
        ) from error
    if not (is_text and is_one):
        raise AssertionError(
            f"a text that is none by '{line}' of {file}: {text[:300]!r}"
        ) from error


def peak_bytes():
    """The most memory that this process ever had, 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
