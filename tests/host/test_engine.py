# SPDX-License-Identifier: Apache-2.0
"""The engine on tiny real ComfyUI models: determinism, resuming, interrupting, refusing."""

import dataclasses
import hashlib
import re

import pytest
import torch

pytestmark = pytest.mark.comfy


@pytest.fixture(scope="module")
def wires():
    from tests.host import tiny

    with torch.inference_mode():
        return {family: tiny.model(family) for family in ("sdxl", "sd15", "sdxl_edm", "sd3")} | {
            f"{kind}_{family}": getattr(tiny, kind)(family)
            for kind in ("clip", "vae")
            for family in ("sdxl", "sd15", "sdxl_edm", "sd3")
        }


@pytest.fixture
def output(tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return tmp_path


def dataset(count=4, caption="a zork thing"):
    from graft.trainers.data import Dataset, Item

    generator = torch.Generator().manual_seed(0)
    items = [Item(caption, pixels=torch.rand(64, 64, 3, generator=generator)) for _ in range(count)]
    return Dataset(tuple(items), trigger="zork")


def request(wires, family="sdxl", steps=4, **changes):
    from graft.adapters.lora import LoRA
    from graft.host.engine import Request
    from graft.trainers.objectives import Objective
    from graft.trainers.plan import Plan

    plan = Plan(**{"steps": steps, "batch_size": 2, **changes.pop("plan", {})})
    made = Request(
        wires[family],
        changes.pop("dataset", None) or dataset(),
        wires[f"vae_{family}"],
        wires[f"clip_{family}"],
        network=LoRA(rank=2, blocks=changes.pop("blocks", "attention")),
        plan=plan,
        objective=Objective(preserve=changes.pop("preserve", 0.0)),
    )
    return dataclasses.replace(made, **changes)


def train(*args, **kwargs):
    from graft.host import engine

    with torch.inference_mode():
        return engine.train(request(*args, **kwargs))


def digests(folder):
    files = sorted(set(folder.rglob("*.safetensors")) - set(folder.rglob("*.state.safetensors")))
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


@pytest.mark.parametrize("family", ["sdxl", "sd15", "sdxl_edm"])
def test_a_run_gives_seven_outputs_and_a_file_that_loads_whole(wires, output, family):
    outcome = train(wires, family, blocks="all" if family == "sdxl" else "attention")
    assert len(outcome.loss_map["loss"]) == 4
    assert len(digests(output)) == 1
    count = len(outcome.lora_model)
    assert f"{count} of {count} tensors applied" in outcome.report
    assert not any(tensor.is_inference() for tensor in outcome.lora_model.values())
    assert outcome.model is not wires[family]
    assert outcome.images.ndim == 4


def test_equal_runs_write_equal_bytes(wires, output):
    train(wires)
    first = digests(output)
    for path in output.rglob("*.safetensors"):
        path.unlink()
    torch.manual_seed(123)
    train(wires)
    assert digests(output) == first
    train(wires, plan={"seed": 1})
    assert len(set(digests(output).values())) == 2


def test_three_and_three_of_six_equals_six(wires, output):
    whole = train(wires, steps=6)
    head = train(wires, steps=3, plan={"total_steps": 6})
    tail = train(wires, steps=3, plan={"total_steps": 6}, state=head.state)
    assert tail.loss_map == whole.loss_map
    for key, value in whole.lora_model.items():
        assert torch.equal(value, tail.lora_model[key])


def copied(value):
    """A state's parts, its tensors as copies."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if dataclasses.is_dataclass(value):
        return {f.name: copied(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, (list, tuple)) else value


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def test_two_runs_branch_off_one_state_that_stays_as_it_was(wires, output):
    """With its own settings it is the whole run; another learning rate goes elsewhere; in any order."""
    from graft.trainers.optimizers import Optimizer
    from graft.trainers.optimizers.adamw import AdamW
    from graft.trainers.preview import Preview

    slow, fast = (Optimizer(AdamW(lr), ema_decay=0.9) for lr in (1e-3, 1e-2))
    shown = {"plan": {"total_steps": 6}, "preview": Preview(("a zork",), steps=1, cfg=1.0, every=3)}
    head = train(wires, steps=3, optimizer=slow, **shown)
    before = copied(head.state)
    tails = [
        train(wires, steps=3, optimizer=optimizer, state=head.state, **shown)
        for optimizer in (fast, slow, fast)
    ]
    assert equal(before, copied(head.state))
    whole = train(wires, steps=6, optimizer=slow, **shown)
    assert equal(dict(tails[1].lora_model), dict(whole.lora_model))
    assert equal(dict(tails[0].lora_model), dict(tails[2].lora_model))
    assert tails[0].loss_map["loss"][:3] == whole.loss_map["loss"][:3]
    assert tails[0].loss_map["loss"][4:] != whole.loss_map["loss"][4:]
    assert torch.equal(tails[1].images, whole.images)
    drawn = {
        name: sorted(path.name for path in (output / "graft" / made.run / "samples").iterdir())
        for name, made in (("head", head), ("fast", tails[0]), ("slow", tails[1]))
    }
    own = ["step_000006_0.png"]
    assert drawn == {
        "head": ["step_000000_0.png", "step_000003_0.png"],
        "fast": own,
        "slow": own,
    }
    assert len({head.run, tails[0].run, tails[1].run, whole.run}) == 4


def test_an_interrupt_keeps_the_work_and_the_model(wires, output, monkeypatch):
    import comfy.model_management as management

    from graft.host import engine

    with torch.inference_mode():
        wires["sdxl"].detach()  # of the patches of a MODEL out that is gone
    before = {name: value.clone() for name, value in wires["sdxl"].model.state_dict().items()}
    calls = []

    def interrupted():  # asked before each of 4 pictures, their caption, and each step
        calls.append(1)
        if len(calls) == 8:
            raise management.InterruptProcessingException()

    monkeypatch.setattr(engine, "_interrupt", interrupted)
    with pytest.raises(management.InterruptProcessingException):
        train(wires, steps=50)
    monkeypatch.undo()
    (name,) = digests(output)
    assert name == "loras/graft_step000002.safetensors"
    from graft.host.files import result

    assert result.self_check(output / name, wires["sdxl"]).complete
    after = wires["sdxl"].model.state_dict()
    changed = [key for key, value in before.items() if not torch.equal(value, after[key])]
    assert not changed, changed[:3]
    assert not any("forward" in module.__dict__ for module in wires["sdxl"].model.modules())
    assert engine.is_interrupt(management.InterruptProcessingException())


def test_a_failure_keeps_the_work_and_says_where(wires, output, monkeypatch):
    from graft.trainers.loop import Diverged, Loop

    real = Loop._update

    def diverge(loop):
        if loop.step == 3:
            raise Diverged("The loss is nan at step 4.")
        return real(loop)

    monkeypatch.setattr(Loop, "_update", diverge)
    with pytest.raises(Diverged, match="after 3 steps is kept in output/loras/graft_step000003"):
        train(wires, steps=9)
    assert (output / "loras" / "graft_step000003.safetensors").is_file()


def test_a_failing_preview_is_a_warning(wires, output, monkeypatch):
    from graft.host.preview import sampled as preview
    from graft.trainers.preview import Preview

    def fail(*args, **kwargs):
        raise RuntimeError("no paint")

    monkeypatch.setattr(preview, "sample", fail)
    outcome = train(wires, preview=Preview(("a zork",), steps=2, every=2))
    assert len(outcome.loss_map["loss"]) == 4


def test_previews_do_not_change_what_is_trained(wires, output):
    from graft.trainers.preview import Preview

    plain = train(wires)
    shown = train(
        wires, preview=Preview(("a zork", "a thing"), steps=2, every=2, width=64, height=64)
    )
    assert shown.images.shape == (2, 64, 64, 3)
    for key, value in plain.lora_model.items():
        assert torch.equal(value, shown.lora_model[key])
    names = [path.name for path in sorted(output.rglob("*.png"))]
    assert names == [f"step_{step:06}_{i}.png" for step in (0, 2, 4) for i in (0, 1)]


@pytest.fixture
def shown():
    """A preview, and an optimizer that changes the pictures in a few steps."""
    from graft.trainers.optimizers import Optimizer
    from graft.trainers.optimizers.adamw import AdamW
    from graft.trainers.preview import Preview

    preview = Preview(("a zork", "a thing"), "blurred", steps=3, cfg=2.0, seed=7, every=3)
    return {
        "preview": preview,
        "optimizer": Optimizer(AdamW(0.05)),
        "plan": {"precision": "fp32"},
    }


def compared(report):
    """The number in the report's line about MODEL out."""
    (line,) = [line for line in report.splitlines() if line.startswith("MODEL out gives")]
    words = "MODEL out gives the last preview's first picture within (.*) of its range"
    return float(re.fullmatch(words, line).group(1))


@pytest.mark.parametrize("family", ["sdxl", "sdxl_edm"])
def test_model_out_draws_what_the_trainee_drew(wires, output, family, shown, monkeypatch):
    import comfy.samplers

    from graft.host.files import result

    drawn = torch.get_rng_state()
    outcome = train(wires, family, **shown)
    assert compared(outcome.report) <= 1e-3
    assert torch.equal(torch.get_rng_state(), drawn)
    sampler = comfy.samplers.sampler_object("dpmpp_2m")  # the wires' sampler and noise levels count
    sigmas = torch.tensor([5.0, 1.0, 0.0])
    outcome = train(wires, family, **shown, sampler=sampler, sigmas=sigmas)
    assert compared(outcome.report) <= 1e-3
    real = result.apply_both

    def unpatched(model, clip, lora):
        return model, clip, real(model, clip, lora)[2]

    monkeypatch.setattr(result, "apply_both", unpatched)
    assert compared(train(wires, family, **shown).report) > 0.01


def test_model_out_is_compared_with_the_end_only_and_never_fails_the_run(
    wires, output, shown, monkeypatch, caplog
):
    from graft.host.preview import comparison
    from graft.host.runs import history as runs

    def fail(*args):
        raise RuntimeError("no paint")

    calls = []
    with monkeypatch.context() as patched:
        patched.setattr(runs, "wants_finish", lambda run: calls.append(1) or len(calls) >= 2)
        assert "MODEL out" not in train(wires, **shown).report
    monkeypatch.setattr(comparison, "difference", fail)
    outcome = train(wires, **shown)
    assert "MODEL out" not in outcome.report and outcome.images.shape[0] == 2
    assert "could not be compared with the last preview: no paint" in caplog.text


def test_finish_ends_early_as_if_done(wires, output, monkeypatch):
    from graft.host.runs import history as runs

    seen = []

    def finish(run):
        seen.append(run)
        return len(seen) >= 2

    monkeypatch.setattr(runs, "wants_finish", finish)
    outcome = train(wires, steps=50)
    assert len(outcome.loss_map["loss"]) == 2


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"clip": None}, "No CLIP"),
        ({"vae": None}, "No VAE"),
        ({"plan": {"batch_size": 9}}, "batch_size is 9 but the dataset has 4"),
        ({"blocks": "atn2"}, "Did you mean attn2"),
        ({"name": "../x"}, "name of the LoRA"),
        ({"name": "a/b"}, "name of the LoRA"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(wires, output, changes, message):
    from graft.host import engine

    asked = request(wires, **changes)
    with pytest.raises(ValueError, match=message):
        engine.train(asked)
    assert not list(output.rglob("*.*"))


def test_wires_of_another_family_are_named(wires, output):
    with pytest.raises(ValueError, match="VAE"):
        train(wires, "sdxl", vae=wires["vae_sd3"])
    with pytest.raises(ValueError, match="CLIP"):
        train(wires, "sdxl", clip=wires["clip_sd3"])
    assert not list(output.rglob("*.safetensors"))


def test_the_run_is_known_by_what_it_is(wires):
    from graft.host.runs import identity
    from graft.trainers.plan import Plan
    from tests.host import tiny

    first = identity.model_digest(wires["sdxl"])
    assert first == identity.model_digest(tiny.model("sdxl"))
    ids = {identity.run_id(first, d, Plan(seed=s)) for d in "de" for s in (0, 1)}
    assert len(ids) == 4
    patched = wires["sdxl"].clone()
    key = next(k for k in patched.model.state_dict() if k.endswith("to_q.weight"))
    patched.add_patches({key: ("diff", (torch.ones_like(patched.model.state_dict()[key]),))}, 0.5)
    assert identity.model_digest(patched) != first


def test_another_clip_or_vae_is_another_run(wires, output):
    from graft.host import engine
    from graft.host.text import tokens
    from tests.host import tiny

    skipping, clip = wires["clip_sdxl"].clone(), wires["clip_sdxl"]
    skipping.clip_layer(-3)
    with torch.inference_mode():
        words = {"TOK": {"clip_l": torch.ones(1, 32), "clip_g": torch.ones(1, 64)}}
        others = {k: {n: 2 * v for n, v in by.items()} for k, by in words.items()}
        changes = [
            {},
            {"clip": skipping},
            {"clip": tiny.clip("sdxl", seed=5)},
            {"clip": tokens.bind(clip, words)},
            {"clip": tokens.bind(clip, others)},
            {"vae": tiny.vae("sdxl", seed=5)},
        ]
        runs = [engine._Run(request(wires, **change)).run for change in [*changes, {}]]
    assert len(set(runs)) == len(changes) and runs[0] == runs[-1]


def test_the_digest_does_not_depend_on_what_is_loaded(wires):
    import comfy.model_management as management

    from graft.host.runs import identity

    before = identity.model_digest(wires["sdxl"])
    patched = wires["sdxl"].clone()
    key = next(k for k in patched.model.state_dict() if k.endswith("to_q.weight"))
    patched.add_patches({key: ("diff", (torch.ones_like(patched.model.state_dict()[key]),))}, 0.5)
    with torch.inference_mode():
        management.load_models_gpu([patched])
        try:
            assert identity.model_digest(wires["sdxl"]) == before
        finally:
            management.unload_all_models()


def test_a_picture_that_vanishes_in_mid_run_costs_nothing(
    wires, output, tmp_path_factory, monkeypatch
):
    from PIL import Image

    from graft.trainers.data import Dataset, Item
    from graft.trainers.loop import Loop

    folder = tmp_path_factory.mktemp("pictures")
    for i in range(3):
        Image.new("RGB", (64, 64), (80 * i, 10, 10)).save(folder / f"{i}.png")
    items = [Item("a zork", path=str(folder / f"{i}.png")) for i in range(3)]
    real = Loop._update

    def remove(loop):
        (folder / "0.png").unlink(missing_ok=True)
        return real(loop)

    monkeypatch.setattr(Loop, "_update", remove)
    outcome = train(wires, dataset=Dataset(tuple(items), trigger="zork"))
    assert len(outcome.loss_map["loss"]) == 4


def test_a_full_disk_costs_no_finished_work(wires, output, monkeypatch):
    from graft.host.files import result

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(result, "save_lora", full)
    outcome = train(wires)
    assert outcome.lora_model
    assert "NOT on disk" in outcome.report
    assert "tensors applied" in outcome.report


def test_a_file_that_cannot_be_read_again_costs_no_outputs(wires, output, monkeypatch):
    from graft.host.files import result

    def broken(path, *wires):
        raise ValueError(f"'{path.name}' cannot be opened again: cut off")

    monkeypatch.setattr(result, "self_check", broken)
    outcome = train(wires, plan={"autosave_every": 1})
    assert "but NOT as it should be ('graft.safetensors' cannot be opened" in outcome.report
    assert "tensors applied" in outcome.report
    assert list(output.rglob("*.state.safetensors")), "the state is all that is sure"


@pytest.mark.parametrize("error", [(RuntimeError, "no"), (OSError, 5, "Input/output error")])
def test_nothing_hides_what_ended_a_run(wires, output, monkeypatch, error):
    """Not even that the state cannot be made either, and every kind of error says what was kept."""
    from graft.trainers.loop import Loop

    real = Loop._accumulate

    def fail(loop):
        if loop.step == 2:
            raise error[0](*error[1:])
        return real(loop)

    def no_memory(loop):
        raise MemoryError("not for a copy either")

    monkeypatch.setattr(Loop, "_accumulate", fail)
    with pytest.raises(error[0], match="after 2 steps is kept in output/loras.* goes on from"):
        train(wires)
    monkeypatch.setattr(Loop, "state", no_memory)
    with pytest.raises(error[0], match=r"after 2 steps is kept in output/loras[^ ]*$"):
        train(wires, plan={"when_found": "start fresh"})


def test_a_state_of_another_model_is_refused(wires, output):
    head = train(wires, steps=2, plan={"total_steps": 4})
    with pytest.raises(ValueError, match="before the first training node"):
        train(wires, steps=2, plan={"total_steps": 4}, state=head.state, model=head.model)


@pytest.mark.parametrize("part", ["exp_avg", "alpha", "lora_up.weight"])
def test_a_misshapen_state_is_refused_before_a_step(wires, output, part):
    """A state's file may be anyone's, and its checksum right."""
    head = train(wires, steps=2, plan={"total_steps": 4})
    files = digests(output)
    weights = {name: value.clone() for name, value in wires["sdxl"].model.state_dict().items()}
    state = head.state
    if part == "exp_avg":
        kept = {name: {**values, part: torch.ones(3)} for name, values in state.optimizer.items()}
        state = dataclasses.replace(state, optimizer=kept)
    else:
        own = {n: torch.ones(3) if n.endswith(part) else v for n, v in state.adapter.items()}
        state = dataclasses.replace(state, adapter=own)
    with pytest.raises(ValueError, match=rf"shape \[3\].*{part}|{part}: expected shape .* \[3\]"):
        train(wires, steps=2, plan={"total_steps": 4}, state=state)
    assert digests(output) == files
    after = wires["sdxl"].model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in weights.items())
    assert not any("forward" in m.__dict__ for m in wires["sdxl"].model.modules())
    tail = train(wires, steps=2, plan={"total_steps": 4}, state=head.state)
    assert tail.state.step == 4


def test_a_run_leaves_nothing_behind(wires, output):
    import gc
    import weakref

    from graft.host import engine

    gc.collect()
    gc.disable()
    try:
        with torch.inference_mode(False):
            run = engine._Run(request(wires))
            loops = []
            real = run._new_loop
            run._new_loop = lambda *args: loops.append(weakref.ref(made := real(*args))) or made
            run.go()
        assert loops[0]() is None
    finally:
        gc.enable()


def test_weights_that_are_not_finite_are_never_called_done(wires, output, monkeypatch):
    from graft.trainers.loop import Diverged, Loop

    real = Loop._update

    def spoil(loop):
        norm = real(loop)
        next(iter(loop.parameters.values())).data.fill_(float("nan"))
        return norm

    monkeypatch.setattr(Loop, "_update", spoil)
    with pytest.raises(Diverged, match="not finite"):
        train(wires, steps=1)
    assert not list(output.rglob("*.safetensors"))


def test_priors_are_captions_without_the_trigger_as_a_word():
    from graft.host.data.priors import prior_prompts
    from graft.trainers.data import Dataset, Item

    pixels = torch.zeros(64, 64, 3)
    captions = ["a sks dog", "a man asks", "sks, a cat", "a dog"]
    data = Dataset(tuple(Item(text, pixels=pixels) for text in captions), trigger="sks")
    assert prior_prompts(data, ()) == (", a cat", "")
    assert prior_prompts(data, ("x", "x", "y")) == ("x", "y", "")
    several = [Item((f"a sks {i}", f"b sks {i}"), pixels=pixels) for i in range(2)]
    assert prior_prompts(Dataset(tuple(several), "sks"), ())[:4] == ("a 0", "a 1", "b 0", "b 1")
    bare = Dataset(data.items, trigger="")
    assert prior_prompts(bare, ()) == ("",)


@pytest.mark.parametrize(("named", "count"), [(1, 8), (7, 8), (8, 10), (40, 46), (500, 48)])
def test_one_prior_in_eight_is_the_empty_prompt_that_guidance_compares_with(named, count):
    from graft.host.data.priors import prior_list

    prompts = [f"prompt {i}" for i in range(named)]
    made = prior_list([*prompts, ""])
    assert len(made) == count
    assert made.count("") == count // 8
    assert list(dict.fromkeys(filter(None, made))) == prompts[: count - count // 8]
    assert prior_list([""]) == ("",) * 8


def test_a_plain_fp8_model_trains_and_is_delivered(wires, output):
    from tests.host import tiny

    model = tiny.model("sdxl")
    with torch.inference_mode():
        for module in model.model.diffusion_model.modules():
            if isinstance(module, torch.nn.Linear):
                module.comfy_cast_weights = True
                module.weight = torch.nn.Parameter(module.weight.to(torch.float8_e4m3fn), False)
    outcome = train(wires, model=model, steps=2)
    assert "tensors applied" in outcome.report


def test_what_comes_before_the_first_step_is_counted_in_the_node(wires, output, monkeypatch):
    from graft.host.runs import progress

    shown = []
    monkeypatch.setattr(progress, "MESSAGE_EVERY_S", 0.0)
    monkeypatch.setattr(progress.RunSink, "_show", lambda sink, text: shown.append(text))
    train(wires, steps=1, preserve=1.0)
    shown = [text for text in shown if text.startswith(("encoding", "sampling"))]
    counted = [text.partition("  ETA")[0] for text in shown]
    assert counted == [
        *(f"encoding pictures {i} of 4" for i in (1, 2, 3, 4)),
        *(f"encoding captions {i} of 3" for i in (1, 2, 3)),
        *(f"sampling pictures to stay close to {i} of 8" for i in (1, 5)),  # 4 at once
    ]


def test_preservation_holds_on_to_pictures_of_the_base(wires, output, monkeypatch):
    """8 pictures of the base are made, equal runs are equal, and a run in two parts equals one."""
    from graft.host.data.priors import PriorPictures
    from graft.trainers.objectives import Objective

    real, made = PriorPictures.draw, []
    monkeypatch.setattr(PriorPictures, "draw", lambda *args: made.append(real(*args)) or made[-1])
    whole = train(wires, steps=2, preserve=1.0)
    assert len(made[0]) == 8
    assert made[0][0][0].latents.shape == (1, 4, 8, 8)
    assert {text for _, text in made[0]} == {"a thing", ""}
    train(wires, steps=1, objective=Objective(preserve=1.0, preserve_prompts=("a cat",)))
    assert {text for _, text in made[1]} == {"a cat", ""}
    head = train(wires, steps=1, preserve=1.0, plan={"total_steps": 2})
    tail = train(wires, steps=1, preserve=1.0, plan={"total_steps": 2}, state=head.state)
    for key, value in whole.lora_model.items():
        assert torch.equal(value, tail.lora_model[key])


def test_with_an_average_the_result_is_the_average_and_the_last_weights_are_a_second_file(
    wires, output
):
    from safetensors import safe_open

    from graft.trainers.optimizers import Optimizer
    from graft.trainers.optimizers.adamw import AdamW

    plain = train(wires, optimizer=Optimizer(AdamW(1e-2)))
    outcome = train(wires, optimizer=Optimizer(AdamW(1e-2), ema_decay=0.5))
    main, raw = sorted(output.glob(f"graft/{outcome.run}/*.safetensors"))
    assert (main.name, raw.name) == ("graft.safetensors", "graft_raw.safetensors")
    assert (
        f"average of decay 0.5; the last weights: output/graft/{outcome.run}/{raw.name}"
        in outcome.report
    )
    weights = {}
    for path, kind in ((main, "ema"), (raw, "raw")):
        with safe_open(path, "pt") as file:
            facts = file.metadata()
            assert (facts["graft.ema_decay"], facts["graft.weights"]) == ("0.5", kind)
            weights[kind] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    for key, value in plain.lora_model.items():
        assert torch.equal(
            weights["raw"][key], value
        )  # the average changed nothing of the training
        assert torch.equal(weights["ema"][key], outcome.lora_model[key])
        assert torch.equal(weights["ema"][key], outcome.adapter.tensors[key])
    ups = [key for key in weights["raw"] if key.endswith("up.weight")]
    assert not any(torch.equal(weights["raw"][key], weights["ema"][key]) for key in ups)
    patched = outcome.model.patches
    place = next(key for key in patched if key.endswith("attn1.to_q.weight"))
    (patch,) = patched[place]
    key = place.replace(".weight", ".lora_up.weight")
    assert torch.equal(patch[1].weights[0], weights["ema"][key])
    assert len(sorted(output.glob(f"graft/{plain.run}/*.safetensors"))) == 1


@pytest.mark.parametrize("name", ["adamw", "prodigy", "schedule-free-adamw"])
def test_parts_of_a_run_with_any_optimizer_are_the_whole_run(wires, output, name):
    from graft.trainers.optimizers import OPTIMIZERS, SCHEDULES, Optimizer

    decay = 0.0 if name == "schedule-free-adamw" else 0.9
    settings = Optimizer(OPTIMIZERS.get(name)(), SCHEDULES.get("linear")(), ema_decay=decay)
    whole = train(wires, steps=6, optimizer=settings)
    head = train(wires, steps=3, plan={"total_steps": 6}, optimizer=settings)
    tail = train(wires, steps=3, plan={"total_steps": 6}, optimizer=settings, state=head.state)
    assert tail.loss_map == whole.loss_map
    for key, value in whole.lora_model.items():
        assert torch.equal(value, tail.lora_model[key])


def test_previews_show_the_average(wires, output, shown):
    """MODEL out draws the last preview's picture, which it would not if that had the last weights."""
    from graft.trainers.optimizers import Optimizer
    from graft.trainers.optimizers.adamw import AdamW

    shown["optimizer"] = Optimizer(AdamW(0.05), ema_decay=0.999)
    assert compared(train(wires, **shown).report) <= 1e-3


def test_an_optimizer_that_cannot_run_here_is_refused_before_anything_is_written(wires, output):
    from graft.trainers.optimizers import Optimizer
    from graft.trainers.optimizers.adamw_8bit import AdamW8bit

    with pytest.raises(ValueError, match="adamw-8bit .*choose adamw"):
        train(wires, optimizer=Optimizer(AdamW8bit()))
    assert not [path for path in output.rglob("*") if path.is_file()]


def test_unusual_settings_of_the_optimizer_are_said(wires, output, monkeypatch):
    from graft.host import engine
    from graft.trainers.events import Warned
    from graft.trainers.optimizers import Optimizer
    from graft.trainers.optimizers.prodigy import Prodigy

    said, real = [], engine.RunSink.__call__
    monkeypatch.setattr(
        engine.RunSink, "__call__", lambda sink, event: (said.append(event), real(sink, event))[1]
    )
    train(wires, steps=1, optimizer=Optimizer(Prodigy(lr=1e-4), text_lr=1e-4))
    texts = [event.text for event in said if isinstance(event, Warned)]
    assert any("learning_rate 0.0001 is unusual for prodigy" in text for text in texts)
    assert any("text_lr has no effect" in text for text in texts)
