# SPDX-License-Identifier: Apache-2.0
"""Config nodes build the values that the trainer takes, and answer wrong options with near names."""

import pytest

pytestmark = pytest.mark.comfy


def test_the_network_is_built_from_widgets_and_options():
    from graft.adapters.lora import LoRA
    from graft.nodes.config import Network

    assert Network.execute("lora", 4, 2.0, "all", "").args == (LoRA(4, 2.0, "all"),)
    assert Network.execute("lora", 4, 2.0, "all", "rank=6, alpha=3").args == (LoRA(6, 3.0, "all"),)


def test_the_objective_is_built_from_widgets():
    from graft.nodes.config import ObjectiveNode
    from graft.trainers.objectives import METRICS, NOISE, WEIGHTS, Objective

    made = ObjectiveNode.execute("model", "one", "l2", 0.5, " a cat \n\na dog", "").args[0]
    parts = NOISE.get("model")(), WEIGHTS.get("one")(), METRICS.get("l2")()
    assert made == Objective(*parts, preserve=0.5, preserve_prompts=("a cat", "a dog"))
    given = ("model", "one", "l2", 0.5, "", "", "gaussian", "instances", "dog")
    made = ObjectiveNode.execute(*given).args[0]
    assert made == Objective(*parts, preserve=0.5, preserve_on="instances", class_word="dog")
    with pytest.raises(ValueError, match="Unknown preserve_on 'instance'. Did you mean instances"):
        ObjectiveNode.execute(*given[:7], "instance")


def test_the_objective_takes_its_own_options_beside_those_of_its_parts():
    from graft.nodes.config import ObjectiveNode
    from graft.trainers.objectives import NOISINGS, Objective
    from graft.trainers.objectives.metrics.huber import Huber
    from graft.trainers.objectives.noise.log_normal import LogNormal
    from graft.trainers.objectives.weights.soft_min_snr import SoftMinSNR

    options = "p_mean=0.5, sigma_max=10, stratified=yes, delta=0.2, schedule=constant, gamma=3"
    made = ObjectiveNode.execute(
        "log-normal", "soft-min-snr", "huber", 0.5, "", options, "pyramid"
    ).args[0]
    assert made == Objective(
        LogNormal(p_mean=0.5),
        SoftMinSNR(3.0),
        Huber(0.2, "constant"),
        preserve=0.5,
        noising=NOISINGS.get("pyramid")(),
        sigma_max=10.0,
        stratified=True,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("stratifed=yes", "Did you mean stratified"),
        ("stratified=maybe", "not a valid bool"),
        ("input_perturbation=-1", "between 0.0 and 10.0"),
        ("noise=uniform", "Unknown option 'noise'"),
        ("preserve_prompts=x", "Unknown option 'preserve_prompts'"),
    ],
)
def test_a_wrong_option_of_the_objective_is_named(options, message):
    from graft.nodes.config import ObjectiveNode

    with pytest.raises(ValueError, match=message):
        ObjectiveNode.execute("model", "one", "l2", 1.0, "", options)


def test_the_optimizer_gives_each_option_to_the_part_that_has_it():
    from graft.nodes.config import OptimizerNode
    from graft.trainers.optimizers import Optimizer
    from graft.trainers.optimizers.adamw import AdamW
    from graft.trainers.optimizers.schedules.cosine import Cosine

    options = "beta2=0.99, floor=0.1, schedule.warmup=7"
    made = OptimizerNode.execute("adamw", 0.002, "cosine", 5, 0.1, options).args[0]
    wanted = Optimizer(AdamW(0.002, beta2=0.99, weight_decay=0.1), Cosine(warmup=7, floor=0.1))
    assert made == wanted


def test_the_optimizers_own_settings_are_options_and_a_widget():
    from graft.nodes.config import OptimizerNode
    from graft.trainers.optimizers import Optimizer
    from graft.trainers.optimizers.adamw import AdamW
    from graft.trainers.optimizers.schedules.cosine_restarts import CosineRestarts

    options = "text_lr=5e-5, loraplus_ratio=16, num_cycles=3, text_stop=0.5"
    made = OptimizerNode.execute("adamw", 1e-3, "cosine-restarts", 2, 0.1, options, 0.999).args[0]
    assert made == Optimizer(
        AdamW(1e-3, weight_decay=0.1),
        CosineRestarts(2, 3),
        ema_decay=0.999,
        text_lr=5e-5,
        loraplus_ratio=16.0,
        text_stop=0.5,
    )
    plain = OptimizerNode.execute("adamw", 1e-4, "constant", 0, 0.01, "").args[0]
    assert plain == Optimizer()  # a prompt that was saved without the widget
    assert OptimizerNode.execute(
        "adamw", 1e-4, "constant", 0, 0.01, "settings.ema_decay=0.9", 0.5
    ).args[0] == Optimizer(ema_decay=0.9)


def test_a_learning_rate_of_zero_is_the_optimizers_own():
    from graft.nodes.config import OptimizerNode
    from graft.trainers.optimizers import OPTIMIZERS

    for name in OPTIMIZERS.names():
        made = OptimizerNode.execute(name, 0.0, "constant", 0, 0.01, "").args[0]
        assert made.algorithm.lr == OPTIMIZERS.get(name)().lr
    assert OptimizerNode.execute("prodigy", 0.0, "constant", 0, 0.01, "").args[0].algorithm.lr == 1


def test_rates_that_prodigy_cannot_keep_apart_are_refused():
    from graft.nodes.config import OptimizerNode

    with pytest.raises(ValueError, match="learning_rate is 1 and text_lr is 0.5; leave text_lr"):
        OptimizerNode.execute("prodigy", 1.0, "constant", 0, 0.01, "text_lr=0.5")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("txt_lr=1", "Did you mean text_lr"),
        ("beta3=1", "Did you mean beta"),
        ("schedule.beta2=1", "Unknown option 'schedule.beta2'"),
        ("beta2", "must read name=value"),
        ("beta2=much", "not a valid float"),
        ("beta2=2", "beta2 is 2.0; it must be between"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    from graft.nodes.config import OptimizerNode

    with pytest.raises(ValueError, match=message):
        OptimizerNode.execute("adamw", 0.002, "constant", 0, 0.1, options)


def test_an_option_that_two_parts_have_needs_its_part():
    from dataclasses import dataclass

    from graft.nodes.config import parse_parts
    from graft.registry import Registry, option

    registry = Registry("part")

    @registry.register("one")
    @dataclass(frozen=True)
    class One:
        gamma: float = option(5.0, "A number.")

    parts = {"noise": (registry, "one"), "weight": (registry, "one")}
    with pytest.raises(ValueError, match=r"write noise\.gamma or weight\.gamma"):
        parse_parts(parts, "gamma=3")
    assert parse_parts(parts, "weight.gamma=3") == {"noise": One(), "weight": One(3.0)}


def test_the_preview_takes_one_prompt_a_line():
    from graft.nodes.preview import PreviewNode
    from graft.trainers.preview import Preview

    made = PreviewNode.execute(
        "a cat\n\n a dog ", "blurry", 64, 32, 8, 4.0, "euler", "normal", 3, 10, False
    ).args[0]
    prompts = ("a cat", "a dog")
    assert made == Preview(prompts, "blurry", 64, 32, 8, 4.0, "euler", "normal", 3, 10, False)


def test_a_preview_without_a_prompt_is_refused():
    from graft.nodes.preview import PreviewNode

    with pytest.raises(ValueError, match="at least one prompt"):
        PreviewNode.execute(" \n", "", 0, 0, 8, 4.0, "euler", "normal", 3, 10, False)
