# SPDX-License-Identifier: Apache-2.0
"""Losses of runs from wires and logs, and where the picture has them."""

import json
import math
import os

import pytest
import torch

pytestmark = pytest.mark.comfy
ONE, TWO, THREE = "a" * 32, "ab" * 16, "0123456789abcdef"


@pytest.fixture
def logs(tmp_path, monkeypatch):
    """Writes the log of a run below a new output folder; each is newer than the one before."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    count = iter(range(1, 100))

    def write(run, rows, name="cat"):
        folder = tmp_path / "graft" / run
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "log.jsonl"
        with log.open("a", encoding="utf-8") as file:
            for row in rows:
                fact = {"facts": {"name": name}} if row.get("kind") == "start" else {}
                file.write(json.dumps({**row, **fact}) + "\n")
        os.utime(log, (0, next(count)))
        return log

    return write


def start(step=0):
    return {"kind": "start", "step": step, "total": 9}


def steps(*losses, first=1):
    return [{"kind": "progress", "step": i, "loss": x} for i, x in enumerate(losses, first)]


def seen(step, loss, weights="raw"):
    return {"kind": "validated", "step": step, "loss": loss, "weights": weights}


def test_a_log_is_read_as_far_as_it_goes(logs):
    from graft.host.runs.curves import of_run

    log = logs(
        ONE,
        [start(), seen(0, 0.9), *steps(4.0, None, 2.0), {"kind": "epoch", "step": 2, "loss": 7.0}],
    )
    logs(ONE, [seen(3, 0.8), seen(3, 0.5, "averaged"), {"kind": "saved", "step": 3, "path": "x"}])
    with log.open("a", encoding="utf-8") as file:
        file.write('{"kind": "progress", "step": 4, "lo')
    curve = of_run("cat")
    assert curve.steps == (1, 2, 3) and curve.held_out == ((0, 0.9), (3, 0.5))
    assert curve.losses[0] == 4.0 and math.isnan(curve.losses[1]) and curve.losses[2] == 2.0


def test_a_run_that_was_started_again_counts_from_there(logs):
    from graft.host.runs.curves import of_run

    logs(ONE, [start(), *steps(9.0, 8.0, 7.0), seen(0, 1.0), seen(3, 0.7)])
    logs(ONE, [start(2), *steps(5.0, first=3)])
    assert of_run(ONE).losses == (9.0, 8.0, 5.0) and of_run(ONE).held_out == ((0, 1.0),)
    logs(ONE, [start(), *steps(3.0)])
    assert of_run(ONE).losses == (3.0,) and of_run(ONE).held_out == ()


def test_a_run_that_goes_on_from_a_state_begins_where_it_did(logs):
    from graft.host.runs.curves import of_run

    logs(ONE, [start(500), *steps(0.3, 0.2, first=501)])
    assert of_run("cat").steps == (501, 502)


def test_runs_are_found_by_id_its_beginning_and_name(logs):
    from graft.host.runs.curves import of_run

    logs(ONE, [start(), *steps(1.0)])
    logs(TWO, [start(), *steps(2.0)], "dog")
    logs(THREE, [start(), *steps(3.0)])
    assert [of_run(x).losses[0] for x in (ONE, TWO[:8], "dog", "cat")] == [1.0, 2.0, 2.0, 3.0]
    logs("01234567ff", [start()], "bird")
    with pytest.raises(ValueError, match="2 runs begin with 01234567"):
        of_run("01234567")
    with pytest.raises(ValueError, match="Unknown run 'dug'. Did you mean dog?"):
        of_run("dug")
    with pytest.raises(ValueError, match="bird .* has no losses"):
        of_run("bird")


def test_nothing_outside_of_the_runs_is_read(logs, tmp_path):
    from graft.host.runs.curves import of_run

    with pytest.raises(ValueError, match="no run with a log yet"):
        of_run("../../secret")
    logs(ONE, [start(), *steps(1.0)])
    (tmp_path / "graft" / TWO).mkdir()
    secret = tmp_path.parent / f"{tmp_path.name}.jsonl"
    secret.write_text(json.dumps(start() | {"facts": {"name": "secret"}}), encoding="utf-8")
    try:
        (tmp_path / "graft" / TWO / "log.jsonl").symlink_to(secret)
    except OSError:
        pytest.skip("no right to make links")
    for wanted in ("secret", TWO, f"../{TWO}", f"graft/{ONE}", str(secret)):
        with pytest.raises(ValueError, match="Unknown run"):
            of_run(wanted)
    secret.unlink()


def test_a_hostile_log_costs_nothing(logs):
    from graft.host.runs.curves import of_run

    log = logs(ONE, [start(), *steps(1.0)])
    with log.open("ab") as file:
        file.write(b"[" * 100_000 + b"\n\xff\xfe\n[1]\n")
    logs(
        ONE,
        [
            {"kind": "progress", "step": "2", "loss": 1},
            {"kind": "progress", "step": 2, "loss": "x"},
            {"kind": "progress", "step": 10**400, "loss": 1.0},
            {"kind": "progress", "step": -5, "loss": 1.0},
            {"kind": "validated", "step": 2, "loss": 10**400},
        ],
    )
    assert of_run("cat").steps == (1, 2)


def test_loss_maps_of_ours_and_of_the_host():
    from graft.host.runs.curves import of_loss_map

    curve = of_loss_map({"loss": [torch.tensor(2.0), 1.0]}, "a")
    assert (curve.steps, curve.losses, curve.held_out) == ((1, 2), (2.0, 1.0), ())
    ours = {"loss": [2.0, 1.0], "validation": [0.5], "validation_steps": [0]}
    assert of_loss_map(ours, "a").held_out == ((0, 0.5),)
    for wrong in ({}, {"loss": []}, None):
        with pytest.raises(ValueError, match="a has no losses"):
            of_loss_map(wrong, "a")


def test_gathered_in_order_with_their_names(logs):
    from graft.host.runs.curves import gather

    logs(ONE, [start(), *steps(1.0)])
    wired = {"loss_1": None, "loss_2": {"loss": [2.0]}}
    assert [c.name for c in gather(wired, ["cat"], [], 8)] == ["loss_2", "cat"]
    assert [c.name for c in gather(wired, ["cat"], ["mine"], 8)] == ["mine", "cat"]
    assert [c.name for c in gather(wired, ["cat"], ["", " old "], 8)] == ["loss_2", "old"]
    for runs in ([], ["cat"] * 9):
        with pytest.raises(ValueError, match=f"{len(runs)} runs are to be compared"):
            gather({"loss_1": None}, runs, [], 8)


def places(picture, color):
    wanted = torch.tensor(color, dtype=torch.float32) / 255
    return ((picture[0] - wanted).abs().amax(-1) < 1e-3).nonzero()


def plot(*curves, window=1.0, **limits):
    from graft.host.drawing.run_plot import Limits, run_plot

    return run_plot(curves, Limits(**limits), window)


def curve(losses, name="a", first=1, held_out=()):
    from graft.host.runs.curves import Curve

    return Curve(name, tuple(range(first, first + len(losses))), tuple(losses), tuple(held_out))


# 960 x 540: the box is 76..931 wide and 108..469 high (0.08, 0.97 and 0.2, 0.87 of them, cut off).
LEFT, TOP, RIGHT, BOTTOM = 76, 108, 931, 469
FIXED = {"lowest": 0.0, "highest": 2.0, "first_step": 0, "last_step": 100}


def in_box(found):
    inside = (found[:, 0] > TOP) & (found[:, 0] < BOTTOM) & (found[:, 1] > LEFT)
    return found[inside].float()


def test_lines_are_where_the_limits_say():
    """A loss of 0.5 on 0..2 is three quarters down; steps 25 to 75 of 0..100 are the middle half."""
    from graft.host.drawing.run_plot import COLORS

    found = in_box(places(plot(curve([0.5] * 51, first=25), **FIXED), COLORS[0]))
    assert found[:, 0].mean() == pytest.approx(TOP + 0.75 * (BOTTOM - TOP), abs=1)
    assert found[:, 1].min() == pytest.approx(LEFT + 0.25 * (RIGHT - LEFT), abs=2)
    assert found[:, 1].max() == pytest.approx(LEFT + 0.75 * (RIGHT - LEFT), abs=2)


def test_validations_are_dots_in_the_color_of_their_run():
    from graft.host.drawing.run_plot import COLORS

    one, other = curve([9.0] * 2), curve([9.0] * 2, held_out=[(50, 1.0)])
    assert len(in_box(places(plot(one, one, **FIXED), COLORS[1]))) == 0
    dot = in_box(places(plot(one, other, **FIXED), COLORS[1])).mean(0)
    middle = [(TOP + BOTTOM) / 2, (LEFT + RIGHT) / 2]
    assert dot.tolist() == pytest.approx(middle, abs=1)


def test_what_is_outside_of_the_limits_is_cut_off_not_moved_to_the_edge():
    """From 1 at step 0 to 1e12 at step 2 the line leaves the box right away: nothing of it lies at the upper edge."""
    from graft.host.drawing.run_plot import COLORS

    picture = plot(curve([1.0, 1.0, 1e12, 1e12, 1e12, -1e12], first=0), **FIXED)
    found = places(picture, COLORS[0])
    found = found[found[:, 0] > 80]  # below the legend
    assert found[:, 0].min() >= TOP and found[:, 0].max() <= BOTTOM
    edge = found[(found[:, 0] - TOP).abs() <= 2]
    assert 0 < len(edge) and edge[:, 1].float().max() < LEFT + 0.06 * (RIGHT - LEFT)


def test_equal_limits_give_equal_axes_whatever_is_drawn():
    low = plot(curve([0.1] * 10), **FIXED)
    high = plot(curve([1.9] * 300, "another"), curve([0.2] * 4, "third"), **FIXED)
    off = plot(curve([0.1] * 10), **{**FIXED, "highest": 3.0})
    frame = torch.ones(540, 960, dtype=torch.bool)
    frame[: TOP - 10] = False  # what is said and the legend
    frame[TOP + 1 : BOTTOM - 1, LEFT + 1 :] = False
    assert torch.equal(low[0][frame], high[0][frame])
    assert not torch.equal(low[0][frame], off[0][frame])


def test_without_limits_the_axis_fits_all_runs():
    """The highest of both is 1.7, so the axis ends at 2; the longest has 40 steps, so 20 is its middle."""
    from graft.host.drawing.run_plot import COLORS

    picture = plot(curve([0.2] * 40), curve([1.7], held_out=[(20, 1.0)]))
    found = in_box(places(picture, COLORS[1]))
    dot = found[(found[:, 1] - (LEFT + RIGHT) / 2).abs() < 10].mean(0)
    assert dot.tolist() == pytest.approx([(TOP + BOTTOM) / 2, (LEFT + RIGHT) / 2], abs=1)


def test_all_are_smoothed_over_the_same_steps():
    """keep = 1 - 1/2, so losses 0, 1, 1 have the means 0, (1 + 0/2) / (1 + 1/2) = 2/3, (1 + 1/2 + 0) / 1.75 = 6/7."""
    from graft.host.drawing import plots
    from graft.host.runs.curves import window

    assert plots.smoothed([0.0, 1.0, 1.0], 2) == pytest.approx([0, 2 / 3, 6 / 7])
    assert window([curve([1.0] * 10), curve([1.0] * 400)]) == 20
    assert plots.smoothed([0.0, 1.0] * 20, 2) == plots.smoothed([0.0, 1.0] * 20)


def test_raw_losses_are_faint_behind_the_line():
    from graft.host.drawing.run_plot import COLORS

    losses = [0.5 + (-1) ** i * 0.4 for i in range(101)]
    picture = plot(curve(losses, first=0), window=50.0, **FIXED)
    faint = [round(0.72 * 255 + 0.28 * part) for part in COLORS[0]]
    spread = in_box(places(picture, faint))[:, 0]
    line = in_box(places(picture, COLORS[0]))
    line = line[line[:, 1] > (LEFT + RIGHT) / 2][:, 0]
    assert spread.max() - spread.min() > 0.35 * (BOTTOM - TOP)
    assert line.max() - line.min() < 0.03 * (BOTTOM - TOP)


@pytest.mark.parametrize(
    "limits,message",
    [
        ({"lowest": 1.0, "highest": 0.5}, "highest is 0.5 and lowest 1"),
        ({"first_step": 9, "last_step": 9}, "last_step is 9 and first_step 9"),
        ({"highest": math.nan}, "highest is nan"),
        ({"lowest": -1e12}, "lowest is -1000000000000.0"),
        ({"first_step": -1}, "first_step is -1"),
    ],
)
def test_limits_that_leave_no_axis_are_named(limits, message):
    with pytest.raises(ValueError, match=message):
        plot(curve([1.0]), **limits)


@pytest.mark.parametrize(
    "losses", [[math.nan] * 3, [0.0] * 3, [1.0], [5.0, math.nan, 5.0], [-2.0, -1.0]]
)
def test_odd_runs_have_a_picture(losses):
    from graft.host.runs.curves import describe

    one = curve(losses, name="a\nb\tc" + "long" * 100)
    assert plot(one).shape == (1, 540, 960, 3)
    assert describe([one], 1.0).startswith("a")


def test_the_node_draws_and_says_it(logs):
    from graft.nodes.compare import CompareRuns
    from tests.test_bad_input import hidden, widgets

    log = logs(ONE, [start(), *steps(1.0, 0.5), seen(0, 0.4), seen(1, 0.2), seen(2, 0.3)])
    values = widgets(CompareRuns, runs=f"\n {ONE[:9]} \n", names="new\nold", loss_3={"loss": [4.0]})
    image, text = hidden(CompareRuns).execute(**values).args
    assert image.shape == (1, 540, 960, 3)
    assert text.splitlines() == [
        "new: steps 1 to 1, loss 4.0000 -> 4.0000",
        "old: steps 1 to 2, loss 0.5000 -> 0.5000, validation 0.3000, least 0.2000 at step 1",
    ]
    prints = [CompareRuns.fingerprint_inputs(**widgets(CompareRuns, runs=x)) for x in ("", "cat")]
    assert prints[0] == () and prints[1][0][0] == str(log)
    logs(ONE, steps(0.1, first=3))
    assert CompareRuns.fingerprint_inputs(runs="cat") != prints[1]
    assert CompareRuns.fingerprint_inputs(runs=None) == ()
