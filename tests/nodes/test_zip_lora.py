# SPDX-License-Identifier: Apache-2.0
"""Zip LoRAs on a real model: what is saved is what was learned, and the host is as it was, also after a Cancel."""

import dataclasses
import re

import pytest
import torch

from tests.nodes.test_dreambooth import call, mini, output, pictures  # noqa: F401 - fixtures
from tests.nodes.test_merge_loras import adapter, change, keys

pytestmark = pytest.mark.comfy
BLOCKS = "attn2, input_blocks.1.0.in_layers.2"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    from graft.trainers import zip_lora

    monkeypatch.setattr(zip_lora, "_MEASURED", 2)


@pytest.fixture(scope="module")
def two(mini):  # noqa: F811
    content = adapter(mini["model"], rank=3, blocks=BLOCKS)
    style = adapter(
        mini["model"], seed=1, rank=2, blocks=f"{BLOCKS}, input_blocks.1.0.out_layers.3"
    )
    return content, style


def zipped(wires, two, **changes):
    from graft.nodes.zip_lora import ZipLora

    given = {
        "content": two[0],
        "style": two[1],
        "content_pictures": pictures(2, "a dax"),
        "style_pictures": pictures(3, "in vex style"),
    }
    defaults = {"steps": 6, "learning_rate": 0.05, "precision": "fp32"}
    return call(ZipLora, wires | given, **defaults | changes)


def test_it_learns_and_the_result_is_a_lora_of_both_ranks(mini, two, output):  # noqa: F811
    made = zipped(mini, two)
    model, clip, merged, lora, plot, report = made.result
    assert keys(merged) == keys(two[0]) | keys(two[1]) and set(lora) == set(merged.tensors)
    shared = keys(two[0]) & keys(two[1])
    for layer in keys(merged):
        down = merged.tensors[f"{layer}.lora_down.weight"]
        assert len(down) == (5 if layer in shared else 2)
    # dW's columns are those of the two with a factor each: found by least squares, whatever the node has kept.
    for layer in sorted(shared)[:2]:
        key = f"{layer}.weight"
        d1, d2 = (change(mini["model"], one, key).flatten(1) for one in two)
        got = change(mini["model"], merged, key).flatten(1)
        factors = []
        for column in range(got.shape[1]):
            basis = torch.stack([d1[:, column], d2[:, column]], 1).double()
            found = torch.linalg.lstsq(basis, got[:, column].double())
            assert float((basis @ found.solution - got[:, column]).norm()) < 1e-4 * float(
                got[:, column].norm()
            )
            factors.append(found.solution)
        factors = torch.stack(factors)
        assert 0.01 < float((factors - 1).abs().max()) < 0.5
    numbers = re.findall(r"([\d.e+-]+) as a plain sum, ([\d.e+-]+) now", report)
    before, after = ([float(pair[i]) for pair in numbers] for i in (0, 1))
    assert len(numbers) == 3 and sum(after[:2]) < sum(before[:2]) and before[2] == 1
    assert f"{len(shared)} of {len(keys(merged))} layers are in both" in report
    total = len(merged.tensors)
    assert f"{total} of {total} tensors applied" in report
    assert plot.ndim == 4 and made.ui["text"] == [report]


def test_the_same_graph_gives_the_same_file_and_no_rate_the_direct_sum(mini, two, output):  # noqa: F811
    one, again = (zipped(mini, two, steps=2).result[2].tensors for _ in range(2))
    assert all(torch.equal(one[key], again[key]) for key in one)
    still = zipped(mini, two, steps=1, learning_rate=0.0).result[2]
    assert keys(still) == keys(two[0]) | keys(two[1])
    for layer in sorted(keys(still))[:3]:
        key = f"{layer}.weight"
        parts = [change(mini["model"], f, key) for f in two if layer in keys(f)]
        torch.testing.assert_close(
            change(mini["model"], still, key), sum(parts), rtol=1e-4, atol=1e-6
        )


def test_cancel_leaves_the_model_as_it_was(mini, two, output, monkeypatch):  # noqa: F811
    import comfy.model_management as mm

    from graft.host.merging import zip_loras

    root = mini["model"].model.diffusion_model
    before = {name: p.clone() for name, p in root.named_parameters()}
    calls = []

    def cancelled():
        calls.append(1)
        if len(calls) > 8:
            raise mm.InterruptProcessingException

    monkeypatch.setattr(zip_loras, "interrupt", cancelled)
    with pytest.raises(mm.InterruptProcessingException):
        zipped(mini, two, steps=50)
    assert not [n for n, m in root.named_modules() if "forward" in m.__dict__]
    assert all(torch.equal(p, before[name]) for name, p in root.named_parameters())


def test_what_does_not_go_together_is_refused(mini, two, output):  # noqa: F811
    apart = adapter(mini["model"], rank=2, blocks="output_blocks.1.1.*.attn1")
    with pytest.raises(ValueError, match="no layer in common.*Merge LoRAs"):
        zipped(mini, (two[0], apart))
    dora = adapter(mini["model"], "dora", blocks=BLOCKS)
    with pytest.raises(ValueError, match="'dora 0' is a DoRA"):
        zipped(mini, (two[0], dora))
    with pytest.raises(ValueError, match="batch_size is 3 but the dataset has 2 pictures"):
        zipped(mini, two, batch_size=3)


def test_words_and_text_encoders_of_both_are_carried_over(mini, two, output):  # noqa: F811
    layer = "text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj"
    side = mini["clip"].cond_stage_model.clip_l.transformer.text_model.encoder.layers[0]
    width = side.self_attn.q_proj.in_features
    generator = torch.Generator().manual_seed(0)
    up = torch.randn(width, 1, generator=generator)
    down = torch.randn(1, width, generator=generator)
    of_text = {f"{layer}.lora_up.weight": up, f"{layer}.lora_down.weight": down}
    of_text[f"{layer}.alpha"] = torch.tensor(0.5)
    both = [
        dataclasses.replace(one, tensors={**one.tensors, **of_text}, name=str(n))
        for n, one in enumerate(two)
    ]
    made = zipped(mini, both, steps=1)
    merged, report = made.result[2].tensors, made.result[5]
    summed = merged[f"{layer}.lora_up.weight"] @ merged[f"{layer}.lora_down.weight"]
    torch.testing.assert_close(summed, up @ down)
    assert float(merged[f"{layer}.alpha"]) == 2
    assert "text encoders' layers are summed" in report
    assert f"{len(merged)} of {len(merged)} tensors applied" in report
