# SPDX-License-Identifier: Apache-2.0
"""Every network in the host: the stock loader makes the weights that the training had, and every family trains."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from tests.host import options, tiny

pytestmark = pytest.mark.comfy

# Beyond the defaults: what takes another path in a loader.
VARIANTS = {
    "lora": (
        {"rslora": True, "ranks": "to_v=3"},
        {"tucker": True, "conv_rank": 2},
        {"init": "olora"},
    ),
    "loha": ({"rank": 1},),
    "lokr": ({"rank": 1}, {"factor": 2, "rank": 3}),
    "oft": ({"constraint": 0.3},),
    "boft": ({"constraint": 0.3, "factors": 2, "rank": 8},),
    "ia3": ({"on_input": "ff.net.2; to_v"},),
    "dora": ({"conv_rank": 2},),
    "full": ({"norms": False, "biases": False},),
}


def names():
    from graft.adapters import NETWORKS

    return NETWORKS.names()


def network(name, blocks="all", **settings):
    from graft.adapters import NETWORKS

    known = NETWORKS.get(name).__dataclass_fields__
    given = {"rank": 4, "blocks": blocks, **settings}
    return NETWORKS.get(name)(**{key: value for key, value in given.items() if key in known})


OF_WEIGHTS = ("lora", "loha", "lokr", "oft", "boft", "dora", "ia3", "full")
OF_BLOCKS = ("bottleneck",)  # see test_bottlenecks.py, too
CASES = [(name, settings) for name in OF_WEIGHTS for settings in ({}, *VARIANTS.get(name, ()))]


@pytest.fixture(scope="module", autouse=True)
def output(comfy, tmp_path_factory):
    import folder_paths

    before = folder_paths.output_directory
    folder_paths.output_directory = str(tmp_path_factory.mktemp("output"))
    yield
    folder_paths.output_directory = before


def test_every_network_is_a_case():
    assert {name for name, _ in CASES} | set(OF_BLOCKS) == set(names())


def wired(family):
    """A MODEL with a LoRA on the wire already, whose weights are those that are trained on."""
    from graft.host.files import result

    model = tiny.model(family)
    layer = next(
        n for n, m in model.model.diffusion_model.named_modules() if n.endswith(("to_q", "qkv"))
    )
    weight = model.model.diffusion_model.get_submodule(layer).weight
    generator = torch.Generator().manual_seed(3)
    lora = {
        f"diffusion_model.{layer}.lora_up.weight": torch.randn(len(weight), 2, generator=generator),
        f"diffusion_model.{layer}.lora_down.weight": 0.1
        * torch.randn(2, weight.shape[1], generator=generator),
    }
    return result.apply(model, lora)[0], layer


@pytest.mark.parametrize("family", ["sdxl", pytest.param("flux", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name,settings", CASES, ids=str)
def test_the_stock_loader_takes_all_of_it_and_makes_the_same_weights(family, name, settings):
    from graft.adapters.attach import Attached
    from graft.host.files import result, stock_form
    from graft.host.model.trainee import trainee

    if family == "flux" and (
        settings.get("on_input") or "ranks" in settings or "tucker" in settings
    ):
        pytest.skip("the patterns are those of a UNet")
    with torch.inference_mode():
        model, layer = wired(family)
    outs, inputs = {}, {}
    with trainee(model, precision="fp32") as t:
        attached = Attached(t.diffusion_model, network(name, **settings), 0, t.device)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in attached.parameters().values():
                p.add_(0.05 * torch.randn(p.shape, generator=generator))
            for key in attached.layers:
                module = t.diffusion_model.get_submodule(key)
                inputs[key] = sample_for(module, generator)
                outs[key] = module(inputs[key])
        native = attached.tensors()
        early = stock_form.exported(
            model, None, native
        )  # while the weights on the wire have its patches in them
        attached.remove()
    file = stock_form.exported(model, None, native)
    assert all(
        torch.allclose(early[key], value, rtol=1e-5, atol=1e-6) for key, value in file.items()
    )
    patched, report = result.apply(model, file)
    assert report.complete and report.relative_change > 0, report.text
    changed = 0
    root = model.model.diffusion_model
    for key in attached.layers:
        module = root.get_submodule(key)
        x = inputs[key]
        parts = {p: merged(patched, f"diffusion_model.{key}.{p}") for p in module._parameters}
        weight, bias = parts.get("weight"), parts.get("bias")
        with torch.no_grad():
            if not hasattr(module, "in_features") and not hasattr(module, "in_channels"):
                expected = torch.func.functional_call(module, parts, x)
            elif x.ndim == 4:
                expected = F.conv2d(x, weight, bias, module.stride, module.padding)
            else:
                expected = F.linear(x, weight, bias)
        scale = float(expected.abs().max())
        torch.testing.assert_close(outs[key], expected, rtol=1e-5, atol=1e-5 * scale, msg=key)
        changed += 1
    assert changed == len(attached.layers) and layer in attached.layers


def sample_for(module, generator):
    if hasattr(module, "in_features"):
        return torch.randn(3, module.in_features, generator=generator)
    if not hasattr(module, "in_channels"):  # a normalization
        return torch.randn(2, len(next(module.parameters())), generator=generator)
    return torch.randn(2, module.in_channels, 5, 6, generator=generator)


def merged(patcher, key):
    """A weight as the host makes it when it loads the MODEL."""
    import comfy.lora

    found = patcher.get_key_patches(key).get(key)
    if found is None:
        return None
    (weight, _), *patches = found
    with torch.inference_mode(False), torch.no_grad():
        return comfy.lora.calculate_weight(patches, weight.detach().clone().float(), key)


def train(name, family="sdxl", state=None, steps=2, total=0, **settings):
    from graft.host import engine
    from graft.trainers.data import Dataset, Item
    from graft.trainers.objectives import Objective
    from graft.trainers.optimizers import Optimizer
    from graft.trainers.optimizers.adamw import AdamW
    from graft.trainers.plan import Plan

    generator = torch.Generator().manual_seed(0)
    items = tuple(
        Item((f"a zork {i}",), pixels=torch.rand(64, 64, 3, generator=generator)) for i in range(2)
    )
    with torch.inference_mode():
        model = tiny.model(family)
        vae = tiny.vae(family) if family in ("sd3", "flux") else tiny.kl_vae()
        clip = tiny.clip("sd3" if family == "flux" else family)
        request = engine.Request(
            model,
            Dataset(items, resolution=64),
            vae,
            clip,
            network=network(name, "attention", **settings),
            objective=Objective(preserve=0.0),
            optimizer=Optimizer(AdamW(1e-2)),
            plan=Plan(steps, total, batch_size=2),
            state=state,
        )
        return engine.train(request)


@pytest.mark.parametrize("name", [*OF_WEIGHTS, *OF_BLOCKS])
def test_it_trains_is_handed_on_whole_and_goes_on_from_its_state(name):
    settings = {"module_dropout": 0.2}
    whole = train(name, steps=3, **settings)
    assert whole.report.count("tensors applied") == 1
    changed = ("tensors applied, |dW| =" in whole.report, "changed most" in whole.report)
    assert changed == (name in OF_WEIGHTS,) * 2
    losses = whole.loss_map["loss"]
    assert len(losses) == 3 and all(0 < loss < 100 for loss in losses)
    head = train(name, steps=2, total=3, **settings)
    tail = train(name, steps=1, total=3, state=head.state, **settings)
    assert options.same(whole, tail)
    with torch.inference_mode():
        before, after = (tiny.sample(m, "sdxl") for m in (tiny.model("sdxl"), whole.model))
    assert not torch.allclose(before, after, atol=1e-4)
    said = whole.adapter.metadata.get("graft.dora_scale")
    assert said == ("m |W0| / |V|" if name == "dora" else None)


@pytest.mark.parametrize("name", ["loha", "lokr", "oft", "boft", "dora", "ia3", "full"])
@pytest.mark.parametrize("family", ["sd3", pytest.param("sd15", marks=pytest.mark.slow)])
def test_it_trains_in_other_families(name, family):
    made = train(name, family)
    total = len(made.lora_model)
    assert f"{total} of {total} tensors applied" in made.report


@pytest.mark.parametrize("name", OF_BLOCKS)
def test_a_network_of_blocks_is_for_unets(name):
    made = train(name, "sd15")
    total = len(made.adapter.tensors)
    assert f"{total} of {total} tensors applied" in made.report
    for family, kind in (("sd3", "OpenAISignatureMMDITWrapper"), ("flux", "Flux")):
        with pytest.raises(
            ValueError, match=f"blocks of a UNet.*; {kind} has no transformer block"
        ):
            train(name, family)


def test_a_dora_is_written_for_the_loader_that_there_is(monkeypatch):
    """A loader that divides by |V| gets the magnitude as it is."""
    from graft.adapters import export
    from graft.host.files import stock_form

    weight = torch.tensor([[3.0, 4.0]])
    tensors = {
        "a.lora_up.weight": torch.ones(1, 1),
        "a.lora_down.weight": torch.tensor([[2.0, 8.0]]),
        "a.alpha": torch.tensor(1.0),
        "a.lora_magnitude_vector": torch.tensor([10.0]),
    }
    raw = export.exported(tensors, lambda key: weight, divides_by_base=False)
    assert raw["a.dora_scale"].tolist() == [[10.0]]
    # V = (5, 12), |V| = 13, |W0| = 5: 10 * 5 / 13
    scaled = export.exported(tensors, lambda key: weight, divides_by_base=True)
    assert float(scaled["a.dora_scale"]) == pytest.approx(50 / 13, rel=1e-6)
    assert stock_form.divides_by_base()  # of the versions that are tested with


def test_a_network_that_cannot_begin_with_a_file_says_so():
    from graft.adapters.file import AdapterFile

    lora = train("lora")
    file = AdapterFile(lora.lora_model, {}, "cat")
    begun = start("dora", file)
    assert "begins with 'cat'" in begun.report
    for name in ("loha", "lokr", "oft", "boft", "ia3", *OF_BLOCKS):
        with pytest.raises(ValueError, match="cannot begin with a LoRA; choose the network 'lora'"):
            start(name, file)
    with pytest.raises(ValueError, match="start_from"):
        start("lora", AdapterFile(train("dora").lora_model, {}, "dora"))
    for name in OF_BLOCKS:
        with pytest.raises(ValueError, match="'mine', has bottleneck adapters.* Load Adapter"):
            start(name, AdapterFile(train(name).adapter.tensors, {}, "mine"))


def start(name, file):
    from graft.host import engine
    from graft.trainers.data import Dataset, Item
    from graft.trainers.plan import Plan

    with torch.inference_mode():
        request = engine.Request(
            tiny.model("sdxl"),
            Dataset((Item(("a zork",), pixels=torch.rand(64, 64, 3)),), resolution=64),
            tiny.kl_vae(),
            tiny.clip("sdxl"),
            network=network(name, "attention"),
            plan=Plan(1),
        )
        return engine.train(dataclasses.replace(request, start_from=file))


@pytest.mark.parametrize("name", ["lora", "loha", "lokr", "oft", "boft", "dora", "ia3", "full"])
def test_a_file_for_layers_of_another_shape_is_not_counted_as_applied(name):
    """The host would log an error when it loads the model, and leave the weight as it is."""
    from graft.adapters.attach import Attached
    from graft.host.files import result

    sizes = {"output_blocks.0.1.proj_in": (24, 32), "output_blocks.0.1.proj_out": None}
    model = tiny.model("sdxl", inference=False)
    root = torch.nn.Module()
    for key, size in sizes.items():
        module = torch.nn.Linear(*size) if size else model.model.diffusion_model.get_submodule(key)
        parent = root
        *path, leaf = key.split(".")
        for part in path:
            if not hasattr(parent, part):
                parent.add_module(part, torch.nn.Module())
            parent = getattr(parent, part)
        parent.add_module(leaf, module)
    attached = Attached(root, network(name), 0)
    weight = {f"diffusion_model.{k}": v for k, v in root.state_dict().items()}
    file = export_of(attached.tensors(), weight)
    attached.remove()
    _, report = result.apply(model, file)
    wrong = {key for key in file if ".proj_in." in key and "diff_b" not in key}
    assert wrong <= set(report.misshapen) and not any("proj_out" in k for k in report.misshapen)
    assert report.applied == report.total - len(report.misshapen)


def export_of(tensors, weight):
    from graft.adapters import export

    return export.exported(tensors, lambda key: weight.get(key, torch.empty(0)), True)


def test_tensors_of_too_few_dimensions_do_not_fit():
    from graft.host.files import result

    model = tiny.model("sdxl", inference=False)
    key = "diffusion_model.output_blocks.0.1.proj_in"
    right = {"diffusion_model.output_blocks.0.1.proj_out.diff_b": torch.zeros(64)}
    flat = torch.ones(3)
    for names in (
        ("lora_up.weight", "lora_down.weight"),
        ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
        ("lokr_w1_a", "lokr_w1_b", "lokr_w2"),
    ):
        _, report = result.apply(model, right | {f"{key}.{name}": flat for name in names})
        assert (report.applied, report.total) == (1, 1 + len(names)), names
    file = {f"{key}.{end}": torch.ones(4, 4) for end in ("lora_up.weight", "lora_down.weight")}
    _, report = result.apply(model, right | file | {f"{key}.dora_scale": flat})
    assert report.applied == 1
