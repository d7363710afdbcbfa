# SPDX-License-Identifier: Apache-2.0
"""The Chinese texts say what the English ones say, and the check of it finds what it is for."""

import copy
import json

import pytest

from graft.tools.translation import LETTERS, ROOT, Translation, entries

LOCALES = ROOT / "locales"
READ_BY_COMFYUI = {"main.json", "nodeDefs.json", "commands.json", "settings.json"}
ENGLISH = {
    "GraftA": {
        "display_name": "Load It",
        "description": "Loads it.",
        "inputs": {
            "steps": {"name": "steps", "tooltip": "Steps, 64 with gamma=5."},
            "mode": {
                "name": "mode",
                "tooltip": "fast: at once. slow, slower: as preserve_on says.",
            },
        },
        "outputs": {
            "0": {"name": "MODEL", "tooltip": "MODEL for Load It, in models/it as cat.png."}
        },
    },
    "GraftB": {"display_name": "B", "description": "Loads it."},
}
CHINESE = {
    "GraftA": {
        "display_name": "加载它",
        "description": "加载。",
        "inputs": {
            "steps": {"name": "步数", "tooltip": "步数，gamma=5 时为 64。"},
            "mode": {"name": "模式", "tooltip": "fast：立即。slow、slower：按 preserve_on。"},
        },
        "outputs": {
            "0": {"name": "MODEL", "tooltip": "供“加载它”使用的 MODEL，models/it 中的 cat.png。"}
        },
    },
    "GraftB": {"display_name": "乙", "description": "加载。"},
}


def english():
    return json.loads((LOCALES / "en" / "nodeDefs.json").read_text(encoding="utf-8"))


@pytest.fixture
def small(tmp_path):
    """Return a translation without a fault, of two nodes."""
    (tmp_path / "locales" / "zh").mkdir(parents=True)
    path = tmp_path / "locales" / "zh" / "nodeDefs.json"
    path.write_text(json.dumps(CHINESE), encoding="utf-8")
    Translation("zh", tmp_path).accept(ENGLISH, ["GraftA", "GraftB"])
    return Translation("zh", tmp_path)


def changed(content, where, value):
    """Return content with another text (or without one) at a place."""
    content = copy.deepcopy(content)
    *above, last = where.split("/")
    inner = content
    for key in above:
        inner = inner[key]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return content


@pytest.mark.parametrize("language", LETTERS)
def test_every_text_is_translated_from_the_present_english_one(language):
    faults = Translation(language).faults(english())
    assert not faults, "\n".join(faults)


def test_every_language_is_checked_and_every_file_is_read():
    assert {path.name for path in LOCALES.iterdir()} == {"en", *LETTERS}
    assert {path.name for path in LOCALES.rglob("*.json")} <= READ_BY_COMFYUI
    assert not [path for path in LOCALES.rglob("*") if path.is_file() and path.suffix != ".json"]


@pytest.mark.parametrize("language", LETTERS)
def test_the_files_are_sorted_as_the_english_one_is(language):
    translation = Translation(language)
    order = [where for where, _ in entries(english())]
    assert [where for where, _ in entries(translation.content)] == order
    assert list(translation.marks) == order


def test_a_faithful_translation_has_no_fault(small):
    assert small.faults(ENGLISH) == []


@pytest.mark.parametrize(
    ("where", "value", "fault"),
    [
        ("GraftB", None, "GraftB/description: not translated"),
        ("GraftA/inputs/mode/tooltip", None, "GraftA/inputs/mode/tooltip: not translated"),
        ("GraftA/inputs/mode/name", " ", "--accept zh GraftA`. English: mode"),
        ("GraftA/inputs/more", {"name": "更多"}, "GraftA/inputs/more/name: there is no such"),
        ("GraftA/description", "Loads it.", "GraftA/description: is no sentence in zh"),
        ("GraftA/description", "加载", "GraftA/description: is no sentence in zh"),
        ("GraftB/description", "读取。", "is translated differently elsewhere"),
        (
            "GraftA/inputs/steps/tooltip",
            "步数，gamma=5 时为 46。",
            "['64', '5'] became ['5', '46']",
        ),
        ("GraftA/inputs/steps/tooltip", "步数，γ 为 5 时为 64。", "'gamma=5' is lost"),
        (
            "GraftA/inputs/mode/tooltip",
            "fast：立即。slow、更慢：按 preserve_on。",
            "'slower' is lost",
        ),
        (
            "GraftA/inputs/mode/tooltip",
            "快：立即。slow、slower：按 preserve_on。",
            "'fast' is lost",
        ),
        (
            "GraftA/inputs/mode/tooltip",
            "fast：立即。slow、slower：按设置。",
            "'preserve_on' is lost",
        ),
        (
            "GraftA/outputs/0/tooltip",
            "供“加载它”使用的模型，models/it 中的 cat.png。",
            "'MODEL' is lost",
        ),
        (
            "GraftA/outputs/0/tooltip",
            "供“加载它”使用的 MODEL，models 中的 cat.png。",
            "'models/it' is lost",
        ),
        (
            "GraftA/outputs/0/tooltip",
            "供“加载它”使用的 MODEL，models/it 中的图。",
            "'cat.png' is lost",
        ),
        (
            "GraftA/outputs/0/tooltip",
            "供加载用的 MODEL，models/it 中的 cat.png。",
            "Load It is called 加载它",
        ),
        ("GraftA/inputs/steps/name", "步数|", "reads as syntax"),
    ],
)
def test_a_fault_in_the_translation_is_named(small, where, value, fault):
    small.content = changed(small.content, where, value)
    assert fault in "\n".join(small.faults(ENGLISH))


def test_a_changed_english_text_is_named_until_its_translation_is_accepted(small):
    where = "GraftA/description"
    now = changed(ENGLISH, where, "Loads all of it.")
    (fault,) = small.faults(now)
    assert fault.startswith(f"{where}: the English text is new or changed")
    assert "python -m tools.make_locales --accept zh GraftA" in fault
    small.accept(now, ["GraftB"])
    assert len(small.faults(now)) == 1
    small.accept(now, ["GraftA"])
    assert small.faults(now) == []


def test_accepting_sorts_the_files_and_takes_out_what_is_no_longer_there(small):
    now = changed(ENGLISH, "GraftA/inputs/steps", None)
    now = {"GraftB": now["GraftB"], "GraftA": now["GraftA"]}
    small.accept(now, [])
    again = Translation("zh", small.path.parents[2])
    assert again.faults(now) == []
    places = [where for where, _ in entries(now)]
    assert [where for where, _ in entries(again.content)] == list(again.marks) == places
