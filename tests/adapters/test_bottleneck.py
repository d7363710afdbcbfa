# SPDX-License-Identifier: Apache-2.0
"""Bottleneck adapters: every position against a block written out, and parameters counted by hand."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from graft.adapters import NETWORKS, bottleneck, positions
from graft.adapters.attach import Attached
from graft.adapters.streams import Flow
from tests.adapters import blocks

ALL = "; ".join("-".join(pair) for pair in positions.PAIRS)
OF_BLOCK = [p for p in positions.PAIRS if positions.kind_of(p) == positions.TRANSFORMER]
OF_RESIDUAL = [p for p in positions.PAIRS if positions.kind_of(p) == positions.RESIDUAL]


def attached(model, pairs, seed=0, **settings):
    said = pairs if isinstance(pairs, str) else "; ".join("-".join(pair) for pair in pairs)
    settings = {"rank": 4, "init": "pytorch", "positions": said, **settings}
    return Attached(model, NETWORKS.get("bottleneck")(**settings), seed)


def written_out(layer, act=F.relu, scale=1.0):
    """The adapters of a layer as functions, from its tensors alone."""
    tensors = layer.tensors()

    def made(start, is_conv):
        t = {
            n: tensors[f"{start}.{n}"] for n in ("down.weight", "down.bias", "up.weight", "up.bias")
        }
        if not is_conv:
            return lambda h: (
                scale
                * (act(h @ t["down.weight"].T + t["down.bias"]) @ t["up.weight"].T + t["up.bias"])
            )
        norm = [tensors[f"{start}.norm.{part}"] for part in ("weight", "bias")]

        def convolved(h):
            h = F.silu(F.group_norm(h, 2, *norm))
            inner = act(F.conv2d(h, t["down.weight"], t["down.bias"], padding=1))
            return scale * F.conv2d(inner, t["up.weight"], t["up.bias"], padding=1)

        return convolved

    starts = {key.removesuffix(".scale") for key in tensors if key.endswith(".scale")}
    return {tuple(start.split(".")[1:3]): made(start, ".res" in start) for start in sorted(starts)}


def data(shape, seed=2):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("pairs", [[pair] for pair in OF_BLOCK] + [OF_BLOCK], ids=str)
@pytest.mark.parametrize("writes", [False, True])
def test_every_position_of_a_transformer_block(pairs, writes):
    model, x = blocks.base(), data((2, 5, blocks.WIDTH))
    plain = model.block(x)
    layer = attached(model, pairs).layers["block"]
    expected = blocks.flow_of(model.block, x, written_out(layer))
    model.block.writes = writes
    assert not torch.allclose(expected, plain, atol=1e-3)
    torch.testing.assert_close(model.block(x.clone()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pairs", [[pair] for pair in OF_RESIDUAL] + [OF_RESIDUAL], ids=str)
@pytest.mark.parametrize("name,channels", [("residual", blocks.CHANNELS), ("same", blocks.OUT)])
def test_every_position_of_a_residual_block(pairs, name, channels):
    model, x = blocks.base(), data((2, channels, 6, 5))
    block = model.get_submodule(name)
    plain = block(x)
    layer = attached(model, pairs).layers[name]
    expected = blocks.flow_of(block, x, written_out(layer))
    assert not torch.allclose(expected, plain, atol=1e-3)
    torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "activation,act",
    [("relu", F.relu), ("sigmoid", torch.sigmoid), ("silu", F.silu), ("identity", lambda h: h)],
)
def test_activation_and_scale(activation, act):
    model, x = blocks.base(), data((2, 5, blocks.WIDTH))
    layer = attached(model, "attn2o-ffni", activation=activation, scale=0.5).layers["block"]
    expected = blocks.flow_of(model.block, x, written_out(layer, act, 0.5))
    torch.testing.assert_close(model.block(x), expected, rtol=1e-5, atol=1e-5)


def test_an_adapter_of_no_scale_changes_nothing():
    model, x = blocks.base(), data((2, 5, blocks.WIDTH))
    plain = model.block(x)
    attached(model, "attn1i-transo", scale=0.0)
    assert torch.equal(model.block(x), plain)


def test_the_parameters_are_those_of_the_paper():
    """sum(2 d mid + mid + d) over 16 blocks: 60 in SD1, 1,511,040 (0.176 % of 859.5M)."""
    settings = NETWORKS.get("bottleneck")(rank=60)
    widths = [320] * 2 + [640] * 2 + [1280] * 2 + [1280] + [1280] * 3 + [640] * 3 + [320] * 3
    count = 0
    for width in set(widths):
        with torch.device("meta"):
            block = blocks.Transformer()
            block.norm1 = nn.LayerNorm(width)
        layer = settings.build(block, torch.Generator())
        own = sum(p.numel() for p in layer.parameters())
        assert own == 2 * width * 60 + 60 + width
        count += own * widths.count(width)
    assert count == 1_511_040


def test_a_residual_block_has_about_as_many_parameters_by_default():
    """320 channels: 2 * 9 * 320 * 7 + 7 + 320 + 2 * 320 = 41,287 beside 2 * 320 * 60 + 380 = 38,780."""
    with torch.device("meta"):
        block = blocks.Residual(320, 320)
    layer = NETWORKS.get("bottleneck")(rank=60, positions="resi-reso").build(
        block, torch.Generator()
    )
    assert sum(p.numel() for p in layer.parameters()) == 41_287


def test_initial_values_are_those_of_a_linear_layer():
    """U(-1 / sqrt(in), 1 / sqrt(in)): a standard deviation of 1 / sqrt(3 in)."""
    with torch.device("meta"):
        block = blocks.Transformer()
        block.norm1 = nn.LayerNorm(400)
    settings = NETWORKS.get("bottleneck")(rank=100, init="pytorch")
    values = dict(settings.build(block, torch.Generator().manual_seed(0)).named_parameters())
    for side, inputs in (("down", 400), ("up", 100)):
        for part in ("weight", "bias"):
            found = values[f"parts.attn2o-ffni.{side}.{part}"]
            assert float(found.detach().abs().max()) <= inputs**-0.5
            assert float(found.detach().std()) == pytest.approx((3 * inputs) ** -0.5, rel=0.1)


def test_names_of_the_seed_and_of_files():
    assert positions.read("seq-attn2, para-res\ncross-attn2") == (
        ("attn2o", "ffni"),
        ("resi", "reso"),
        ("attn2c", "attn2c"),
    )
    assert len(positions.PAIRS) == 20  # the cells of the paper's heat-map
    keys = attached(blocks.base(), "attn2o-ffni; reso-reso", activation="silu").tensors()
    assert {key for key in keys if ".block." in key} == {
        f"diffusion_model.block.bottleneck.attn2o.ffni.silu.{leaf}"
        for leaf in ("down.weight", "down.bias", "up.weight", "up.bias", "scale")
    }
    assert "diffusion_model.same.bottleneck.reso.reso.silu.norm.bias" in keys


@pytest.mark.parametrize(
    "text,message",
    [
        (
            "attn2o-attn1i",
            "cannot go from attn2o to 'attn1i'.* from attn2o it can go to ffni or transo",
        ),
        ("attn2c-ffni", "from attn2c it can go to attn2c"),
        ("resi-ffni", "resi or reso"),
        ("attn3o-ffni", "Unknown input of a bottleneck adapter 'attn3o'. Did you mean"),
        ("attn2o", "must read input-output"),
        ("", "positions is empty"),
        ("seq-attn2; attn2o-ffni", "names attn2o-ffni twice"),
    ],
)
def test_positions_that_cannot_be_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        NETWORKS.get("bottleneck")(positions=text)


def test_blocks_that_positions_have_no_place_in_are_refused():
    model = blocks.base()
    with pytest.raises(ValueError, match="no residual block"):
        attached(nn.Sequential(model.block), "resi-reso")
    with pytest.raises(ValueError, match="takes no residual block"):
        attached(model, "attn2o-ffni; resi-reso", blocks="attention")
    with pytest.raises(ValueError, match="Sequential has no transformer block"):
        attached(nn.Sequential(nn.Linear(3, 3)), "attn2o-ffni")
    model.block.disable_self_attn = True
    with pytest.raises(ValueError, match="block: Its first attention looks at the text"):
        attached(model, "attn1o-attn2i")
    attached(model, "attn2o-ffni")
    model.block.attn2 = None
    with pytest.raises(ValueError, match="no transformer block"):
        attached(model, "attn2o-ffni")
    model.residual.updown = model.same.updown = True
    with pytest.raises(ValueError, match="no residual block"):
        attached(model, "resi-reso")


@pytest.mark.parametrize(
    "selection,expected",
    [
        ("all", {"block", "residual", "same"}),
        ("all, -same", {"block", "residual"}),
        ("-residual", {"block", "same"}),
        ("attn2.to_k, same", {"block", "same"}),
        ("b*, skip_connection", {"block", "residual", "same"}),
    ],
)
def test_the_block_language(selection, expected):
    network = attached(blocks.base(), "attn2o-ffni; resi-reso", blocks=selection)
    assert set(network.layers) == expected


@pytest.mark.parametrize("name", ["block", "residual"])
def test_a_block_that_is_computed_again_gives_the_same_gradients_and_keeps_nothing(name):
    x = data((2, 5, blocks.WIDTH) if name == "block" else (2, blocks.CHANNELS, 6, 5))
    found = []
    for again in (False, True):
        model = blocks.base()
        network = attached(model, ALL, activation="silu")
        block = model.get_submodule(name)
        h = x.clone().requires_grad_()
        if again:
            plain = block.forward
            block.forward = lambda h, plain=plain: checkpoint(plain, h, use_reentrant=False)
        block(h).square().sum().backward()
        layer = network.layers[name]
        found.append([h.grad, *(p.grad for p in layer.parameters())])
        assert all(g is not None and bool(g.any()) for g in found[-1])
        known = [f for f in alive(Flow) if f.pairs and f._handles]
        assert known and not any(f.due or f.pending or f.kept or f.text or f.seen for f in known)
        network.remove()
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def alive(kind):
    return [thing for thing in gc.get_objects() if issubclass(type(thing), kind)]


def test_a_forward_that_fails_keeps_nothing():
    model = blocks.base()
    attached(model, ALL)
    held = []

    def fail(module, args):
        held.append(weakref.ref(args[0]))
        raise RuntimeError("out of memory")

    model.block.ff[2].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        model.block(data((2, 5, blocks.WIDTH)).requires_grad_())
    gc.collect()
    assert held[0]() is None
    assert not any(f.due or f.pending or f.kept or f.text for f in alive(Flow))


def test_a_block_whose_attention_is_left_out_is_named():
    class Short(blocks.Transformer):
        def forward(self, x):
            x = x + self.attn2(self.norm2(x), self.text.expand(len(x), -1, -1))
            return x + self.ff(self.norm3(x))

    model = nn.Module()
    model.block = Short()
    attached(model, "attn1o-ffni")
    with pytest.raises(RuntimeError, match="needs attn1o of its block.*came to ffni without it"):
        model.block(data((2, 5, blocks.WIDTH)))


def test_several_networks_on_a_block_and_lora_in_it():
    """Each adds what it adds alone, of outputs as the block has them; in another order the same."""
    x, found = data((2, 5, blocks.WIDTH)), []
    for order in ((0, 1, 2), (2, 1, 0)):
        model = blocks.base()
        made = {}
        for i in order:
            if i == 2:
                lora = Attached(model, NETWORKS.get("lora")(rank=2, blocks="attn2, ff"), 5)
                with torch.no_grad():
                    for p in lora.parameters().values():
                        p.add_(0.1)
                made[i] = lora
            else:
                pair = ("attn1o-ffni", "attn2o-ffni")[i]
                made[i] = attached(model, pair, seed=i)
        found.append(model.block(x))
        ways = written_out(made[0].layers["block"]) | written_out(made[1].layers["block"])
        for i in (0, 1):
            made[i].remove()
        expected = blocks.flow_of(model.block, x, ways)
        torch.testing.assert_close(found[-1], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["block", "residual", "same"])
def test_a_layer_is_built_from_its_tensors_alone(name):
    shape = (2, 5, blocks.WIDTH) if name == "block" else (2, blocks.CHANNELS, 6, 5)
    if name == "same":
        shape = (2, blocks.OUT, 6, 5)
    model, x = blocks.base(), data(shape)
    network = attached(model, ALL, activation="silu", scale=0.7)
    expected = model.get_submodule(name)(x)
    network.remove()
    saved = network.tensors()
    groups = bottleneck.grouped(saved)
    assert set(groups) == {f"diffusion_model.{n}" for n in ("block", "residual", "same")}
    layer = bottleneck.built(model.get_submodule(name), groups[f"diffusion_model.{name}"])
    remove = layer.install(model.get_submodule(name), lambda: True)
    assert torch.equal(model.get_submodule(name)(x), expected)
    layer.strength = 0.0
    remove()
    plain = model.get_submodule(name)(x)
    layer.install(model.get_submodule(name), lambda: True)
    assert torch.equal(model.get_submodule(name)(x), plain)


def test_a_file_that_does_not_fit_is_refused():
    model = blocks.base()
    tensors = bottleneck.grouped(attached(model, "attn2o-ffni").tensors())["diffusion_model.block"]
    start = "bottleneck.attn2o.ffni"
    for key, value, message in (
        ("relu.down.weight", torch.ones(4, 9), r"attn2o-ffni.down.weight: expected shape \(4, 8\)"),
        ("relu.up.bias", torch.ones(9), r"up.bias: expected shape \(8,\), got \(9,\)"),
        ("relu.norm.bias", torch.ones(8), "norm.bias: expected shape None"),
        ("silu.scale", torch.tensor(1.0), "two activations|expected shape"),
        ("tanh.scale", torch.tensor(1.0), "activation 'tanh'"),
    ):
        with pytest.raises(ValueError, match=message):
            bottleneck.built(model.block, tensors | {f"{start}.{key}": value})
    with pytest.raises(ValueError, match="got None"):
        bottleneck.built(model.block, {k: v for k, v in tensors.items() if "up.bias" not in k})
    with pytest.raises(ValueError, match="belongs into a transformer block"):
        bottleneck.built(model.residual, tensors)
    with pytest.raises(ValueError, match="cannot go from attn2o to"):
        bottleneck.built(model.block, {k.replace("ffni", "attn1i"): v for k, v in tensors.items()})


def test_a_state_of_another_scale_is_refused():
    first, second = (
        attached(blocks.base(), "attn2o-ffni"),
        attached(blocks.base(), "attn2o-ffni", scale=2.0),
    )
    with pytest.raises(
        ValueError, match="block: .*scale is 1.0 in the state and 2.0 in the settings"
    ):
        second.load(first.tensors())
