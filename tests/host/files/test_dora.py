# SPDX-License-Identifier: Apache-2.0
"""DoRA files of every program against the defining formula m V / |V| in fp64, and against PEFT's own merge."""

import pytest
import torch

from tests.host import tiny

pytestmark = pytest.mark.comfy

# Of tiny SDXL: square, wide and tall matrices and a convolution of 3x3.
LAYERS = {
    "square": "output_blocks.0.1.transformer_blocks.0.attn1.to_q",
    "wide": "output_blocks.0.1.transformer_blocks.0.attn2.to_k",
    "tall": "output_blocks.0.1.transformer_blocks.0.ff.net.0.proj",
    "conv": "input_blocks.1.0.in_layers.2",
}
DIALECTS = ("peft", "diffusers", "mangled", "kohya", "lycoris columns", "lycoris loha")
ALPHA = 3.0


@pytest.fixture(scope="module")
def model():
    from tests.host import inprocess

    inprocess.start()
    return tiny.model("sdxl")


def written(model, module, dialect, rank=2):
    """A file of one layer; its V, m and axis in fp64."""
    from graft.adapters import spellings

    generator = torch.Generator().manual_seed(5)
    weight = model.model.diffusion_model.get_submodule(module).weight.detach().clone()
    dims = weight.ndim - 2
    # The tiny model has one residual block a level, so that diffusers' numbers are not those of the table of names.
    other = written_name(model, module)
    assert spellings.diffusers("output_blocks.0.1.proj_in") == "up_blocks.0.attentions.0.proj_in"
    kohya = f"lora_unet_{module.replace('.', '_')}"
    name, up_end, down_end = {
        "peft": (f"base_model.model.{other}", ".lora_B.weight", ".lora_A.weight"),
        "diffusers": (f"unet.{other}", ".lora_B.default.weight", ".lora_A.default.weight"),
        "mangled": (f"lora_unet_{other.replace('.', '_')}", ".lora_up.weight", ".lora_down.weight"),
    }.get(dialect, (kohya, ".lora_up.weight", ".lora_down.weight"))
    down = torch.randn((rank, *weight.shape[1:]), generator=generator)
    up = 0.3 * torch.randn((weight.shape[0], rank, *(1,) * dims), generator=generator)
    tensors = {f"{name}{up_end}": up, f"{name}{down_end}": down}
    change = up.double().flatten(1) @ down.double().flatten(1)
    scale = 1.0
    if dialect == "lycoris loha":
        more = torch.randn(weight.shape[0], rank, generator=generator)
        tensors = {
            f"{name}.hada_w1_a": up.flatten(1),
            f"{name}.hada_w1_b": down.flatten(1),
            f"{name}.hada_w2_a": more,
            f"{name}.hada_w2_b": down.flatten(1),
        }
        change = change * (more.double() @ down.double().flatten(1))
    if dialect not in ("peft", "diffusers"):
        tensors[f"{name}.alpha"], scale = torch.tensor(ALPHA), ALPHA / rank
    is_columns = dialect == "lycoris columns"
    axis = 1 if is_columns else 0
    size = weight.shape[axis]
    m = 1 + torch.rand(size, generator=generator)
    key, shape = f"{name}.dora_scale", [size, *(1,) * (weight.ndim - 1)]
    if is_columns:
        shape = [1, size, *(1,) * dims]
    elif dialect in ("peft", "diffusers"):
        key = f"{name}.lora_magnitude_vector"
        shape = [1, size, 1, 1] if dims else [size]  # as PEFT keeps those of convolutions
    elif dialect == "mangled":  # diffusers' converter to kohya's names leaves these dots
        head, _, tail = other.rpartition(".")
        key, shape = f"lora_unet_{head.replace('.', '_')}.{tail}.lora_magnitude_vector", [size]
    tensors[key] = m.reshape(shape)
    whole = weight.double() + scale * change.reshape(weight.shape)
    return tensors, weight, whole, m.double(), axis


def written_name(model, module):
    from tests.host.dialects import diffusers_names

    return next(k for k, at in diffusers_names(model).items() if at == f"{module}.weight")


@pytest.mark.parametrize("strength", [1.0, 0.4])
@pytest.mark.parametrize("shape", LAYERS)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_result_is_the_defining_formula(model, dialect, shape, strength):
    import comfy.lora

    from graft.adapters.file import AdapterFile
    from graft.host.files import loading
    from graft.host.files.strengths import Strengths

    module = LAYERS[shape]
    tensors, weight, whole, m, axis = written(model, module, dialect)
    file = AdapterFile(tensors, {}, "it")
    patched, _, report = loading.load(model, None, file, Strengths(strength))
    assert f"'it': {len(tensors)} of {len(tensors)} tensors applied, |dW| = " in report
    rest = [d for d in range(weight.ndim) if d != axis]
    view = [1] * weight.ndim
    view[axis] = -1
    made = m.reshape(view) * whole / whole.square().sum(rest, keepdim=True).sqrt()
    wanted = weight.double() + strength * (made - weight.double())
    key = f"diffusion_model.{module}.weight"
    (patch,) = patched.patches[key]
    got = comfy.lora.calculate_weight([patch], weight.float().clone(), key)
    assert (got.double() - wanted).abs().max() <= 1e-6 * wanted.abs().max()
    if strength == 1.0:
        norms = got.double().square().sum(rest).sqrt()
        torch.testing.assert_close(norms, m, rtol=1e-6, atol=1e-6)


def test_a_file_of_peft_gives_pefts_own_merged_weight(model):
    """PEFT's layer is the oracle: the state that it saves, loaded here, is the weight that it merges."""
    peft = pytest.importorskip("peft")
    import comfy.lora

    from graft.adapters.file import AdapterFile
    from graft.host.files import loading
    from graft.host.files.strengths import WHOLE

    class Root(torch.nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.it = layer

    for shape, module in LAYERS.items():
        source = model.model.diffusion_model.get_submodule(module)
        weight = source.weight.detach().clone().float()
        if weight.ndim == 4:
            layer = torch.nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
        else:
            layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
        with torch.inference_mode(False), torch.enable_grad():
            layer.weight = torch.nn.Parameter(weight.clone())
            config = peft.LoraConfig(r=2, lora_alpha=2, use_dora=True, target_modules=["it"])
            made = peft.get_peft_model(Root(layer), config)
            with torch.no_grad():
                for name, parameter in made.named_parameters():
                    if "lora" in name:
                        parameter.add_(0.2 * torch.randn(parameter.shape))
            state = peft.get_peft_model_state_dict(made)
            merged = made.merge_and_unload().it.weight.detach()
        other = written_name(model, module)
        tensors = {k.replace("model.it.", f"model.{other}."): v for k, v in state.items()}
        patched = loading.load(model, None, AdapterFile(tensors, {}, shape), WHOLE)[0]
        key = f"diffusion_model.{module}.weight"
        got = comfy.lora.calculate_weight(patched.patches[key], weight.clone(), key)
        assert (got - merged).abs().max() <= 2e-6 * merged.abs().max(), shape


def test_a_file_of_ours_says_how_its_scale_is_to_be_read(model):
    """Written for a host that divides by |W0|, m |W0| / |V|: the stock patch here, and ours on a host that is right."""
    import comfy.lora

    from graft.host.files import dora, stock_form

    module = LAYERS["square"]
    tensors, weight, whole, m, _ = written(model, module, "kohya")
    scale = (m.float() * weight.norm(dim=1) / whole.norm(dim=1).float()).reshape(-1, 1)
    name = next(iter(tensors)).removesuffix(".lora_up.weight")
    key = f"diffusion_model.{module}.weight"
    loaded = comfy.lora.load_lora({**tensors, f"{name}.dora_scale": scale}, {name: key})
    said = {dora.FACT: stock_form.BY_BASE}
    assert dora.exact(loaded, said) == loaded
    wanted = m.reshape(-1, 1) * whole / whole.norm(dim=1, keepdim=True)
    ours = dora._exact(loaded[key], True)
    for patch in (loaded[key], ours):
        got = comfy.lora.calculate_weight([(1.0, patch, 1.0, None, None)], weight.clone(), key)
        assert (got.double() - wanted).abs().max() <= 1e-6 * wanted.abs().max()
    plain = comfy.lora.load_lora(tensors, {name: key})[key]
    stock = comfy.lora.calculate_weight([(1.0, plain, 1.0, None, None)], weight.clone(), key)
    assert (stock.double() - wanted).abs().max() > 1e-2  # why there is a patch of ours


def test_a_row_of_zeros_stays_one():
    from graft.host.files.dora import decomposed

    weight = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    got = decomposed(weight, weight, torch.tensor([[7.0], [10.0]]), False)
    assert got.tolist() == [[0.0, 0.0], [6.0, 8.0]]
