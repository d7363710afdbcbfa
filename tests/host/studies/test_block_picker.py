# SPDX-License-Identifier: Apache-2.0
"""The picture of a model's blocks: every cell's patterns select it, a click does what it says, heat is |dW|."""

import json
import math
import random

import pytest

from graft.adapters.targets import chosen, targets

pytestmark = pytest.mark.comfy

FAMILIES = ("SD 1.5", "SDXL", "SD 3 medium", "Flux")
STYLE = "output_blocks.1.1.*.attn"


def picker():
    from graft.host.studies import block_picker

    return block_picker


def asked(family="SDXL", **more):
    source = ("mini", "") if family == "mini" else ("family", family)
    return picker().Asked(*source, **more)


def cells_of(shown):
    return [(g, b, c) for g in shown["groups"] for b in g["blocks"] for c in b["cells"]]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cells_together_are_the_model_and_each_is_what_its_patterns_select(family):
    from graft.host.model.skeleton import skeleton

    root = skeleton("family", family).model.diffusion_model
    every = targets(root, "all")
    shown = picker().picture("family", family)
    json.dumps(shown)
    seen = []
    for _, _, cell in cells_of(shown):
        found = chosen(every, ", ".join(cell["patterns"]))
        assert len(found) == cell["layers"]
        seen += found
    assert sorted(seen) == sorted(every)
    assert shown["layers"] == len(every)


def test_the_picture_of_sdxl_is_as_its_paper_draws_it():
    shown = picker().picture("family", "SDXL")
    assert [len(g["blocks"]) for g in shown["groups"][:3]] == [9, 1, 9]
    found = {(b["name"], c["part"]): c for _, b, c in cells_of(shown)}
    # Podell et al. 2023: 0, 2 and 10 transformer blocks at 320, 640 and 1280 channels; four layers an attention.
    assert found["output_blocks.1", "attn2"]["layers"] == 10 * 4
    assert found["output_blocks.4", "attn1"]["layers"] == 2 * 4
    assert found["output_blocks.1", "attn1"]["channels"] == 1280
    assert found["output_blocks.1", "attn1"]["level"] == 2
    assert ("output_blocks.7", "attn1") not in found
    assert "b-lora style" in shown["presets"]


def test_presets_that_select_nothing_are_not_offered():
    assert picker().picture("family", "Flux")["presets"] == ["all", "attention", "transformer"]


def test_b_lora_is_two_cells_of_one_block():
    shown = picker().picture("family", "SDXL")
    match = picker().match(asked(text="b-lora style"))
    on = {
        (b["name"], c["part"])
        for (_, b, c), n in zip(cells_of(shown), match["on"], strict=True)
        if n
    }
    assert on == {("output_blocks.1", "attn1"), ("output_blocks.1", "attn2")}
    assert (match["layers"], match["all"], match["error"]) == (80, 794, "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("atention", "Did you mean attention"),
        ("", "leaves no layer"),
        ("*a" * 20, "stars"),
        ("[", "matches no layer"),
        ("<script>alert(1)</script>", "matches no layer"),
        ("../../etc", "matches no layer"),
        ("\u202eevil\x00", "matches no layer"),
        ("a" * 5000, "characters"),
    ],
)
def test_what_is_wrong_is_told_in_the_languages_own_words(text, said):
    match = picker().match(asked(text=text))
    assert said in match["error"]
    assert "\u202e" not in match["error"] and "\x00" not in match["error"]
    assert not any(match["on"])


def test_the_kind_of_adapter_decides_as_in_a_run():
    """A bottleneck sits in whole blocks; a transformer block of one takes all of its layers."""
    match = picker().match(
        asked("mini", text="output_blocks.1", network="bottleneck", options="positions=attn2o-ffni")
    )
    shown = picker().picture("mini")
    on = {
        (b["name"], c["part"])
        for (_, b, c), n in zip(cells_of(shown), match["on"], strict=True)
        if n
    }
    assert on == {("output_blocks.1", part) for part in ("attn1", "attn2", "ff")}
    assert "Unknown network" in picker().match(asked(network="lroa"))["error"]


def test_clicks_one_after_the_other_reach_what_was_clicked():
    draw = random.Random(1)
    shown = picker().picture("family", "SDXL")
    cells = cells_of(shown)
    text, wanted = "attention", None
    wanted = picker().match(asked(text=text))["on"]
    for _ in range(25):
        at = draw.randrange(len(cells))
        group, block, cell = cells[at]
        is_on = not wanted[at]
        answer = picker().pick(asked(text=text), group["name"], block["name"], cell["part"], is_on)
        wanted = [cell["layers"] * is_on if n == at else on for n, on in enumerate(wanted)]
        assert answer["on"] == wanted, answer["text"]
        assert answer["error"] == ""
        text = answer["text"]
    assert text.startswith("attention")


def test_a_click_without_a_wish_turns_over_what_the_text_has():
    at = ("output_blocks", "", "attn2")
    text = picker().pick(asked(text="attention"), *at)["text"]
    assert text == "attention, -output_blocks.*.attn2"
    assert picker().pick(asked(text=text), *at)["text"] == "attention"
    text = picker().pick(asked(text="b-lora style"), *at)["text"]  # some are on: all are turned on
    assert text == "b-lora style, output_blocks.*.attn2"
    assert picker().pick(asked(text=""), *at)["text"] == "output_blocks.*.attn2"


def test_a_file_has_its_own_layers(comfy):
    from graft.host.files import lora_files

    file = "graft-examples/dax begun.safetensors"
    tensors = lora_files.load_any(file).tensors
    layers = {key.rsplit(".", 2)[0] for key in tensors if key.endswith("lora_up.weight")}
    match = picker().match(asked("mini", kind="keep", file=file))
    assert (match["layers"], match["all"]) == (len(layers), len(layers))
    match = picker().match(asked("mini", kind="keep", file=file, text="middle_block"))
    assert "matches no layer" in match["error"]  # as the loader would say
    answer = picker().pick(
        asked("mini", kind="keep", file=file), "output_blocks", "output_blocks.1", "attn2", False
    )
    assert answer["text"] == f"-{STYLE}2"
    assert answer["layers"] == len(layers) - 8


def test_strengths_are_those_of_the_loader():
    file = "graft-examples/dax begun.safetensors"
    text = "output_blocks=0.5; attn2=2; output_blocks.1=0"
    match = picker().match(asked("mini", kind="strengths", file=file, text=text))
    shown = picker().picture("mini")
    low = {
        (b["name"], c["part"]): (m, of)
        for (_, b, c), m, of in zip(cells_of(shown), match["low"], match["of"], strict=True)
    }
    assert low["output_blocks.2", "attn1"][0] == 0.5
    assert low["output_blocks.2", "attn2"][0] == 2
    assert low["output_blocks.1", "attn2"][0] == 0
    assert low["input_blocks.4", "attn1"][0] == 1
    assert low["middle_block", "res"] == (None, 0)
    answer = picker().pick(
        asked("mini", kind="strengths", file=file, text=text),
        "output_blocks", "output_blocks.1", "", True, 0.25,
    )  # fmt: skip
    assert answer["text"] == "output_blocks=0.5; attn2=2; output_blocks.1=0.25"
    for value in (math.nan, math.inf, 1e9):
        with pytest.raises(ValueError, match="strength is a number"):
            picker().pick(asked("mini", kind="strengths"), "output_blocks", "", "", True, value)


def test_heat_is_the_size_of_each_cells_change():
    from graft.host.files import lora_files

    file = "graft-examples/dax begun.safetensors"
    tensors = {k: t.double() for k, t in lora_files.load_any(file).tensors.items()}
    squares = 0.0
    for key, up in tensors.items():
        # kohya's name of output_blocks.1.1, the second attention of the first level on the way up.
        if "up_blocks_0_attentions_1_" in key and "attn2" in key and key.endswith("lora_up.weight"):
            base = key.removesuffix("lora_up.weight")
            down = tensors[f"{base}lora_down.weight"]
            change = up @ down * float(tensors[f"{base}alpha"]) / len(down)
            squares += float(change.square().sum())
    sizes = picker().heat("mini", "", file)["size"]
    cells = cells_of(picker().picture("mini"))
    at = next(
        n
        for n, (_, block, cell) in enumerate(cells)
        if (block["name"], cell["part"]) == ("output_blocks.1", "attn2")
    )
    assert squares > 1
    assert sizes[at] == pytest.approx(math.sqrt(squares), rel=1e-5)
    assert sizes[0] is None  # the file has nothing there


def test_files_are_names_of_the_list_only():
    for name in ("../x.safetensors", "/etc/passwd", "nothing.safetensors"):
        with pytest.raises(ValueError, match="Unknown LoRA file"):
            picker().match(asked("mini", kind="keep", file=name))
        with pytest.raises(ValueError, match="Unknown LoRA file"):
            picker().heat("mini", "", name)
