# SPDX-License-Identifier: Apache-2.0
"""Classes in the place of texts: what a training sees of them, what it learns, and what is refused."""

import dataclasses

import pytest
import torch

from tests.host import ddpms
from tests.host.files import test_ddpm

pytestmark = pytest.mark.comfy
output = test_ddpm.output  # fixture


def request(model=None, data=None, network="full", **changes):
    from graft.adapters import NETWORKS
    from graft.host.engine import Request
    from graft.trainers.optimizers import Optimizer
    from graft.trainers.optimizers.adamw import AdamW
    from graft.trainers.plan import Plan

    plan = Plan(**{"steps": 3, "batch_size": 2, **changes.pop("plan", {})})
    blocks = "all" if network == "full" else "attention"
    made = Request(
        model or ddpms.model(),
        data or ddpms.dataset(),
        network=NETWORKS.get(network)(blocks=blocks),
        optimizer=Optimizer(algorithm=AdamW(lr=1e-2)),
        plan=plan,
    )
    return dataclasses.replace(made, **changes)


def test_a_class_is_named_by_its_number_or_name():
    from graft.host.text.labels import LabelEncoder

    texts = LabelEncoder(3, True, ("cat", "dog", "owl"))
    assert [texts.tokenize(t) for t in ("0", " 2 ", "dog", "")] == [0, 2, 1, -1]
    for wrong in ("3", "-1", "cow", "1.0", "9" * 5000):
        with pytest.raises(ValueError, match="is no class of this MODEL.*0 to 2, or one of cat"):
            texts.tokenize(wrong)
    with pytest.raises(ValueError, match="stands for no class"):
        LabelEncoder(3, False).tokenize("")
    assert LabelEncoder(0, False).tokenize("anything") == -1


def test_the_network_gets_the_classes_of_the_pictures(output):
    """Labels 3 and 1 for the pictures 3 and 1, whatever their captions say; 5, of no class, where it is left out."""
    from graft.host import engine

    seen = []
    patcher = ddpms.model()
    table = patcher.model.diffusion_model.class_embedding
    hook = table.register_forward_hook(lambda _, args, __: seen.extend(args[0].flatten().tolist()))
    try:
        engine.train(request(patcher, ddpms.dataset((3, 1)), "lora", plan={"steps": 2}))
        assert set(seen) == {1, 3}
        seen.clear()
        data = ddpms.dataset((3, 1), dropout=0.5)
        engine.train(request(patcher, data, "lora", plan={"steps": 8}))
        assert set(seen) == {1, 3, 5}
    finally:
        hook.remove()


def test_full_training_moves_the_classes_that_were_there_and_no_others(output):
    from graft.host import engine
    from graft.host.files import ddpm

    patcher = ddpms.model()
    made = engine.train(request(patcher, ddpms.dataset((0, 3))))
    assert "145 of 145 tensors applied" in made.report
    assert made.clip is None
    change = made.lora_model["diffusion_model.class_embedding.diff"]
    assert (change.abs().amax(1) > 0).tolist() == [True, False, False, True, False, False]
    before = patcher.model.diffusion_model.state_dict()["class_embedding.weight"]
    folder = ddpm.save(made.model, "trained")[0]
    after = ddpm.load(folder).model.diffusion_model.state_dict()["class_embedding.weight"]
    torch.testing.assert_close(after, before + change)


@pytest.mark.parametrize(
    "changes", [{"classes": 0, "channels": 3}, {"schedule": "squaredcos_cap_v2"}]
)
@pytest.mark.parametrize("network", ["full", "lora"])
def test_it_trains_with_previews_and_goes_on_from_a_state(output, network, changes):
    from graft.host import engine
    from graft.trainers.preview import Preview

    shown = Preview(("2",), steps=2, every=2, at_start=False)
    patcher = ddpms.model(**changes)
    data = ddpms.dataset(channels=changes.get("channels", 1))
    whole = engine.train(request(patcher, data, network, preview=shown, plan={"steps": 4}))
    assert whole.images.shape == (1, 8, 8, 3)
    assert "tensors applied" in whole.report and "would not load" not in whole.report
    plan = {"steps": 2, "total_steps": 4}
    part = engine.train(request(patcher, data, network, plan=plan))
    rest = engine.train(request(patcher, data, network, plan=plan, state=part.state))
    assert rest.lora_model.keys() == whole.lora_model.keys()
    assert all(torch.equal(rest.lora_model[k], v) for k, v in whole.lora_model.items())


def test_checkpointing_changes_nothing(output):
    from graft.host import engine

    made = [
        engine.train(request(plan={"checkpointing": how, "steps": 2})).lora_model
        for how in ("off", "on")
    ]
    assert all(torch.equal(made[0][k], made[1][k]) for k in made[0])


def test_what_is_about_text_is_refused(output):
    from graft.host import engine
    from tests.host import tiny

    with pytest.raises(ValueError, match="knows classes and no text: disconnect clip"):
        engine.train(request(clip=tiny.clip("sdxl")))
    with pytest.raises(ValueError, match="is of no class; this MODEL has classes 0 to 4"):
        engine.train(request(ddpms.model(unlabelled=False), ddpms.dataset((0, None))))
    with pytest.raises(ValueError, match="is of class 7; this MODEL has classes 0 to 4"):
        engine.train(request(data=ddpms.dataset((0, 7))))
    with pytest.raises(ValueError, match="Caption dropout trains pictures without a class"):
        data = ddpms.dataset((0, 1), dropout=0.1)
        engine.train(request(ddpms.model(unlabelled=False), data))
    with pytest.raises(ValueError, match="latents of 4 channels"):
        engine.train(request(vae=tiny.vae("sdxl")))


def test_digits_in_small(output):
    """A chance of one in ten becomes two in five or better, in some seconds."""
    from graft.benchmarks import digits

    made = digits.train(digits.new_model(), digits.dataset(600), 120)
    classifier, real = digits.judge()
    assert real > 0.95
    assert digits.right(classifier, digits.drawn(made.model, 3.0, 6, 10)) > 0.4


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_digits_that_are_drawn_are_read_right(output, monkeypatch):
    from graft.benchmarks import digits

    made = digits.train(digits.new_model(), digits.dataset(), digits.STEPS)
    classifier, _ = digits.judge()
    assert digits.right(classifier, digits.drawn(made.model, 1.0)) >= digits.BOUND
    assert digits.right(classifier, digits.drawn(made.model, digits.GUIDED)) >= digits.BOUND
