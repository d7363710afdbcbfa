# SPDX-License-Identifier: Apache-2.0
"""Convert LoRA and Extract LoRA through their nodes."""

from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.comfy
HELD = SimpleNamespace(unique_id="7", prompt={"1": {}}, extra_pnginfo=None)


@pytest.fixture
def model(comfy):
    from tests.host import tiny

    return tiny.model("sdxl")


@pytest.fixture
def convert(comfy):
    from graft.host.files import paths
    from graft.nodes.convert import ConvertLora

    def call(
        adapter=None,
        dialect="kohya",
        dtype="keep",
        resize="keep",
        rank=8,
        energy=0.99,
        file="",
        model=None,
    ):
        node = type("ConvertLora", (ConvertLora,), {"hidden": HELD})
        given = (file, dialect, dtype, resize, rank, energy, "", True)
        with torch.inference_mode():
            return node.execute(*given, adapter=adapter, model=model).args

    yield call
    for file in paths.loras_folder().glob("*.safetensors"):
        file.unlink()


@pytest.fixture
def extract(comfy):
    from graft.nodes.convert import ExtractLora

    def call(base, tuned, by="rank", rank=4, energy=0.95, rest=True):
        node = type("ExtractLora", (ExtractLora,), {"hidden": HELD})
        with torch.inference_mode():
            return node.execute(base, tuned, by, rank, energy, rest, "made").args

    return call


def lora(model, rank=3, dora=False):
    """A random LoRA of every layer that is linear or a convolution."""
    from graft.adapters.file import AdapterFile
    from graft.adapters.targets import targets

    root, g, made = model.model.diffusion_model, torch.Generator().manual_seed(1), {}
    for name in targets(root, "all"):
        weight, start = root.get_submodule(name).weight, f"diffusion_model.{name}"
        ones = (1,) * (weight.ndim - 2)
        made[f"{start}.lora_up.weight"] = 0.1 * torch.randn(len(weight), rank, *ones, generator=g)
        made[f"{start}.lora_down.weight"] = torch.randn(rank, *weight.shape[1:], generator=g)
        made[f"{start}.alpha"] = torch.tensor(2.0)
        if dora:
            made[f"{start}.dora_scale"] = 1 + torch.rand(len(weight), 1, *ones, generator=g)
    return AdapterFile(made, {"modelspec.trigger_phrase": "dax"}, "one")


def patched(model, tensors):
    from graft.host.files import result

    return result.apply(model, tensors)[0]


def weights(model):
    from graft.host.files.patched_weights import PatchedWeights

    found = PatchedWeights(model)
    return {name: found.get(name) for name in found.names}


def assert_close(one, other):
    for name, value in weights(one).items():
        torch.testing.assert_close(value, weights_of(other)[name], rtol=1e-4, atol=2e-5, msg=name)


def weights_of(model, kept={}):  # noqa: B006 - a store of one
    if kept.get("of") is not model:
        kept.update(of=model, values=weights(model))
    return kept["values"]


@pytest.mark.parametrize(
    "dialect", ["ComfyUI generic", "kohya", "kohya (diffusers names)", "diffusers", "PEFT"]
)
def test_every_dialect_is_saved_and_fits_the_model(convert, model, dialect):
    """graft's tiny SDXL has one residual block a level, so its names in diffusers are the host's to say."""
    given = lora(model)
    path, back, report = convert(given, dialect, model=model)
    total = len(given.tensors) - (len(given.tensors) // 3 if dialect == "PEFT" else 0)
    assert f"On the model: {total} of {total} tensors applied" in report
    assert path in report and back.metadata["modelspec.trigger_phrase"] == "dax"
    assert all(torch.equal(t, back.tensors[k]) for k, t in given.tensors.items())


def test_a_file_of_one_dialect_is_read_and_written_in_another(convert, model):
    from graft.host.files import lora_files

    given = lora(model)
    path, _, _ = convert(given, "diffusers", model=model)
    names = lora_files.names()
    assert path in names
    _, back, report = convert(file=path, dialect="ComfyUI generic", model=model)
    assert back.tensors.keys() == given.tensors.keys()
    assert all(torch.equal(t, back.tensors[k]) for k, t in given.tensors.items())
    assert f"{len(given.tensors)} of {len(given.tensors)} tensors read back" in report


def test_a_rank_that_is_enough_changes_nothing_and_less_is_told(convert, model):
    given = lora(model)
    _, back, report = convert(given, "kohya", resize="rank", rank=3, model=model)
    assert "rank 3 keeps 100.0000% of |dW|^2" in report
    assert_close(patched(model, back.tensors), patched(model, given.tensors))
    _, back, report = convert(given, "kohya", "fp16", resize="rank", rank=1)
    assert "rank 1 keeps" in report and "100.0000%" not in report
    assert {t.dtype for k, t in back.tensors.items() if "lora" in k} == {torch.float16}
    assert back.metadata["ss_network_dim"] == "1"
    _, back, report = convert(given, "kohya", resize="energy", energy=0.9)
    assert "keeps 9" in report


def test_a_dora_for_comfyui_gets_its_magnitudes_back_for_diffusers(convert, model):
    import dataclasses

    from graft.host.files import stock_form

    given = lora(model, dora=True)
    trained = {
        k.replace("dora_scale", "lora_magnitude_vector"): t for k, t in given.tensors.items()
    }
    trained = {k: t.flatten() if "magnitude" in k else t for k, t in trained.items()}
    made = stock_form.exported(model, None, trained)
    facts = {f"graft.{k}": v for k, v in stock_form.facts(made).items()}
    stock = dataclasses.replace(given, tensors=made, metadata=facts)
    _, back, _ = convert(stock, "diffusers", model=model)
    for key, tensor in given.tensors.items():
        torch.testing.assert_close(back.tensors[key], tensor, rtol=1e-4, atol=1e-5)
    if facts["graft.dora_scale"] != "m":
        with pytest.raises(ValueError, match="connect the model"):
            convert(stock, "diffusers")


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"first.weight": torch.ones(2)}, "holds no adapter"),
        ({"diffusion_model.a.lora_up.weight": torch.full((2, 2), torch.nan)}, "NaN"),
        ({"diffusion_model.a.lora_up.weight": torch.ones(2, 2)}, "no lora_down.weight"),
        (
            {
                "diffusion_model.a.lora_up.weight": torch.ones(2, 2),
                "diffusion_model.a.lora_down.weight": torch.ones(3, 2),
            },
            r"up \[2, 2\] has rank 2 and down \[3, 2\] rank 3",
        ),
        ({"diffusion_model.a.oft_blocks": torch.ones(2, 2, 2)}, "can be reduced without the weight"),
    ],
)  # fmt: skip
def test_bad_input_is_named(convert, tensors, said):
    from graft.adapters.file import AdapterFile

    with pytest.raises(ValueError, match=said):
        convert(AdapterFile(tensors, {}, "bad"), resize="rank")


def test_values_too_large_for_a_dtype_are_refused(convert, model):
    import dataclasses

    given = lora(model)
    large = dataclasses.replace(given, tensors={k: 1e6 * t for k, t in given.tensors.items()})
    with pytest.raises(ValueError, match="too large for torch.float16"):
        convert(large, dtype="fp16")


def test_a_known_low_rank_difference_is_extracted_exactly(extract, model):
    given = lora(model)
    tuned = patched(model, given.tensors)
    made, report = extract(model, tuned, rank=3)
    assert_close(patched(model, made.tensors), tuned)
    assert f"{len(given.tensors) // 3} layers of rank" in report and "100.0000% of |dW|^2" in report
    assert "On base: " in report and made.metadata["ss_network_module"] == "networks.lora"
    back, report = extract(
        tuned, model, rank=3
    )  # the way back: the MODEL's own patches are part of its weights
    assert_close(patched(tuned, back.tensors), model)


def test_less_than_its_rank_keeps_what_it_says(extract, model):
    """diag(2, 1) in one layer: rank 1 keeps 4 / 5."""
    key = "diffusion_model.input_blocks.0.0"
    weight = model.model.state_dict()[f"{key}.weight"]
    change = torch.zeros(weight.shape)
    change[0, 0, 0, 0], change[1, 1, 1, 1] = 2.0, 1.0
    tuned = patched(model, {f"{key}.diff": change, f"{key}.diff_b": torch.ones(len(weight))})
    made, report = extract(model, tuned, rank=1)
    assert "1 layers of rank 1 keep 80.000" in report and "1 biases" in report
    assert made.tensors.keys() == {
        f"{key}.{e}" for e in ("lora_up.weight", "lora_down.weight", "alpha", "diff_b")
    }
    made, report = extract(model, tuned, "energy", energy=0.81, rest=False)
    assert "rank 2" in report and "1 others differ and are left out" in report


@pytest.fixture(scope="module")
def tuned_full(comfy, tmp_path_factory):
    """A MODEL whose attention was trained in full for some steps, the one before, and what the training changed."""
    import folder_paths

    from graft.adapters import NETWORKS
    from graft.trainers.optimizers import Optimizer
    from graft.trainers.optimizers.adamw import AdamW
    from tests.host import test_engine, tiny

    before, folder_paths.output_directory = (
        folder_paths.output_directory,
        str(tmp_path_factory.mktemp("full")),
    )
    try:
        with torch.inference_mode():
            wires = {
                "sdxl": tiny.model("sdxl"),
                "clip_sdxl": tiny.clip("sdxl"),
                "vae_sdxl": tiny.vae("sdxl"),
            }
        network = NETWORKS.get("full")("attention")
        made = test_engine.train(wires, network=network, optimizer=Optimizer(AdamW(1e-3)), steps=3)
    finally:
        folder_paths.output_directory = before
    return wires["sdxl"], made.model, made.adapter.tensors


@pytest.mark.parametrize("rank", [2, 16, 64])
def test_what_is_extracted_of_a_training_misses_the_singular_values_behind_its_rank(
    extract, tuned_full, rank
):
    """Eckart and Young: |dW - B A|^2 is the sum of the squares of those that are cut off, and 0 at the full rank."""
    base, tuned, changes = tuned_full
    made, report = extract(base, tuned, rank=rank)
    matrices = {key: change for key, change in changes.items() if change.ndim > 1}
    assert len(matrices) >= 32 and f"{len(matrices)} layers of rank" in report
    for key, change in matrices.items():
        layer = key.removesuffix(".diff")
        up, down = (made.tensors[f"{layer}.lora_{half}.weight"] for half in ("up", "down"))
        assert len(down) == made.tensors[f"{layer}.alpha"] <= rank
        values = torch.linalg.svdvals(change.double())
        wanted = float(values[rank:].square().sum().sqrt())
        found = float((change - up @ down).double().norm())
        # The difference of two fp32 weights is rounded to a part of the weight.
        assert found == pytest.approx(wanted, rel=1e-3, abs=2e-4 * float(values.norm())), key
        assert rank < 16 or wanted < 0.5 * float(values.norm())


def test_models_that_do_not_go_together_are_named(extract, model):
    from tests.host import tiny

    with pytest.raises(ValueError, match="have the same weights"):
        extract(model, model.clone())
    with pytest.raises(ValueError, match="base is SDXL and tuned is SD15"):
        extract(model, tiny.model("sd15"))
