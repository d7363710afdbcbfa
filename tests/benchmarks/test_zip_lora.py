# SPDX-License-Identifier: Apache-2.0
"""The comparison of ways to join two LoRAs: what is counted, what is asked for, and the table."""

import pytest

from graft.benchmarks import zip_lora


def picture(shape, texture, colour=True, background=True):
    return {"shape": shape, "texture": texture, "colour": colour, "background": background}


def test_both_is_of_one_picture_and_all_needs_the_colours_too():
    found = zip_lora.shares(
        [picture(True, True), picture(True, True, background=False), picture(True, False)]
        + [picture(False, True)]
    )
    assert found == {"shape": 0.75, "texture": 0.75, "both": 0.5, "all": 0.25}


def test_the_table_has_a_row_a_way_that_was_measured():
    def case(both):
        return dict.fromkeys(zip_lora.COLUMNS, 0.5) | {"both": both}

    known = {f"together {seed}": {"sum": case(both)} for seed, both in ((0, 0.1), (2, 0.3))}
    known["together 2"]["zip"] = case(0.7)
    lines = zip_lora.table(known)
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    assert lines[2].endswith("| 50% ± 0% | 20% ± 14% | 50% ± 0% | 2 |")
    assert lines[3].endswith("| 50% | 70% | 50% | 1 |")


@pytest.mark.comfy
def test_prompts_ask_for_both_in_colours_that_were_not_trained(comfy):
    from graft.benchmarks.skeleton import concept
    from graft.tools.mini import make_concepts

    asked = concept.concept_prompts(64, style=make_concepts.TEXTURE)
    plain = concept.concept_prompts(64)
    assert len(asked) == 64
    for (text, wanted), (other, same) in zip(asked, plain, strict=True):
        assert " dax on a vex " in text and "vex" not in other
        assert wanted == same | {"texture": "zigzag"} and same["texture"] == "plain"
        assert (wanted["colour"], wanted["background"]) not in make_concepts.PAIRS
