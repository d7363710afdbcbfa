# SPDX-License-Identifier: Apache-2.0
"""Content of one picture and style of another: saved on a real server and loaded there, as mixed in one process."""

import pytest
import torch

from graft.benchmarks.skeleton import graphs
from tests.host import inprocess
from tests.nodes.test_dreambooth import call, mini, output  # noqa: F401 - fixtures

pytestmark = [pytest.mark.server, pytest.mark.comfy]

PROMPT = "a dax in vex style"
STRENGTHS = (0.9, 0.7)
SEED, STEPS = 3, 4
# By part: the folder, the seed that picks a drawing of it, and the prompt.
PARTS = {
    "content": ("graft-examples/shape", 3, "a dax"),
    "style": ("graft-examples/texture", 1, "a vex"),
}
TRAINING = {"steps": 8, "rank": 4, "learning_rate": 0.02, "precision": "fp32"}


def saved(server):
    """Train on both pictures and save a part of each; the names of the files, and where each was trained."""
    graph = graphs.Mini(server)
    names, trained = {}, {}
    for part, (folder, pick, prompt) in PARTS.items():
        pictures = graph.dataset(folder)
        picked = [graph.add("GraftSplitDataset", dataset=pictures, share=0.05, seed=pick), 1]
        trained[part] = graph.train(
            "GraftTrainBLora", dataset=picked, prompt=prompt, name=f"chained {part}", **TRAINING
        )
        graph.save(trained[part], filename=f"chained {part}", blocks=f"b-lora {part}")
        names[part] = f"chained {part}.safetensors"
    wires = {f"{part}_adapter": [node, 6] for part, node in trained.items()}
    strengths = dict(zip(("content_strength", "style_strength"), STRENGTHS, strict=True))
    mixed = graph.add("GraftLoadBLora", model=graph.model, **wires, **strengths)
    graph.sample([mixed, 0], "mixed_wires", prompt=PROMPT, seed=SEED, steps=STEPS)
    server.run(graph.prompt)
    return names


def chained(server, names, order):
    """The latent with the files on the model by nodes that follow each other, and what these said."""
    graph = graphs.Mini(server)
    model, said = graph.model, []
    for part in order:
        strength = {f"{part}_strength": STRENGTHS[list(PARTS).index(part)]}
        node = graph.add("GraftLoadBLora", model=model, **{part: names[part]}, **strength)
        said.append(graph.add("PreviewAny", source=[node, 1]))
        model = [node, 0]
    graph.sample(model, f"chained_{order[0]}", prompt=PROMPT, seed=SEED, steps=STEPS)
    entry = server.run(graph.prompt)
    shown = [graphs.shown(entry, node) for node in said]
    return graphs.latent(server, f"chained_{order[0]}"), shown


def in_process(wires):
    """The same latent without a server, a file or a loading node: trained here, and both changes put on one MODEL."""
    from graft.host.files import result
    from graft.host.files.strengths import Strengths
    from graft.loaders.selection import select
    from graft.nodes.b_lora import TrainBLora
    from graft.nodes.dataset import LoadImages
    from graft.nodes.dataset_parts import SplitDataset

    model = wires["model"]
    for (part, (folder, pick, prompt)), strength in zip(PARTS.items(), STRENGTHS, strict=True):
        pictures = call(LoadImages, {}, folder=folder, resolution=64).args[0]
        picked = call(SplitDataset, {"dataset": pictures}, share=0.05, seed=pick).args[1]
        name = f"here {part}"
        made = call(TrainBLora, wires | {"dataset": picked}, prompt=prompt, name=name, **TRAINING)
        block = select(made.args[6], f"b-lora {part}")
        model = result.apply_both(model, None, block.tensors, Strengths(strength))[0]
    return sampled(wires, model), sampled(wires, wires["model"])


def sampled(wires, model):
    """What the graph's KSampler gives."""
    import comfy.sample

    empty = torch.zeros(1, 4, 8, 8)
    noise = comfy.sample.prepare_noise(empty, SEED)
    with torch.inference_mode():
        asked, nothing = (
            wires["clip"].encode_from_tokens_scheduled(wires["clip"].tokenize(text))
            for text in (PROMPT, "")
        )
        return comfy.sample.sample(
            model, noise, STEPS, 4.0, "euler", "simple", asked, nothing, empty, seed=SEED
        )


def test_files_in_a_chain_are_the_mix_of_what_was_trained(server, mini, output):  # noqa: F811
    names = saved(server)
    wires = graphs.latent(server, "mixed_wires")
    one, said = chained(server, names, ("content", "style"))
    other, _ = chained(server, names, ("style", "content"))
    here = torch.get_num_threads()
    torch.set_num_threads(inprocess.SERVER_THREADS)  # a product is rounded by how it is shared out
    try:
        mixed, base = in_process(mini)
    finally:
        torch.set_num_threads(here)
    assert float((mixed - base).abs().max()) > 0.05, "the two have to do something for this test"
    for latent in (wires, one, other):
        assert float((latent - mixed).abs().max()) <= 1e-4
    # Up, down and alpha of q, k, v and out of two attentions in two transformer blocks.
    for text, part, strength in zip(said, PARTS, STRENGTHS, strict=True):
        assert f"{part} of 'chained {part}': 48 of 48 tensors applied" in text, text
        assert f"dW times {strength:g}" in text
