# SPDX-License-Identifier: Apache-2.0
"""Training in graphs on a real server: what a run leaves behind, however it ends."""

import json
import re

import pytest

from graft.benchmarks.skeleton import graphs, runs

pytestmark = pytest.mark.server


def test_an_interrupt_keeps_the_work_and_leaves_the_model_alone(server):
    seen = runs.interrupted(server)
    assert seen["prompt_interrupted"] and seen["state"] == "interrupted"
    assert seen["steps_after"] <= 1
    (name,) = seen["new_files"]
    assert name.startswith("stopped_step")
    assert seen["samples_differ"] and not seen["lora_complaints"]
    assert seen["change"] == 0


def test_the_same_graph_and_seed_give_the_same_file(server):
    assert runs.repeated(server)


def test_another_seed_gives_another_file(server):
    files = []
    for seed in (0, 1):
        graph = graphs.Mini(server)
        node = graph.train(name="seeds", steps=2, seed=seed, **runs.SHORT)
        graph.save(node, filename=f"seed{seed}")
        server.run(graph.prompt)
        files.append(graphs.loras(server)[f"seed{seed}.safetensors"])
    assert files[0] != files[1]


def test_training_sampling_and_training_on_in_one_server(server):
    assert runs.continued(server)


def test_the_stock_loader_gives_the_model_on_the_wire(server):
    off, change = runs.reloaded(server)
    assert change > 0.02, "the LoRA has to do something for this to say anything"
    assert off <= 1e-3


def test_core_nodes_take_what_comes_out(server):
    graph = graphs.Mini(server)
    node = graph.train(name="core", steps=3, **runs.SHORT)
    graph.add("SaveLoRA", lora=[node, 2], prefix="loras/by_core")
    loader = graph.add("LoraModelLoader", model=graph.model, lora=[node, 2], strength_model=1.0)
    plot = graph.add("LossGraphNode", loss=[node, 4], filename_prefix="loss")
    graph.add("PreviewImage", images=[node, 5])
    graph.sample([node, 0], "core_wire")
    graph.sample([loader, 0], "core_loaded")
    entry = server.run(graph.prompt)
    assert server.images(entry, plot) or entry["outputs"].get(plot)
    wire, loaded = graphs.latent(server, "core_wire"), graphs.latent(server, "core_loaded")
    assert runs.difference(wire, loaded) <= 1e-3
    (saved,) = [name for name in graphs.loras(server) if name.startswith("by_core")]
    from_file = runs.sampled(server, "core_file", saved)
    assert runs.difference(wire, from_file) <= 1e-3


def test_events_have_no_gaps_and_do_not_flood(server):
    seen = runs.watched(server)
    assert seen["kinds"][0] == "start" and seen["kinds"][-1] == "ended"
    assert seen["gaps"] == 0 and seen["nodes"]
    assert seen["steps"] == list(range(1, 41))
    assert seen["busiest_second"] <= 6  # five a second, and the last one
    assert seen["rest"] and seen["state"] == "done"


def test_a_run_that_is_finished_early_goes_on_with_the_next_nodes(server):
    seen = runs.finished(server)
    assert seen["state"] == "finished" and seen["steps"] < 400 and seen["saved"]


def test_validations_reach_the_browser_and_the_history(server):
    graph = graphs.Mini(server)
    unseen = graph.dataset("graft-examples/texture")
    steps = {"steps": 4, "validate_every": 2, "batch_size": 2, "name": "watched"}
    node = graph.train("GraftTrain", validation=unseen, **steps)
    plot = graph.add("LossGraphNode", loss=[node, 4], filename_prefix="watched")
    prompt_id = server.queue(graph.prompt)
    entry = server.wait(prompt_id)
    got = [m for m in graphs.messages(server, prompt_id) if m["kind"] == "validated"]
    assert [m["step"] for m in got] == [0, 2, 4] and {m["node"] for m in got} == {node}
    assert all(len(m["per_sigma"]) == 8 and m["weights"] == "raw" for m in got)
    assert any(name.startswith("input_blocks.") for name in got[-1]["change"])
    history = server.get(f"/graft/runs/{got[0]['run']}")["events"]
    assert [row["loss"] for row in history if row["kind"] == "validated"] == [
        m["loss"] for m in got
    ]
    assert f"validation loss {got[0]['loss']:.4f} (step 0)" in graphs.shown(entry, node)
    assert server.images(entry, plot) or entry["outputs"].get(plot)


@pytest.mark.parametrize("loader", ["LoraLoaderModelOnly", "LoraLoader"])
def test_one_prompt_samples_a_picture_of_every_saved_step(server, loader):
    """Trained, listed, loaded by the host's own node and sampled in one prompt; again by name, without the training."""
    name, settings = f"grid {loader}", {"steps": 6, "learning_rate": 0.01, **runs.SHORT}
    graph = graphs.Mini(server)
    node = graph.train(name=name, save_every=2, **settings)
    listed = graph.add("GraftListLoras", adapter=[node, 6])
    clip = {} if loader == "LoraLoaderModelOnly" else {"clip": graph.clip}
    strength = {"strength_model": 1.0} | ({"strength_clip": 1.0} if clip else {})
    loaded = graph.add(loader, model=graph.model, lora_name=[listed, 0], **clip, **strength)
    graph.sample([loaded, 0], "unused")
    graph.set(graph.last("SaveLatent"), filename_prefix=[listed, 2])
    entry = server.run(graph.prompt)
    labels = [f"{name}_step{step:06}" for step in (2, 4, 6)]
    assert graphs.shown(entry, listed) == "\n".join(
        ["3 files", *(f"{x}.safetensors" for x in labels)]
    )
    again = server.queue(graph.prompt)
    server.wait(again)
    cached = server.events_of(again, "execution_cached")[0]["data"]["nodes"]
    assert set(cached) == set(graph.prompt), "nothing is trained or sampled again"
    drawn = [graphs.latent(server, label) for label in labels]
    for label, one in zip(labels, drawn, strict=True):
        alone = runs.sampled(server, f"alone {loader}", f"{label}.safetensors")
        assert runs.difference(one, alone) == 0
    assert runs.difference(drawn[0], drawn[1]) > 0.005 < runs.difference(drawn[1], drawn[2])

    later = graphs.Mini(server)
    listed = later.add("GraftListLoras", name="grid *Loader*")
    later.add("PreviewAny", source=[listed, 1])
    entry = server.run(later.prompt)
    assert f"{labels[2]}.safetensors" in graphs.shown(entry, listed)


def test_unknown_runs_are_refused(server):
    for path in ("/graft/runs/0123456789abcdef", "/graft/runs/..%2f..%2fetc"):
        status, _ = server.request(path)
        assert status == 404
    status, _ = server.request("/graft/runs/0123456789abcdef/finish", {}, method="POST")
    assert status == 404


README = (graphs.ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readmes_prompt_for_headless_users_works(server):
    body = json.loads(re.search(r"-d '\n(.*?)}'\n```", README, re.DOTALL)[1] + "}")
    trains = body["prompt"]["3"]["inputs"]
    template = graphs.shipped(server)
    (node,) = graphs.nodes_of(template, "GraftTrainLora")
    wanted = template[node]["inputs"]
    widgets = {name for name, value in trains.items() if not isinstance(value, list)} - {"name"}
    assert {name: trains[name] for name in widgets} == {name: wanted[name] for name in widgets}
    trains["steps"] = 2
    entry = server.run(body["prompt"])
    shown = graphs.shown(entry, "4")
    assert "my first lora.safetensors" in shown and "tensors applied" in shown


def test_the_tables_have_every_node(server):
    page = (graphs.ROOT / "docs" / "nodes.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| (.+?) \| `(\w+)` \|", page, re.MULTILINE))
    there = {
        info["display_name"]: key
        for key, info in server.object_info().items()
        if info["category"].split("/")[0] == "graft"
    }
    assert told == there
    rows = README.split("| for | nodes |")[1].split("\n\n")[0]
    listed = [
        name.strip() for row in rows.splitlines()[2:] for name in row.split("|")[2].split(",")
    ]
    assert sorted(listed) == sorted(told)
