# SPDX-License-Identifier: Apache-2.0
"""What counts as a trigger in a text."""

import unicodedata

import pytest
import torch

from graft.trainers.data import Captioning, Dataset, Item, describe
from graft.trainers.data.triggers import trigger_pattern


@pytest.mark.parametrize(
    ("trigger", "text", "found"),
    [
        ("zork", "a zork, sitting", True),
        ("zork", "一只zork狗在草地上", True),
        ("zork", "ゾzorkク zork犬", True),
        ("zork", "zork가 웃는다", True),
        ("zork", "A photo of ZORK.", True),
        ("Zork", "a zork", True),
        ("zork", "zorks, zork2, azork, zork_dog, zorké, дzork", False),
        ("caf", "un café", False),
        ("cafe", unicodedata.normalize("NFD", "un café"), False),
        ("an", "many a plan", False),
        ("sks1", "sks11", False),
        ("小明", "一张小明的照片", True),
        ("<zork>", "a<zork>b", True),
        ("a+b", "aab", False),
        ("zork dog", "a Zork  dog", True),
        ("", "a zork", False),
        (" ", "a zork", False),
    ],
)
def test_a_trigger_is_a_word_of_its_own(trigger, text, found):
    assert bool(trigger_pattern([trigger]).search(text)) is found


def test_the_longest_of_several_is_taken():
    assert trigger_pattern(["zork", "", "zork dog"]).sub("x", "a zork dog, zork") == "a x, x"


def test_the_report_and_the_captions_agree_on_it():
    captions = ("一只zork狗在草地上", "A Zork.", "zorks")
    items = tuple(Item((text,), pixels=torch.rand(32, 32, 3)) for text in captions)
    how = Captioning(add_trigger=True)
    dataset = Dataset(items, "zork", 32)
    assert 'trigger "zork": in 2 of 3 captions' in describe(dataset)
    added = [how.texts((text,), "zork")[0] for text in captions]
    assert added == ["一只zork狗在草地上", "A Zork.", "zork, zorks"]
    other = Dataset((Item(("many a plan",), pixels=torch.rand(32, 32, 3)),), "an", 32)
    assert 'trigger "an": in 0 of 1 captions' in describe(other)
