# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of the measurement of separation, and which parts are put together."""

import pytest
import torch

pytestmark = pytest.mark.comfy


@pytest.fixture(scope="module")
def own(comfy):
    from graft.benchmarks import b_lora_separation

    return b_lora_separation


def test_shares_are_of_all_pictures_and_both_is_of_the_same_picture(own):
    found = own.shares([True, True, False, False], [True, False, True, True])
    assert found == {"shape": 0.5, "texture": 0.75, "both": 0.25}


def test_the_rank_of_equal_size(own):
    """Layers of 10 and 30 in and out together have 40 numbers a rank: 3.6 ranks are 144."""
    sizes = {"a": (4, 6), "b": (20, 10)}
    assert own.equal_rank(sizes, 144) == 4 and own.equal_rank(sizes, 41) == 1
    assert own.equal_rank(sizes, 1) == 1


def test_equal_size_is_equal_within_a_rank(own):
    from graft.adapters.attach import Attached
    from graft.adapters.lora import LoRA
    from graft.host.model.mini import load_mini

    with torch.inference_mode():
        model = load_mini()[0]
    counts, root = {}, model.model.diffusion_model
    for method in own.METHODS:
        blocks = "b-lora" if method == own.B_LORA else "attention"
        attached = Attached(root, LoRA(own.rank_of(method, model), blocks=blocks), 0)
        counts[method] = sum(p.numel() for p in attached.parameters().values())
        attached.remove()
    assert counts[own.EQUAL_SIZE] == pytest.approx(counts[own.B_LORA], rel=0.05)
    assert counts[own.EQUAL_RANK] > 1.5 * counts[own.B_LORA]


def test_b_lora_gives_its_blocks_and_a_plain_lora_all_of_it(own):
    from graft.adapters.file import AdapterFile

    names = ("output_blocks.0.1.t.0.attn1.to_q", "output_blocks.1.1.t.0.attn1.to_q", "out.2")
    made = AdapterFile({f"diffusion_model.{n}.alpha": torch.ones(()) for n in names})
    for block, number in (("content", 0), ("style", 1)):
        (key,) = own.parts(own.B_LORA, made, block).tensors
        assert key == f"diffusion_model.{names[number]}.alpha"
        assert own.parts(own.EQUAL_RANK, made, block) is made


def test_the_table_has_mean_least_and_most_and_is_put_between_the_marks(own, tmp_path, monkeypatch):
    rows = [dict.fromkeys(own.COLUMNS, value) for value in (0.1, 0.4)]
    text = own.table({own.B_LORA: rows}, {own.B_LORA: 64})
    assert text.splitlines()[-1].startswith("| B-LoRA | 64 | 0.25 (0.10-0.40) |")
    page = tmp_path / "page.md"
    page.write_text(f"before\n{own.START}\nold\n{own.END}\nafter\n", encoding="utf-8")
    monkeypatch.setattr(own, "PAGE", page)
    own.write(text)
    assert page.read_text(encoding="utf-8") == f"before\n{own.START}\n{text}\n{own.END}\nafter\n"


def test_what_is_known_is_not_measured_again(own, tmp_path, monkeypatch):
    calls = []

    def measure(wires, pair, method):
        calls.append((pair, method))
        return dict.fromkeys(own.COLUMNS, 0.5)

    monkeypatch.setattr(own, "KEPT", tmp_path / "kept" / "x.json")
    monkeypatch.setattr(own, "measure", measure)
    first = own.collect()
    assert own.collect() == first and len(calls) == len(own.PAIRS) * len(own.METHODS)
    own.collect(fresh=True)
    assert len(calls) == 2 * len(own.PAIRS) * len(own.METHODS)
