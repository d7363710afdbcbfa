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
    given = ("model", "one", "l2", 0.5, "", "", "instances", "dog")
    made = ObjectiveNode.execute(*given).args[0]
    assert made == Objective(*parts, preserve=0.5, preserve_on="instances", class_word="dog")
    with pytest.raises(ValueError, match="Unknown preserve_on 'instance'. Did you mean instances"):
        ObjectiveNode.execute(*given[:6], "instance")


def test_the_optimizer_gives_each_option_to_the_part_that_has_it():
    from graft.nodes.config import OptimizerNode
    from graft.trainers.optimizers import Optimizer
    from graft.trainers.optimizers.adamw import AdamW
    from graft.trainers.optimizers.schedules.cosine import Cosine

    options = "beta2=0.99, floor=0.1, schedule.warmup=7"
    made = OptimizerNode.execute("adamw", 0.002, "cosine", 5, 0.1, options).args[0]
    wanted = Optimizer(AdamW(0.002, beta2=0.99, weight_decay=0.1), Cosine(warmup=7, floor=0.1))
    assert made == wanted


@pytest.mark.parametrize(
    ("options", "message"),
    [
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
