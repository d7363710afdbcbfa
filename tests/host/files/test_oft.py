# SPDX-License-Identifier: Apache-2.0
"""OFT and BOFT files at any strength, against rotations written out as whole matrices in fp64."""

import numpy as np
import pytest
import torch

from tests.host import tiny

pytestmark = pytest.mark.comfy

LAYERS = {
    "square": "output_blocks.0.1.transformer_blocks.0.attn1.to_q",
    "wide": "output_blocks.0.1.transformer_blocks.0.attn2.to_k",
    "tall": "output_blocks.0.1.transformer_blocks.0.ff.net.0.proj",
    "conv": "input_blocks.1.0.in_layers.2",
}
SIZE = 8


@pytest.fixture(scope="module")
def model():
    from tests.host import inprocess

    inprocess.start()
    return tiny.model("sdxl")


def rotation(blocks, limit, strength):
    """R^strength of each block as exp(strength log R)."""
    linalg = pytest.importorskip("scipy.linalg")
    blocks = blocks.double().numpy()
    q = blocks - np.swapaxes(blocks, -1, -2)
    norm = np.sqrt((q**2).sum())
    if limit and norm > limit:
        q = q * limit / norm
    unit = np.eye(q.shape[-1])
    turns = [
        linalg.expm(strength * linalg.logm((unit + b) @ linalg.inv(unit - b)).real)
        for b in q.reshape(-1, *q.shape[-2:])
    ]
    return np.stack(turns).reshape(q.shape)


def shuffle(rows, apart):
    """Row i of what goes into the blocks is row order[i]: pairs of halves ``apart`` from each other lie together."""
    grid = np.arange(rows).reshape(-1, 2, apart)
    return grid.transpose(0, 2, 1).reshape(-1)


def whole(blocks, limit, strength):
    """The matrix [out, out] that the weight is multiplied by."""
    linalg = pytest.importorskip("scipy.linalg")
    turns = rotation(blocks, limit, strength)
    if blocks.ndim == 3:
        return linalg.block_diag(*turns).T
    rows = blocks.shape[1] * blocks.shape[2]
    made = np.eye(rows)
    for i, factor in enumerate(turns):
        order = shuffle(rows, 2**i * blocks.shape[2] // 2)
        mixed = np.eye(rows)[order]
        made = mixed.T @ linalg.block_diag(*factor) @ mixed @ made
    return made


def written(model, module, kind, limit, has_rescale):
    generator = torch.Generator().manual_seed(3)
    weight = model.model.diffusion_model.get_submodule(module).weight.detach().float().clone()
    rows = weight.shape[0]
    shape = (rows // SIZE, SIZE, SIZE) if kind == "oft" else (2, rows // SIZE, SIZE, SIZE)
    blocks = 0.15 * torch.randn(shape, generator=generator)
    name = f"diffusion_model.{module}"
    tensors = {f"{name}.oft_blocks": blocks, f"{name}.alpha": torch.tensor(limit)}
    rescale = torch.ones(rows)
    if has_rescale:
        rescale = 1 + 0.2 * torch.randn(rows, generator=generator)
        tensors[f"{name}.rescale"] = rescale.reshape(-1, *(1,) * (weight.ndim - 1))
    return tensors, weight, blocks, rescale.double().numpy()


def loaded(model, tensors, strength, **more):
    from graft.adapters.file import AdapterFile
    from graft.host.files import loading
    from graft.host.files.strengths import Strengths

    return loading.load(model, None, AdapterFile(tensors, {}, "it"), Strengths(strength), **more)


@pytest.mark.parametrize("strength", [1.0, 0.4, -1.0, 1.5])
@pytest.mark.parametrize("shape", LAYERS)
@pytest.mark.parametrize(
    "kind,limit,has_rescale", [("oft", 0.0, True), ("oft", 0.7, False), ("boft", 0.0, True)]
)
def test_the_weight_is_turned_by_strength_times_the_angle(
    model, kind, limit, has_rescale, shape, strength
):
    import comfy.lora

    module = LAYERS[shape]
    tensors, weight, blocks, rescale = written(model, module, kind, limit, has_rescale)
    patched, _, report = loaded(model, tensors, strength)
    assert f"'it': {len(tensors)} of {len(tensors)} tensors applied" in report
    key = f"diffusion_model.{module}.weight"
    got = comfy.lora.calculate_weight(patched.patches[key], weight.clone(), key)
    turned = whole(blocks, limit, strength) @ weight.double().flatten(1).numpy()
    wanted = (1 + strength * (rescale - 1))[:, None] * turned
    wanted = torch.from_numpy(wanted).reshape(weight.shape)
    assert (got.double() - wanted).abs().max() <= 2e-6 * wanted.abs().max()
    if not has_rescale:  # |W0| of every block is kept, whatever the strength
        norms = [w.reshape(-1, SIZE, weight[0].numel()).norm(dim=(1, 2)) for w in (got, weight)]
        torch.testing.assert_close(*norms, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["oft", "boft"])
def test_at_strength_1_it_is_the_formula_of_lycoris_and_of_the_host(model, kind):
    """LyCORIS: einsum("k n m, k n ... -> k m ...", R, W0), and for a BOFT the host's own loop."""
    import comfy.lora

    module = LAYERS["conv"]
    tensors, weight, blocks, _ = written(model, module, kind, 0.5, False)
    key = f"diffusion_model.{module}.weight"
    patched, _, _ = loaded(model, tensors, 1.0)
    got = comfy.lora.calculate_weight(patched.patches[key], weight.clone(), key)
    stock = comfy.lora.load_lora(tensors, {key.removesuffix(".weight"): key}, log_missing=False)
    hosts = comfy.lora.calculate_weight([(1.0, stock[key], 1.0, None, None)], weight.clone(), key)
    torch.testing.assert_close(got, hosts, rtol=1e-5, atol=1e-6)
    if kind == "oft":
        q = blocks - blocks.mT
        q = q * min(1.0, 0.5 / float(q.norm()))
        r = (torch.eye(SIZE) + q) @ (torch.eye(SIZE) - q).inverse()
        parts = weight.unflatten(0, (-1, SIZE))
        theirs = torch.einsum("k n m, k n ... -> k m ...", r, parts).flatten(0, 1)
        torch.testing.assert_close(got, theirs, rtol=1e-5, atol=1e-6)
    # Why there is a patch of ours: the host's is another at any other strength.
    hosts = comfy.lora.calculate_weight([(0.5, stock[key], 1.0, None, None)], weight.clone(), key)
    half, _, _ = loaded(model, tensors, 0.5)
    got = comfy.lora.calculate_weight(half.patches[key], weight.clone(), key)
    assert (got - hosts).abs().max() > 1e-2 * weight.abs().max()


def test_patches_count_in_the_order_of_the_wire(model):
    """A rotation of what a LoRA made, and a LoRA on what a rotation made; a half twice is the whole."""
    import comfy.lora

    module = LAYERS["square"]
    tensors, weight, blocks, _ = written(model, module, "oft", 0.0, False)
    key, name = f"diffusion_model.{module}.weight", f"diffusion_model.{module}"
    up, down = torch.ones(weight.shape[0], 1), 0.1 * torch.ones(1, weight.shape[1])
    lora = {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
    matrix = torch.from_numpy(whole(blocks, 0.0, 0.4)).float()
    first, _, _ = loaded(loaded(model, lora, 1.0)[0], tensors, 0.4)
    got = comfy.lora.calculate_weight(first.patches[key], weight.clone(), key)
    torch.testing.assert_close(got, matrix @ (weight + up @ down), rtol=1e-4, atol=1e-5)
    last, _, _ = loaded(loaded(model, tensors, 0.4)[0], lora, 1.0)
    got = comfy.lora.calculate_weight(last.patches[key], weight.clone(), key)
    torch.testing.assert_close(got, matrix @ weight + up @ down, rtol=1e-4, atol=1e-5)
    twice, _, _ = loaded(loaded(model, tensors, 0.5)[0], tensors, 0.5)
    once, _, _ = loaded(model, tensors, 1.0)
    found = [
        comfy.lora.calculate_weight(one.patches[key], weight.clone(), key) for one in (twice, once)
    ]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    none, _, _ = loaded(model, tensors, 0.0)
    got = comfy.lora.calculate_weight(none.patches[key], weight.clone(), key)
    assert torch.equal(got, weight)
