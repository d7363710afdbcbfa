# SPDX-License-Identifier: Apache-2.0
"""What does not go together is refused with both sides named and a remedy."""

import pytest
import torch

from graft.trainers.objectives import NOISE, WEIGHTS, Objective
from graft.trainers.objectives.check import check
from tests.trainers.toy import Toy


def make(**choices):
    registries = {"noise": NOISE, "weight": WEIGHTS}
    return Objective(
        **{k: registries[k].get(v)() if k in registries else v for k, v in choices.items()}
    )


@pytest.mark.parametrize(
    ("family", "choices", "message"),
    [
        (
            "edm",
            {"weight": "min-snr"},
            r"weight 'min-snr' .* this MODEL \(EDM\): take soft-min-snr",
        ),
        ("flow", {"weight": "min-snr-diffusers"}, r"\(flow\): take min-snr"),
        ("flow", {"weight": "elbo"}, "bound's weight"),
        ("v", {"weight": "elbo"}, r"\(v-prediction, without a table\)"),
        ("flow", {"weight": "edm-diffusers"}, "take one or edm"),
        (
            "eps",
            {"noise": "logit-normal"},
            r"noise law 'logit-normal' .* \(eps-prediction\): .*log-normal",
        ),
        ("v", {"noise": "shifted"}, "no shift"),
        ("flow", {"noise": "log-normal"}, "take logit-normal"),
        ("flow", {"noise": "karras"}, "take uniform, shifted or logit-normal"),
        (
            "eps",
            {"zero_terminal": True},
            "zero_terminal does not go with .*eps-prediction.*v-prediction model",
        ),
        ("flow", {"zero_terminal": True}, "noise alone already"),
        ("edm", {"zero_terminal": True}, "no table"),
        ("eps", {"sigma_min": 30.0}, "no noise level"),
        (
            "eps",
            {"learn_log_variance": True, "weight": "min-snr"},
            "learn_log_variance .* 'min-snr' .* set weight to one",
        ),
    ],
)
def test_conflicts_are_named(family, choices, message):
    with pytest.raises(ValueError, match=message):
        check(make(**choices), Toy(family))


@pytest.mark.parametrize("family", ["eps", "v", "flow", "edm", "x0"])
def test_the_default_goes_with_everything(family):
    check(Objective(), Toy(family), 1)


def test_zero_terminal_goes_with_a_v_model_with_a_table():
    toy = Toy("v")
    toy.nearest = Toy("eps").nearest
    check(Objective(zero_terminal=True), toy)


def test_a_zero_terminal_table_of_the_wire_does_not_go_with_eps():
    toy = Toy("eps")
    toy.sigmas = torch.cat([toy.sigmas[:-1], torch.tensor([4518.76])])
    with pytest.raises(ValueError, match="eps-prediction.*take zsnr off the MODEL"):
        check(Objective(), toy)


def test_stratified_levels_need_more_than_one_picture():
    with pytest.raises(ValueError, match="raise batch_size or accumulate"):
        check(Objective(stratified=True), Toy("eps"), 1)
    check(Objective(stratified=True), Toy("eps"), 2)


def test_a_part_from_elsewhere_needs_no_capabilities():
    class Plain:
        def __call__(self, sigma, denoiser):
            return torch.ones_like(sigma)

    check(Objective(weight=Plain()), Toy("edm"))
