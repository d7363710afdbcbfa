# SPDX-License-Identifier: Apache-2.0
"""Full weights in the host: every family, checkpointed, offloaded, of text encoders; what stays frozen."""

import copy

import pytest
import torch

from tests.host import test_engine, tiny
from tests.host.model.test_trainee import loss_of
from tests.host.text.test_text_training import train as train_text

pytestmark = pytest.mark.comfy
wires, output = test_engine.wires, test_engine.output  # fixtures
FAMILIES = ["sd15", "sdxl", "sd3", "flux"]


def full(blocks="all", **settings):
    from graft.adapters import NETWORKS

    return NETWORKS.get("full")(blocks, **settings)


def attach(t, network):
    from graft.adapters.attach import Attached

    return Attached(t.diffusion_model, network, 0, t.device)


def gradients(family, t, attached, change=0.0):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in attached.parameters().values():
            p.add_(change * torch.randn(p.shape, generator=generator))
    loss = loss_of(family, t)
    loss.backward()
    return loss.detach(), [p.grad for p in attached.parameters().values()]


@pytest.mark.parametrize(
    ("family", "precision"),
    [(family, "fp32") for family in FAMILIES]
    + [("flux", "bf16")]
    + [pytest.param(family, "bf16", marks=pytest.mark.slow) for family in FAMILIES[:-1]],
)
def test_it_begins_exact_and_gives_the_same_gradients_checkpointed_and_offloaded(family, precision):
    from graft.host.model.trainee import trainee

    found = []
    for offload, on in (("off", False), ("off", True), ("on", True)):
        with trainee(tiny.model(family), precision=precision, offload=offload) as t:
            t.checkpointing(on)
            attached = attach(t, full())
            with attached.off(), torch.no_grad():
                before = loss_of(family, t)
            with torch.no_grad():
                assert torch.equal(loss_of(family, t), before)
            assert torch.equal(loss_of(family, t).detach(), before)
            found.append(gradients(family, t, attached, 0.01))
            named = dict(zip(attached.parameters(), found[-1][1], strict=True))
            attached.remove()
        # Context and labels reach every layer; what nothing reaches has a gradient nowhere.
        missing = [name for name, gradient in named.items() if gradient is None]
        assert not missing
    for loss, of in found[1:]:
        assert torch.equal(loss, found[0][0])
        assert all(torch.equal(a, b) for a, b in zip(of, found[0][1], strict=True))


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_it_begins_exact_on_weights_of_few_bits(stored):
    from graft.host.model.trainee import trainee

    with trainee(tiny.model("sdxl", dtype=stored), precision="bf16") as t:
        attached = attach(t, full())
        with torch.no_grad():
            with attached.off():
                before = loss_of("sdxl", t)
            assert torch.equal(loss_of("sdxl", t), before)
        _, found = gradients("sdxl", t, attached)
        attached.remove()
    assert all(g.dtype == torch.float32 and bool(g.isfinite().all()) for g in found)


def merged(patcher):
    """All weights as the host makes them when it loads the MODEL."""
    import comfy.model_management

    with torch.inference_mode():
        clone = patcher.clone()
        comfy.model_management.load_models_gpu([clone], force_patch_weights=True)
        found = {key: value.clone() for key, value in clone.model_state_dict().items()}
        clone.detach()
    return found


@pytest.mark.parametrize("settings", [{}, {"norms": False}, {"biases": False}])
def test_what_is_not_chosen_is_the_same_to_the_bit_after_training(wires, output, settings):
    from graft.trainers.optimizers import Optimizer
    from graft.trainers.optimizers.adamw import AdamW

    before = merged(wires["sdxl"])
    network = full("output_blocks.0, -output_blocks.0.1.*.attn1", **settings)
    made = test_engine.train(wires, network=network, optimizer=Optimizer(AdamW(1e-3)))
    after = merged(made.model)
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved and all(key.startswith("diffusion_model.output_blocks.0.") for key in moved)
    assert not any(".attn1." in key for key in moved)
    norms = {key for key in moved if ".norm" in key or ".in_layers.0." in key}
    assert bool(norms) == settings.get("norms", True)
    assert any(key.endswith(".bias") for key in moved) == settings.get("biases", True)
    count = len(made.lora_model)
    assert count == len(moved) and f"{count} of {count} tensors applied" in made.report
    # fp32: what the stock loader makes is the sum itself
    for key in moved:
        name, _, part = key.rpartition(".")
        change = made.lora_model[f"{name}.{'diff_b' if part == 'bias' else 'diff'}"]
        assert torch.equal(after[key], before[key] + change), key


@pytest.mark.parametrize("family", ["sd15", "sd3"])
def test_all_of_a_model_is_trained_and_applied(wires, output, family):
    made = test_engine.train(wires, family, network=full(), steps=2)
    count = len(made.lora_model)
    assert count > 50 and f"{count} of {count} tensors applied" in made.report


def test_text_encoders_are_trained_whole_and_the_model_stays(wires, output):
    made = train_text(wires, text_network=full(), blocks="none")
    count = len(made.lora_model)
    assert count and f"{count} of {count} tensors applied" in made.report
    assert all(key.startswith("text_encoders.") for key in made.lora_model)
    assert any(".layer_norm1.diff" in key for key in made.lora_model)
    assert torch.equal(
        *(tiny.sample(m, "sdxl") for m in (copy.copy(wires["sdxl"]).clone(), made.model))
    )


def test_one_layer_of_one_encoder_is_trained_and_all_else_of_both_stays(wires, output):
    from graft.trainers.optimizers import Optimizer
    from graft.trainers.optimizers.adamw import AdamW

    name = "clip_l.transformer.text_model.encoder.layers.0"
    before = merged(wires["clip_sdxl"].patcher)
    optimizer = Optimizer(AdamW(1e-3))
    made = train_text(wires, text_network=full(name), blocks="none", optimizer=optimizer)
    after = merged(made.clip.patcher)
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved == {key for key in before if key.startswith(f"{name}.")}


def test_it_begins_with_a_lora_and_goes_on_from_its_state(wires, output):
    from graft.adapters.file import AdapterFile

    lora = test_engine.train(wires)
    file = AdapterFile(lora.lora_model, {}, "cat")
    begun = test_engine.train(wires, network=full("attention"), start_from=file, steps=1)
    assert "begins with 'cat'" in begun.report
    plan = {"total_steps": 4}
    whole = test_engine.train(wires, network=full("cross-attention"), plan=plan)
    head = test_engine.train(wires, network=full("cross-attention"), steps=2, plan=plan)
    tail = test_engine.train(
        wires, network=full("cross-attention"), steps=2, plan=plan, state=head.state
    )
    assert whole.loss_map["loss"] == tail.loss_map["loss"]
    assert all(torch.equal(v, tail.lora_model[k]) for k, v in whole.lora_model.items())


def test_the_network_node_passes_over_rank_and_alpha():
    from graft.nodes.config import Network

    (network,) = Network.execute("full", 16, 8.0, "cross-attention kv", "norms=no").result
    assert repr(network) == "Full(blocks='cross-attention kv', norms=False)"
