# SPDX-License-Identifier: Apache-2.0
"""Several trainings in one prompt, and several prompts in the queue, do not disturb each other."""

from itertools import pairwise

import pytest
import torch

from graft.benchmarks.skeleton import graphs, runs

pytestmark = pytest.mark.server
STEPS = 3
SLOW, FAST = 1e-3, 1e-2


def trained(graph, name, lr, *, seed=0, saved="", has_preview=False):
    """A training whose LoRA is saved, and whose MODEL is sampled; returns the node."""
    settings = runs.SHORT | {"steps": STEPS, "learning_rate": lr, "seed": seed, "name": name}
    if has_preview:
        preview = graph.add("GraftPreview", prompts="a dax", steps=1, every=2, at_start=False)
        settings["preview"] = [preview, 0]
    node = graph.train(save_every=2, **settings)
    graph.save(node, filename=saved or name)
    graph.sample([node, 0], f"together/{saved or name}", steps=1)
    return node


def lora(server, name):
    """The tensors of a file in output/loras."""
    import safetensors.torch

    return safetensors.torch.load(graphs.loras(server)[f"{name}.safetensors"])


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())


def messages(server, prompt_id, node):
    return [m for m in graphs.messages(server, prompt_id) if m["node"] == node]


@pytest.fixture(scope="module")
def queued(server):
    """All of it queued at once: two trainings alone, both in one prompt, and one twice in one prompt."""
    made = {}
    for name, lr in (("slow alone", SLOW), ("fast alone", FAST)):
        graph = graphs.Mini(server)
        made[name] = (trained(graph, name, lr), server.queue(graph.prompt))
    graph = graphs.Mini(server)
    nodes = [
        trained(graph, "both", lr, saved=f"both {lr}", has_preview=True) for lr in (SLOW, FAST)
    ]
    made["both"] = (nodes, server.queue(graph.prompt))
    graph = graphs.Mini(server)
    nodes = [trained(graph, "twins", FAST, saved=f"twin {i}") for i in range(2)]
    nodes.append(trained(graph, "twins", FAST, seed=1, saved="other"))
    made["twins"] = (nodes, server.queue(graph.prompt))
    for _, prompt_id in made.values():
        server.wait(prompt_id)
    return made


def test_two_trainings_of_one_prompt_equal_each_alone(server, queued):
    for lr, alone in ((SLOW, "slow alone"), (FAST, "fast alone")):
        assert same(lora(server, f"both {lr}"), lora(server, alone))
        pictures = [graphs.latent(server, f"together/{name}") for name in (f"both {lr}", alone)]
        assert torch.equal(*pictures)
    assert not same(lora(server, f"both {SLOW}"), lora(server, f"both {FAST}"))


def test_two_trainings_of_the_same_settings_are_both_right(server, queued):
    """They have one id. The host trains one of them and gives it to both, or trains both: the files are equal."""
    (first, second, other), prompt_id = queued["twins"]
    for i in range(2):
        assert same(lora(server, f"twin {i}"), lora(server, "fast alone"))
        pictures = [graphs.latent(server, f"together/{n}") for n in (f"twin {i}", "fast alone")]
        assert torch.equal(*pictures)
    assert not same(lora(server, "other"), lora(server, "fast alone"))
    twins = messages(server, prompt_id, first) + messages(server, prompt_id, second)
    (run,) = {m["run"] for m in twins}
    assert {m["run"] for m in messages(server, prompt_id, other)} != {run}
    files = {path.name for path in (server.output / "graft" / run).glob("twins*.safetensors")}
    assert files == {"twins.safetensors"}
    history = server.get(f"/graft/runs/{run}")
    assert history["state"] == "done" and [row[1] for row in history["points"]] == [1, 2, 3]


def test_files_of_one_name_do_not_collide(server, queued):
    _, prompt_id = queued["twins"]
    got = graphs.messages(server, prompt_id)
    paths = {m["path"] for m in got if m["kind"] == "saved" and m["path"].startswith("loras/")}
    assert paths == {f"loras/twins_step000002{end}.safetensors" for end in ("", "_00002")}
    nodes, prompt_id = queued["both"]
    samples = [
        {
            image["subfolder"]
            for m in messages(server, prompt_id, node)
            for image in m.get("images", ())
        }
        for node in nodes
    ]
    assert all(len(folders) == 1 for folders in samples) and samples[0] != samples[1]


def test_the_messages_of_trainings_are_told_apart(server, queued):
    for which in ("both", "twins"):
        nodes, prompt_id = queued[which]
        everything = graphs.messages(server, prompt_id)
        told = {m["node"] for m in everything}
        assert told == set(nodes) if which == "both" else told <= set(nodes) and len(told) >= 2
        for node in told:
            got = messages(server, prompt_id, node)
            assert got[0]["kind"] == "start" and got[-1]["kind"] == "ended"
            assert [p[0] for m in got for p in m.get("points", [])] == [1, 2, 3]
            assert all(b["seq"] - a["seq"] == 1 for a, b in pairwise(got))
        numbers = [(m["run"], m["seq"]) for m in everything]
        assert len(set(numbers)) == len(numbers), "no number of a run is given twice"


def test_a_prompt_that_is_queued_again_trains_nothing_again(server):
    graph = graphs.Mini(server)
    node = trained(graph, "again", SLOW)
    server.run(graph.prompt)
    again = server.queue(graph.prompt)
    server.wait(again)
    assert not graphs.messages(server, again)
    graph.add("LossGraphNode", loss=[node, 4], filename_prefix="again")  # nor where a node is added
    more = server.queue(graph.prompt)
    server.wait(more)
    assert not graphs.messages(server, more)
