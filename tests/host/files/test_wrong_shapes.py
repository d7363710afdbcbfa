# SPDX-License-Identifier: Apache-2.0
"""Layers of another shape than the model's, by every way in: the layer and both shapes are named."""

import re

import pytest
import torch

from tests.host import tiny

pytestmark = pytest.mark.comfy

# Both are [64, 64] in the model, a convolution [32, 32, 3, 3].
GOOD, BAD, CONV = (
    "output_blocks.0.1.proj_in",
    "output_blocks.1.1.proj_in",
    "input_blocks.1.0.in_layers.2",
)
SHAPES = re.escape(f"{BAD} (80, 64) for (64, 64)")


def lora(layer, rows, columns, rank=2, other=None):
    start = f"diffusion_model.{layer}"
    return {
        f"{start}.lora_up.weight": torch.ones(rows, rank),
        f"{start}.lora_down.weight": torch.ones(other or rank, columns),
        f"{start}.alpha": torch.tensor(2.0),
    }


def of(layer, **tensors):
    return {f"diffusion_model.{layer}.{role}": tensor for role, tensor in tensors.items()}


WRONG = {
    "lora": lora(BAD, 80, 64),
    "lokr": of(BAD, lokr_w1=torch.ones(2, 2), lokr_w2=torch.ones(40, 32)),
    "loha": of(BAD, **{f"hada_w{n}_a": torch.ones(80, 1) for n in (1, 2)})
    | of(BAD, **{f"hada_w{n}_b": torch.ones(1, 64) for n in (1, 2)}),
    "difference": of(BAD, diff=torch.ones(80, 64)),
}  # fmt: skip


def adapter(tensors, name="it"):
    from graft.adapters.file import AdapterFile

    return AdapterFile(tensors, {}, name)


@pytest.fixture(scope="module")
def model(comfy):
    with torch.inference_mode():
        return tiny.model("sdxl")


def ways(model, file):
    """What each way in says of a file, as functions."""
    from graft.host.files import inspection, loading
    from graft.host.files.strengths import WHOLE, Strengths
    from graft.host.merging import loras
    from graft.loaders.merging import MODES
    from graft.loaders.source import in_memory

    good = loras.Given(adapter(lora(GOOD, 64, 64), "good"), Strengths())
    given = [loras.Given(file, Strengths()), good]
    source = in_memory(file)
    both = {"content": (source, 1.0), "style": (source, 1.0)}
    return {
        "Load Adapter": lambda: loading.load(model, None, file, WHOLE)[2],
        "Load LoRA Blocks": lambda: loading.blocks(model, None, source, "", WHOLE)[3],
        "Load B-LoRA": lambda: loading.b_loras(model, both, False)[1],
        "Merge LoRAs": lambda: loras.merge(given, MODES.get("sum")(), model).report,
        "Inspect LoRA": lambda: inspection.inspect(file, model)[1],
    }


def said(call):
    try:
        return call()
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("kind", WRONG)
def test_a_layer_of_another_width_is_named_with_both_shapes(model, kind):
    shape = SHAPES
    for way, call in ways(model, adapter(lora(GOOD, 64, 64) | WRONG[kind])).items():
        assert re.search(shape, said(call)), way
    for way, call in ways(model, adapter(WRONG[kind])).items():
        text = said(call)
        if way == "Load B-LoRA":
            assert "no layer of output_blocks.0.1 in it" in text
        else:
            assert re.search(shape, text), (way, text)


def test_magnitudes_of_another_length_are_named(model):
    wrong = lora(BAD, 64, 64) | of(BAD, dora_scale=torch.ones(80, 1))
    for way, call in ways(model, adapter(lora(GOOD, 64, 64) | wrong)).items():
        assert re.search(rf"{BAD} dora_scale \(80, 1\) for \(64, 64\)", said(call)), way


def test_halves_of_different_ranks_are_refused_with_both_shapes(model):
    from graft.host.files import conversion
    from graft.loaders.writing import dialects

    file = adapter(lora(GOOD, 64, 64) | lora(BAD, 64, 64, 2, 3))
    for way, call in ways(model, file).items():
        assert re.search(rf"{BAD}: up .*\[64, 2\].* down .*\[3, 64\]", said(call)), way
    for dialect in dialects.DIALECTS:
        with pytest.raises(ValueError, match=rf"{BAD}: up \[64, 2\].* down \[3, 64\]"):
            conversion.convert(file, dialect)


def test_a_core_that_does_not_go_with_its_rank_is_refused(model):
    from graft.host.files import conversion

    core = of(CONV, **{"lora_mid.weight": torch.ones(3, 3, 3, 3)})
    file = adapter(lora(GOOD, 64, 64) | lora(CONV, 32, 32) | core)
    for way, call in ways(model, file).items():
        if way != "Load B-LoRA":  # which does not read it
            assert re.search(rf"{CONV}: .*\[3, 3, 3, 3\].* rank 2", said(call)), way
    with pytest.raises(ValueError, match=r"\[3, 3, 3, 3\] does not go with rank 2"):
        conversion.convert(file, "kohya")


def test_two_that_differ_without_a_model_are_named():
    from graft.host.files import lora_comparison
    from graft.host.files.strengths import Strengths
    from graft.host.merging import loras
    from graft.loaders.merging import MODES

    one, other = adapter(lora(BAD, 80, 64), "one"), adapter(lora(BAD, 64, 64), "other")
    given = [loras.Given(file, Strengths()) for file in (one, other)]
    for mode in MODES.names():
        with pytest.raises(
            ValueError, match=rf"{BAD}: .*\(80, 64\) in 'one' and \(64, 64\) in 'other'"
        ):
            loras.merge(given, MODES.get(mode)())
    with pytest.raises(ValueError, match=rf"{BAD} is \(80, 64\) in one and \(64, 64\)"):
        lora_comparison.compare(one, other)
