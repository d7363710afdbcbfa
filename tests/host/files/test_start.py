# SPDX-License-Identifier: Apache-2.0
"""Training on from a LoRA file: every dialect against ComfyUI's own loader, what is refused, and whole runs."""

import dataclasses
import json

import pytest
import torch

from tests.host import dialects as written
from tests.host import tiny

pytestmark = pytest.mark.comfy

CASES = [(family, d) for family in ("sdxl", "sd15") for d in written.UNET]
CASES += [(family, d) for family in ("sd3", "flux") for d in written.TRANSFORMER]


@pytest.fixture(scope="module")
def models():
    from tests.host import inprocess

    inprocess.start()
    config = tiny._unet_config
    with pytest.MonkeyPatch.context() as patch:
        # The host's map of diffusers' names knows Flux with four times as wide a middle only, as it is published.
        patch.setattr(
            tiny,
            "_unet_config",
            lambda f: config(f) | {"mlp_ratio": 4.0} if f == "flux" else config(f),
        )
        return {f: tiny.model(f, inference=False) for f in ("sdxl", "sd15", "sd3", "flux")}


def adapter(tensors, metadata=None, **more):
    from graft.adapters.file import AdapterFile

    return AdapterFile(tensors, metadata or {}, name="cat", **more)


def assert_equal_change(model, pairs, stock):
    """Base and dW of ours are the weights that the stock loader makes, to 1e-6 of their size; no layer is left."""
    assert set(pairs) == set(stock) and len(pairs) > 10
    for module, pair in pairs.items():
        base = model.model.diffusion_model.get_submodule(module).weight.detach()
        change = (pair.scale * pair.up.double() @ pair.down.double()).reshape(base.shape)
        error = (base.double() + change - stock[module].double()).norm() / stock[module].norm()
        assert float(error) < 1e-6, module
        assert float(change.norm() / base.norm()) > 0.05


@pytest.mark.parametrize(("family", "dialect"), CASES)
def test_a_file_of_every_dialect_is_read_as_the_stock_loader_does(models, family, dialect):
    from graft.host.files import start

    model = models[family]
    file, oracle = written.written(model, dialect)
    found = start.read(model, adapter(file))
    assert not (found.text or found.homeless or found.misshapen or found.other)
    assert_equal_change(model, found.pairs, written.patched(model, oracle))


ATTN = "transformer_blocks.0.attn1"
REAL = [  # names as sd-scripts, diffusers, PEFT and B-LoRA write them for the published models
    (
        "SD15",
        f"lora_unet_down_blocks_0_attentions_0_{ATTN}_to_q".replace(".", "_"),
        f"input_blocks.1.1.{ATTN}.to_q",
    ),
    ("SD15", "lora_unet_mid_block_attentions_0_proj_in", "middle_block.1.proj_in"),
    (
        "SD15",
        f"base_model.model.up_blocks.3.attentions.2.{ATTN}.to_out.0",
        f"output_blocks.11.1.{ATTN}.to_out.0",
    ),
    (
        "SDXL",
        f"lora_unet_input_blocks_4_1_{ATTN}_to_q".replace(".", "_"),
        f"input_blocks.4.1.{ATTN}.to_q",
    ),
    (
        "SDXL",
        f"unet.unet.up_blocks.0.attentions.0.{ATTN}.processor.to_q",
        f"output_blocks.0.1.{ATTN}.to_q",
    ),
    ("SDXL", f"unet.up_blocks.0.attentions.1.{ATTN}.to_v", f"output_blocks.1.1.{ATTN}.to_v"),
    ("SDXL", "unet.down_blocks.1.resnets.0.time_emb_proj", "input_blocks.4.0.emb_layers.1"),
    ("SD3", "transformer.transformer_blocks.3.attn.to_k", "joint_blocks.3.x_block.attn.qkv"),
    ("Flux", "transformer.single_transformer_blocks.5.attn.to_k", "single_blocks.5.linear1"),
    ("Flux", "lora_unet_double_blocks_7_img_attn_qkv", "double_blocks.7.img_attn.qkv"),
]


@pytest.mark.parametrize("family", ["SD15", "SDXL", "SD3", "Flux"])
def test_names_of_the_published_layouts_are_known(family):
    from graft.host.files import start
    from graft.loaders.dialects import look_up
    from tests.host.files.test_keys import build

    places = start.places(build(family))
    for _, name, module in (case for case in REAL if case[0] == family):
        assert look_up(name, places).module == module
    if family == "Flux":
        assert look_up(REAL[-2][1], places).offset == (0, 3072, 3072)


def test_what_the_host_reads_itself_needs_no_conversion_for_the_oracle(models):
    """The oracle of the dialects that it does read is the file as it is."""
    read = ("generic", "core", "kohya ldm", "kohya diffusers", "diffusers processor")
    for dialect in read:
        file, oracle = written.written(models["sdxl"], dialect)
        plain = written.patched(models["sdxl"], file)
        assert {k: v for k, v in plain.items() if "bias" not in k}.keys() == written.patched(
            models["sdxl"], oracle
        ).keys()


def test_diffusers_own_conversion_gives_the_same(models):
    """A PEFT file as diffusers converts it to kohya's for ComfyUI, alpha being the rank there."""
    from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya

    from graft.host.files import start

    file, _ = written.written(models["sdxl"], "diffusers peft")
    theirs = {k: t.clone() for k, t in convert_state_dict_to_kohya(dict(file)).items()}
    found = start.read(models["sdxl"], adapter(file))
    assert_equal_change(models["sdxl"], found.pairs, written.patched(models["sdxl"], theirs))


def test_alphas_that_diffusers_keeps_in_the_metadata_count(models):
    """PEFT: dW = lora_alpha / r, with rsLoRA lora_alpha / sqrt(r); a layer's own alpha goes before."""
    from graft.host.files import start

    file, _ = written.written(models["sdxl"], "diffusers peft")
    first, second = sorted(start.read(models["sdxl"], adapter(file)).pairs)[:2]
    name = next(
        n
        for n, at, _ in written.layers(models["sdxl"], "diffusers peft")
        if at == f"{first}.weight"
    )
    config = {
        "unet.r": 4,
        "unet.lora_alpha": 12,
        "unet.alpha_pattern": {name.removeprefix("unet."): 2},
    }
    found = start.read(models["sdxl"], adapter(file, {"lora_adapter_metadata": json.dumps(config)}))
    assert (found.pairs[first].scale, found.pairs[second].scale) == (0.5, 3.0)
    config["unet.use_rslora"] = True
    found = start.read(models["sdxl"], adapter(file, {"lora_adapter_metadata": json.dumps(config)}))
    assert found.pairs[second].scale == pytest.approx(6.0)


def test_a_locon_with_a_core_is_read_as_the_stock_loader_does(models):
    from graft.host.files import start

    name, g = "input_blocks.1.0.in_layers.2", torch.Generator().manual_seed(1)
    weight = models["sdxl"].model.diffusion_model.get_submodule(name).weight
    file = {
        f"lora_unet_{name.replace('.', '_')}.{end}": 0.5 * torch.randn(shape, generator=g)
        for end, shape in (
            ("lora_up.weight", (weight.shape[0], 4, 1, 1)),
            ("lora_mid.weight", (4, 4, 3, 3)),
            ("lora_down.weight", (4, weight.shape[1], 1, 1)),
        )
    }
    pair = start.read(models["sdxl"], adapter(file)).pairs[name]
    stock = written.patched(models["sdxl"], file)[name]
    change = (pair.scale * pair.up @ pair.down).reshape(weight.shape)
    torch.testing.assert_close(weight.detach() + change, stock, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def wires(models):
    found = {}
    for family in ("sdxl", "sd15"):
        found |= {
            family: models[family],
            f"clip_{family}": tiny.clip(family),
            f"vae_{family}": tiny.vae(family),
        }
    return found


@pytest.fixture
def output(tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return tmp_path


def request(wires, family="sdxl", steps=2, rank=4, alpha=0.0, blocks="attn2", lr=1e-3, **changes):
    from graft.adapters.lora import LoRA
    from graft.host.engine import Request
    from graft.trainers.data import Dataset, Item
    from graft.trainers.objectives import Objective
    from graft.trainers.optimizers import Optimizer
    from graft.trainers.optimizers.adamw import AdamW
    from graft.trainers.plan import Plan

    g = torch.Generator().manual_seed(0)
    items = [Item("a zork", pixels=torch.rand(64, 64, 3, generator=g)) for _ in range(2)]
    return Request(
        wires[family],
        Dataset(tuple(items)),
        wires[f"vae_{family}"],
        wires[f"clip_{family}"],
        network=LoRA(rank, alpha, blocks),
        objective=changes.pop("objective", Objective()),
        optimizer=Optimizer(AdamW(lr)),
        plan=Plan(steps, batch_size=2, **changes.pop("plan", {})),
        **changes,
    )


def train(*args, **kwargs):
    from graft.host import engine

    with torch.inference_mode():
        return engine.train(request(*args, **kwargs))


def only(file, *parts):
    return {key: t for key, t in file.items() if any(part in key for part in parts)}


def test_our_own_file_comes_back_as_it_was_when_nothing_is_learned(wires, output):
    """With learning rate 0, after a round through the disk and with other settings of alpha: the same bits."""
    from graft.loaders import lora_file

    first = train(wires, alpha=3.0)
    path = next(output.rglob("*.safetensors"))
    again = train(wires, alpha=1.0, lr=0.0, start_from=lora_file.read(path))
    assert set(again.lora_model) == set(first.lora_model)
    assert all(torch.equal(t, first.lora_model[key]) for key, t in again.lora_model.items())
    count = len(first.lora_model) // 3
    assert (
        f"begins with 'graft' (rank 4, alpha 3): {count} of {count} layers as they are"
        in again.report
    )


@pytest.mark.parametrize("dialect", ["generic", "kohya diffusers", "peft default", "core"])
@pytest.mark.parametrize(("rank", "bound"), [(4, 1e-6), (7, 1e-6), (2, None)])
def test_model_out_of_a_run_that_learns_nothing_is_what_the_stock_loader_makes(
    models, wires, output, dialect, rank, bound
):
    """At a rank that loses nothing; else the best of that rank, by torch.linalg.svd of the stock loader's change."""
    from graft.host.files import result

    file, oracle = (
        only(f, "output_blocks", "up_blocks") for f in written.written(models["sdxl"], dialect)
    )
    stock = written.patched(models["sdxl"], oracle)
    out = train(wires, rank=rank, blocks="output_blocks", lr=0.0, steps=1, start_from=adapter(file))
    ours = written.patched(models["sdxl"], out.lora_model)
    assert set(stock) <= set(ours)
    for module, weight in stock.items():
        base = models["sdxl"].model.diffusion_model.get_submodule(module).weight.detach()
        wanted = weight.double()
        if bound is None:
            u, s, vh = torch.linalg.svd((wanted - base.double()).flatten(1), full_matrices=False)
            wanted = base.double() + (u[:, :rank] * s[:rank] @ vh[:rank]).reshape(base.shape)
        assert float((ours[module].double() - wanted).norm() / wanted.norm()) < (bound or 2e-6), (
            module
        )
    assert result.apply(models["sdxl"], out.lora_model)[1].complete


def test_the_kept_energy_is_in_the_report_and_loss_of_it_warned_of(
    models, wires, output, monkeypatch
):
    from graft.host import engine

    file = only(written.written(models["sdxl"], "generic")[0], "attn2")
    shares = []
    for module, weight in written.patched(models["sdxl"], file).items():
        base = models["sdxl"].model.diffusion_model.get_submodule(module).weight.detach()
        shares.append(torch.linalg.svdvals((weight - base).double().flatten(1))[:4].square())
    kept = torch.stack(shares)
    whole, least = kept[:, :3].sum() / kept.sum(), (kept[:, :3].sum(1) / kept.sum(1)).min()
    told = []
    monkeypatch.setattr(engine.graph, "show_text", lambda node, text: told.append(text))
    report = train(wires, rank=3, start_from=adapter(file)).report
    said = f"re-ranked by SVD, {int(1e4 * whole) / 100:g} % of their energy kept (least {int(1e4 * least) / 100:g} %,"
    assert said in report
    assert any(said in text for text in told)
    start = engine._Run(request(wires, rank=3, start_from=adapter(file))).start
    attached = engine.Attached(
        models["sdxl"].model.diffusion_model, request(wires, rank=3).network, 0
    )
    try:
        (warning,) = start.begin(engine.Learned(attached)).warnings
    finally:
        attached.remove()
    assert "rank 4 loses nothing" in warning


def test_layers_that_the_file_lacks_begin_fresh_and_are_counted(models, wires, output):
    file = only(
        written.written(models["sdxl"], "generic")[0], "output_blocks.0.1", "input_blocks.0.0."
    )
    out = train(
        wires, blocks="output_blocks, input_blocks", lr=0.0, steps=1, start_from=adapter(file)
    )
    ups = {k: t for k, t in out.lora_model.items() if k.endswith("lora_up.weight")}
    fresh = [k for k, t in ups.items() if not bool(t.any())]
    began = len(only(file, "lora_up"))
    assert len(fresh) == len(ups) - began > 0
    assert (
        f"{began} of {len(ups)} layers as they are, {len(fresh)} that are not in it fresh"
        in out.report
    )


def test_a_second_run_goes_on_learning(wires, output):
    """The validation loss at fixed noise: less after the first run, and less again after one that begins with it."""
    from graft.trainers.objectives import Objective

    settings = {"blocks": "all", "rank": 8, "lr": 3e-3, "objective": Objective(preserve=0.0)}
    held = {"validation": request(wires).dataset, "plan": {"validate_every": 30}}
    first = train(wires, steps=30, **settings, **held)
    second = train(wires, steps=30, **settings, **held, start_from=first.adapter)
    before, between = (first.loss_map["validation"][i] for i in (0, -1))
    begun, after = (second.loss_map["validation"][i] for i in (0, -1))
    assert between < before
    assert begun == pytest.approx(between, rel=1e-4)
    assert after < between


def test_a_start_is_part_of_what_a_run_is_and_runs_are_repeatable(wires, output):
    from graft.host import engine

    first, other = train(wires), train(wires, plan={"seed": 1})
    one, two = (train(wires, start_from=first.adapter) for _ in range(2))
    assert all(torch.equal(t, two.lora_model[key]) for key, t in one.lora_model.items())
    assert one.run == two.run and one.adapter.metadata == two.adapter.metadata
    runs = {
        engine._Run(request(wires, start_from=s)).run for s in (None, first.adapter, other.adapter)
    }
    assert runs == {first.run, one.run, engine._Run(request(wires, start_from=other.adapter)).run}
    assert len(runs) == 3
    assert one.adapter.metadata["graft.start"] and "graft.start" not in first.adapter.metadata


def test_a_run_that_began_with_a_file_goes_on_from_its_state(wires, output):
    """3 + 3 steps equal 6, though the file's alpha is another than the settings'."""
    from graft.trainers.optimizers.adamw import AdamW  # noqa: F401 - registers it

    cat = train(wires, alpha=1.5).adapter
    whole = train(wires, steps=6, start_from=cat)
    head = train(wires, steps=3, plan={"total_steps": 6}, start_from=cat)
    tail = train(wires, steps=3, plan={"total_steps": 6}, state=head.state)
    assert tail.loss_map["loss"] == whole.loss_map["loss"]
    assert all(torch.equal(t, tail.lora_model[key]) for key, t in whole.lora_model.items())


def test_preservation_still_compares_with_the_model_on_the_wire(models, wires):
    """Adapters off is the base: what the run begins with is in the adapters only."""
    from graft.adapters.attach import Attached
    from graft.adapters.learned import Learned
    from graft.host.files import start

    asked = request(
        wires, start_from=adapter(only(written.written(models["sdxl"], "generic")[0], "attn2"))
    )
    root, begun = models["sdxl"].model.diffusion_model, start.prepare(asked)
    name = next(iter(begun.pairs))
    x = torch.randn(2, begun.pairs[name].down.shape[1])
    base = root.get_submodule(name)(x)
    attached = Attached(root, asked.network, 0)
    try:
        begun.begin(Learned(attached))
        assert not torch.allclose(root.get_submodule(name)(x), base)
        with attached.off():
            assert torch.equal(root.get_submodule(name)(x), base)
    finally:
        attached.remove()


def refused(wires, start_from, match, **changes):
    from graft.host import engine

    with pytest.raises(ValueError, match=match):
        engine._Run(request(wires, start_from=start_from, **changes))


def test_a_part_that_would_be_lost_is_refused_with_the_way_out(models, wires, output):
    from graft.host.files import start

    file = written.written(models["sdxl"], "generic")[0]
    attention = only(file, "attn")
    refused(
        wires, adapter(attention), r"blocks 'attn2' trains .*set blocks to 'attention'.*leave_out"
    )
    refused(wires, adapter(file), "set blocks to 'all'")
    assert (
        start.prepare(request(wires, blocks="attention", start_from=adapter(attention))).notes == ()
    )
    assert not list(output.rglob("*.safetensors"))
    left = start.prepare(request(wires, start_from=adapter(attention, leave_out=True)))
    (note,) = left.notes
    assert note.startswith("Left out of 'cat'") and "attn1" in note
    assert all("attn2" in module for module in left.pairs)


def test_layers_that_change_nothing_are_no_loss(models, wires):
    from graft.host.files import start

    file = only(written.written(models["sdxl"], "generic")[0], "attn")
    zero = {key: t * 0 if "attn1" in key and "lora_up" in key else t for key, t in file.items()}
    assert start.prepare(request(wires, start_from=adapter(zero))).notes == ()


@pytest.mark.parametrize(
    "extra",
    [
        ".diff_b",
        ".dora_scale",
        ".hada_w1_a",
        ".w_norm",
        ".lora_B.bias",
        ".set_weight",
        ".reshape_weight",
    ],
)
def test_what_is_no_plain_lora_is_named_and_refused(models, wires, extra):
    from graft.host.files import start

    file = only(written.written(models["sdxl"], "generic")[0], "attn2")
    name = next(iter(file)).partition(".lora_")[0]
    file[f"{name}{extra}"] = torch.ones(4)
    refused(wires, adapter(file), rf"cannot be trained further .*{name}")
    left = start.prepare(request(wires, start_from=adapter(file, leave_out=True)))
    assert name in left.notes[0]
    assert (name.removeprefix("diffusion_model.") in left.pairs) == (extra != ".dora_scale")


def test_layers_of_text_encoders_are_left_out_and_told(models, wires):
    from graft.host.files import start

    file = only(written.written(models["sdxl"], "kohya ldm")[0], "attn2")
    for prefix in (
        "lora_te1_text_model_encoder_layers_0_mlp_fc1",
        "text_encoder_2.text_model.encoder.layers.0.q_proj",
    ):
        file |= {
            f"{prefix}.lora_up.weight": torch.ones(4, 2),
            f"{prefix}.lora_down.weight": torch.ones(2, 4),
        }
    (note,) = start.prepare(request(wires, start_from=adapter(file))).notes
    assert (
        "2 layers of text encoders" in note
        and "lora_te1_text_model_encoder_layers_0_mlp_fc1" in note
    )


def test_a_file_for_another_model_is_refused_with_examples(models, wires):
    flux, sdxl = (written.written(models[f], "generic")[0] for f in ("flux", "sdxl"))
    key = next(iter(flux)).partition(".lora_")[0]
    refused(wires, adapter(flux), f"Nothing in it fits SDXL, for example {key}")
    text = {
        "lora_te_x.lora_up.weight": torch.ones(4, 2),
        "lora_te_x.lora_down.weight": torch.ones(2, 4),
    }
    refused(wires, adapter(text), "for example lora_te_x")
    refused(wires, adapter(flux, leave_out=True), "Nothing in it fits SDXL")
    # Cross-attention of SD 1.5 has another width: its layers are misshapen, the rest have places.
    refused(
        wires,
        adapter(only(sdxl, "attn2")),
        r"another shape .*96.* for .*48|no place",
        family="sd15",
    )


def test_a_state_and_a_start_are_refused_together(wires, output):
    made = train(wires)
    refused(
        wires, made.adapter, r"state \(after step 2\) and start_from \('graft'\)", state=made.state
    )


def test_a_model_that_has_the_lora_already_is_warned_of(models, wires):
    import comfy.sd

    from graft.host.files import start

    file = only(written.written(models["sdxl"], "kohya ldm")[0], "attn2")
    carrying = comfy.sd.load_lora_for_models(models["sdxl"], None, file, 1.0, 0.0)[0]
    asked = dataclasses.replace(request(wires, start_from=adapter(file)), model=carrying)
    (note,) = start.prepare(asked).notes
    assert "counts twice" in note and f"in {len(file) // 3} layers" in note


def test_an_alpha_that_is_not_used_is_said(models, wires):
    from graft.host.files import start

    file = only(written.written(models["sdxl"], "generic")[0], "attn2")
    (note,) = start.prepare(request(wires, alpha=1.0, start_from=adapter(file))).notes
    assert note.startswith("alpha 1 is not used")
    assert start.prepare(request(wires, alpha=3.0, start_from=adapter(file))).notes == ()
    asked = request(wires, alpha=1.5, start_from=adapter(file))  # 1.5 sqrt(4) = 3
    rooted = dataclasses.replace(asked.network, rslora=True)
    assert start.prepare(dataclasses.replace(asked, network=rooted)).notes == ()
    patterns = dataclasses.replace(asked.network, alpha=3.0, alphas="to_k=2")
    (note,) = start.prepare(dataclasses.replace(asked, network=patterns)).notes
    count = sum(name.endswith("to_k.lora_up.weight") for name in file)
    assert note.startswith(f"alpha 2 is not used in {count} layers")
