# SPDX-License-Identifier: Apache-2.0
"""A short training by the nodes learns the concept: the small version of the figure."""

import pytest
import torch

pytestmark = pytest.mark.comfy
SAMPLES = 16
# The full promise is 0.70 of 64 after the whole recipe; this is a fifth of its steps, so it is the scorer's mean
# probability of the concept that has to rise.
STEPS = 120


def probability(images):
    """The scorer's mean probability of the concept's shape."""
    from graft.benchmarks.skeleton import concept
    from graft.metrics.scorer import load_scorer

    scorer = load_scorer()
    chances = scorer(images.movedim(-1, 1).float())["shape"].softmax(-1)
    return float(chances[:, scorer.labels["shape"].index(concept.LABEL)].mean())


@pytest.fixture(scope="module")
def wires(comfy):
    from graft.host.model.mini import load_mini

    with torch.inference_mode():
        return load_mini()


def test_prompts_ask_for_colours_that_no_training_picture_has(comfy):
    from graft.benchmarks.skeleton import concept
    from graft.host.graph import picture_folder
    from graft.tools.mini import captions
    from graft.trainers.data import read_folder

    items, _ = read_folder(picture_folder("graft-examples/shape"))
    seen = [captions.parse(item.caption) for item in items]
    trained = {(one["colour"], one["background"]) for one in seen}
    assert len(items) == len(trained) >= 8
    asked = {(a["colour"], a["background"]) for _, a in concept.concept_prompts(64)}
    assert not asked & trained
    assert all(concept.WORD in text for text, _ in concept.concept_prompts(64))
    assert all(concept.WORD in item.caption for item in items)
    assert not any(concept.WORD in text for text, _ in concept.other_prompts(256))


def test_the_concept_is_learned(wires):
    from graft.benchmarks.skeleton import concept

    out = concept.train(wires, steps=STEPS, steps_unit="steps", preserve=0.0)
    asked = concept.concept_prompts(SAMPLES)
    before = probability(concept.pictures(wires, asked))
    after = probability(concept.pictures((out[0], *wires[1:]), asked))
    assert before <= 0.15
    assert after >= before + 0.2


def test_a_word_is_learned_by_the_text_encoders_alone(wires):
    """After 60 steps a new word is a shape that the model knows, in new colours; the model is untouched."""
    from types import SimpleNamespace

    from graft.benchmarks.skeleton import concept
    from graft.nodes.dataset import LoadImages
    from graft.nodes.text_recipes import TrainTextualInversion
    from graft.tools.mini.make_concepts import WORD

    model, clip, vae = wires
    held = SimpleNamespace(unique_id="1", prompt={}, extra_pnginfo={})
    node = type("Node", (TrainTextualInversion,), {"hidden": held})
    values = {i.id: i.default for i in node.define_schema().inputs if hasattr(i, "default")}
    values |= {"steps": 60, "token": WORD.word, "vectors": 1, "learning_rate": 0.01}
    values |= {"batch_size": 12, "name": "word"}
    pictures = concept.shipped(LoadImages) | {"folder": f"graft-examples/{WORD.name}", "crops": 1}
    with torch.inference_mode():
        data = LoadImages.execute(**pictures | {"trigger": WORD.word}).args[0]
        out = node.execute(model=model, clip=clip, vae=vae, dataset=data, **values).args
    asked = [(t, a | {"shape": WORD.label}) for t, a in concept.concept_prompts(SAMPLES, WORD.word)]
    before = concept.found(concept.pictures(wires, asked), asked)["shape"]
    after = concept.found(concept.pictures((out[0], out[1], vae), asked), asked)
    assert before <= 0.2 and after["shape"] >= 0.9 and after["all"] >= 0.8
    assert not out[0].patches
