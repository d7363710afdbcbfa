# SPDX-License-Identifier: Apache-2.0
"""Which parameters are stepped together, and with what."""

import pytest
import torch

from graft.trainers.optimizers import Optimizer, part_of
from graft.trainers.optimizers.adamw import AdamW
from graft.trainers.optimizers.schedules.cosine import Cosine
from graft.trainers.optimizers.schedules.linear import Linear
from graft.trainers.stepping import Stepper

NAMES = (
    "input_blocks.1.attn.to_q.down",
    "input_blocks.1.attn.to_q.up",
    "text_encoders.clip_l.layer.up",
    "embeddings.zork",
    "text_embeddings_proj.up",
)


def parameters():
    return {name: torch.nn.Parameter(torch.ones(2, 2)) for name in NAMES}


def by_name(settings):
    """Learning rate and decay of every parameter."""
    given = parameters()
    names = {id(p): name for name, p in given.items()}
    groups = settings.groups(given)
    return {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}


def test_the_start_of_a_name_says_the_part():
    assert [part_of(name) for name in NAMES] == ["model", "model", "text", "embedding", "model"]


def test_without_a_difference_a_model_is_one_group_in_its_order():
    given = {name: p for name, p in parameters().items() if part_of(name) == "model"}
    (group,) = Optimizer(AdamW(0.5, weight_decay=0.25)).groups(given)
    assert [id(p) for p in group["params"]] == [id(p) for p in given.values()]
    assert (group["lr"], group["peak"], group["weight_decay"], group["stop"]) == (0.5, 0.5, 0.25, 1)


def test_every_part_has_its_own_rate_and_decay():
    """With LoRA+ 16, up matrices have 16 times the rate of their part."""
    found = by_name(
        Optimizer(
            AdamW(1e-4, weight_decay=0.1),
            text_lr=5e-5,
            embedding_lr=5e-3,
            embedding_weight_decay=0.0,
            loraplus_ratio=16.0,
        )
    )
    assert found == {
        NAMES[0]: (1e-4, 0.1),
        NAMES[1]: (1e-4 * 16, 0.1),
        NAMES[2]: (5e-5 * 16, 0.1),
        NAMES[3]: (5e-3, 0.0),
        NAMES[4]: (1e-4 * 16, 0.1),
    }


def test_zero_and_minus_one_mean_as_the_model():
    assert set(by_name(Optimizer(AdamW(0.3, weight_decay=0.2))).values()) == {(0.3, 0.2)}


def test_loraplus_moves_the_up_matrices_by_its_ratio():
    """AdamW's first step is lr sign(g): 0.01 for down, 0.04 for up."""
    given = parameters()
    stepper = Stepper(Optimizer(AdamW(0.01, weight_decay=0.0), loraplus_ratio=4.0), given)
    for p in given.values():
        p.grad = torch.full_like(p, 3.0)
    stepper.begin(0, 9)
    stepper.step()
    for name, p in given.items():
        wanted = 1 - (0.04 if name.endswith(".up") else 0.01)
        torch.testing.assert_close(p.detach(), torch.full_like(p, wanted))


def test_the_schedule_is_a_factor_of_every_groups_own_peak():
    stepper = Stepper(Optimizer(AdamW(0.01), Linear(), text_lr=0.5), parameters())
    stepper.begin(5, 11)
    assert [g["lr"] for g in stepper.algorithm.param_groups] == [0.005, 0.25, 0.005]
    assert stepper.lr(5, 11) == 0.005  # what is told is the model's


def test_what_has_stopped_needs_no_gradient_and_does_not_count_in_the_norm():
    """The loop clips what ``begin`` gives, and asks only of that for gradients."""
    given = parameters()
    stepper = Stepper(Optimizer(AdamW(), text_stop=0.5, embedding_stop=0.25), given)
    assert list(stepper.begin(0, 8)) == list(NAMES)
    assert set(NAMES) - set(stepper.begin(2, 8)) == {"embeddings.zork"}
    assert set(NAMES) - set(stepper.begin(4, 8)) == {NAMES[2], NAMES[3]}
    for name, p in given.items():
        p.grad = None if name == "embeddings.zork" else torch.ones_like(p)
    stepper.step()
    assert given[NAMES[2]].grad is None
    assert torch.equal(given[NAMES[2]], torch.ones(2, 2))
    assert not torch.equal(given[NAMES[0]], torch.ones(2, 2))


def test_loraplus_without_up_matrices_is_refused():
    with pytest.raises(ValueError, match=r"loraplus_ratio is 16, but the network has no up"):
        Optimizer(loraplus_ratio=16.0).groups({"a.w1": torch.nn.Parameter(torch.ones(1))})


def test_settings_of_a_part_that_is_not_trained_are_said():
    said = Optimizer(text_lr=1e-5, embedding_stop=0.5).notes(NAMES[:2])
    assert [note.split(" ")[0] for note in said] == ["text_lr", "embedding_stop"]
    assert Optimizer(text_lr=1e-5, embedding_stop=0.5).notes(NAMES) == []


@pytest.mark.parametrize(
    "field,value",
    [("text_lr", -1.0), ("text_stop", 1.5), ("ema_decay", 1.0), ("loraplus_ratio", 0.5)],
)
def test_a_number_out_of_range_is_named(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        Optimizer(**{field: value})


def test_the_text_of_the_defaults_does_not_change_as_settings_are_added():
    """It is in every file's metadata and in the id of every run."""
    assert repr(Optimizer()) == (
        "Optimizer(algorithm=AdamW(lr=0.0001, beta1=0.9, beta2=0.999, weight_decay=0.01, eps=1e-08), "
        "schedule=Constant(warmup=0))"
    )
    assert repr(Optimizer(text_lr=0.5)).endswith("schedule=Constant(warmup=0), text_lr=0.5)")


def test_a_plan_that_is_too_short_is_said():
    cosine = Optimizer(AdamW(1e-3), Cosine(warmup=10))
    assert cosine.notes_on_length(100, 100) == []
    assert "warm-up of 10 steps is longer than the plan of 5" in cosine.notes_on_length(5, 5)[0]
    assert "comes to 45% of its peak" in cosine.notes_on_length(5, 5)[0]  # 5 / 11
    (note,) = cosine.notes_on_length(60, 30)
    assert "step 30 with a learning rate of 0: nothing is learned up to step 60" in note
    (note,) = Optimizer(AdamW(1e-3)).notes_on_length(60, 30)
    assert "step 30 with a learning rate of 0.001: it holds up to step 60." in note
