# SPDX-License-Identifier: Apache-2.0
"""Whatever ends a run, and wherever, the host is afterwards as it was before, bit for bit."""

import dataclasses
import importlib
import random

import pytest
import torch

from tests.host import full_disk
from tests.host.test_engine import dataset, output, request, wires  # noqa: F401

pytestmark = pytest.mark.comfy
# Module, what is called there, and after how many calls it fails.
PLACES = {
    "digests of pictures": ("graft.host.data.picture_index", "Digests.picture", 1),
    "encode a picture": ("comfy.sd", "VAE.encode", 1),
    "encode a text": ("comfy.sd", "CLIP.encode_from_tokens_scheduled", 1),
    "draw priors": ("comfy.samplers", "CFGGuider.sample", 0),
    "load": ("comfy.model_management", "load_models_gpu", 4),
    "attach": ("graft.adapters.lora", "LoRA.build", 9),
    "validate": ("graft.trainers.validation", "Validator.__call__", 1),
    "conditioning": ("graft.host.text.conditioning", "Conditioner.batch", 2),
    "forward": ("comfy.ldm.modules.attention", "CrossAttention.forward", 40),
    "denoise": ("graft.host.model.denoiser", "HostDenoiser.__call__", 2),
    "backward": ("torch", "Tensor.backward", 2),
    "clip the gradient": ("torch.nn.utils", "clip_grad_norm_", 2),
    "optimizer": ("torch.optim", "AdamW.step", 2),
    "tell of a step": ("graft.host.runs.progress", "RunSink._move_bar", 2),
    "write a state": ("graft.host.files.states", "writer", 1),
    "save a step's LoRA": ("graft.host.files.result", "save_lora", 0),
    "sample a preview": ("graft.host.preview.sampled", "_sample", 1),
    "rows of a preview": ("graft.host.preview.rows", "_latents", 1),
    "decode a preview": ("graft.host.preview.sampled", "decoded", 1),
    "save a preview": ("graft.host.preview.sampled", "save_samples", 1),
    "apply the result": ("graft.host.files.result", "apply_both", 0),
    "check the file": ("graft.host.files.result", "self_check", 0),
    "compare MODEL out": ("graft.host.preview.comparison", "difference", 0),
    "report": ("graft.host.drawing.plots", "smoothed", 0),
}


def errors():
    import comfy.model_management as mm

    from graft.trainers.loop import Diverged

    memory = getattr(torch, "OutOfMemoryError", None) or mm.OOM_EXCEPTION
    return {
        "interrupt": mm.InterruptProcessingException,
        "failure": lambda: RuntimeError("no"),
        "Ctrl-C": KeyboardInterrupt,
        "memory": lambda: memory("out of memory"),
        "disk": lambda: OSError(28, "No space left on device"),
        "NaN": lambda: Diverged("The loss is nan."),
    }


KINDS = ("interrupt", "failure", "Ctrl-C", "memory", "disk", "NaN")


def cases():
    """Every place with every error; in the quick tests, every third place with one error."""
    for number, place in enumerate(PLACES):
        for kind in KINDS:
            is_quick = number % 3 == 2 and kind == KINDS[number // 3 % len(KINDS)]
            yield pytest.param(place, kind, marks=() if is_quick else pytest.mark.slow)


@pytest.fixture
def failing(monkeypatch):
    """Makes a place fail once; returns the calls that it had."""

    def make(place, error):
        where, name, after = PLACES[place]
        owner = importlib.import_module(where)
        *parents, attribute = name.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        real, calls = getattr(owner, attribute), []

        def call(*args, **kwargs):
            calls.append(1)
            if len(calls) == after + 1:
                raise error()
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, attribute, call)
        return calls, after

    return make


def of_network(network):
    """Everything of a network that may not change."""
    return {
        "weights": {k: (v.dtype, v.device, v.clone()) for k, v in network.state_dict().items()},
        "grads": {k: (p.requires_grad, p.grad) for k, p in network.named_parameters()},
        "attributes": [sorted(m.__dict__) for m in network.modules()],
        "forwards": [m.__dict__.get("forward") for m in network.modules()],
        "kinds": [type(m) for m in network.modules()],
        "modes": [m.training for m in network.modules()],
        "hooks": [
            [*m._forward_pre_hooks, *m._forward_hooks, *m._backward_hooks]
            for m in network.modules()
        ],
        "casts": [getattr(m, "comfy_cast_weights", None) for m in network.modules()],
        "functions": [
            (len(getattr(m, "weight_function", ())), len(getattr(m, "bias_function", ())))
            for m in network.modules()
        ],
    }


def of_patcher(patcher):
    from graft.host.runs import identity

    return {
        **{f"network {k}": v for k, v in of_network(patcher.model).items()},
        "options": str(patcher.model_options),
        "objects": dict(patcher.object_patches),
        "patches": {k: len(v) for k, v in patcher.patches.items()},
        "digest": identity.model_digest(patcher),
        "current": getattr(patcher.model, "current_patcher", None) is None,
    }


def of_process():
    import comfy.ldm.flux.math as flux
    import comfy.model_management as mm
    import numpy as np
    from comfy.cli_args import args

    from graft.host.model import trainee

    return {
        "flags": [
            getattr(mm, n, None) for n in ("in_training", "NUM_STREAMS", "interrupt_processing")
        ],
        "arguments": dict(vars(args)),
        "functions": (flux.apply_rope, flux.apply_rope1),
        "is training": trainee._is_training,
        "autograd": (
            torch.is_inference_mode_enabled(),
            torch.is_grad_enabled(),
            torch.is_anomaly_enabled(),
            torch.is_autocast_enabled(),
        ),
        "defaults": (torch.get_default_dtype(), torch.get_num_threads(), torch.empty(0).device),
        "determinism": (
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic,
            torch.backends.cuda.matmul.allow_tf32,
        ),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": str(np.random.get_state()),  # noqa: NPY002
    }


def same(one, other):
    """Whether two snapshots are equal, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def assert_same(before, after):
    changed = {
        key: (before[key], after[key]) for key in before if not same(before[key], after[key])
    }
    for key, (one, other) in list(changed.items()):
        if isinstance(one, dict) and isinstance(other, dict):
            parts = [k for k in {*one, *other} if not same(one.get(k), other.get(k))]
            changed[key] = ({k: one.get(k) for k in parts}, {k: other.get(k) for k in parts})
    assert not changed


def of_wires(asked):
    found = {}
    for name in ("model", "clip", "vae"):
        wire = getattr(asked, name)
        patcher = wire if name == "model" else wire.patcher
        found |= {f"{name} {key}": value for key, value in of_patcher(patcher).items()}
    return found


def asked_for(wires, place=""):  # noqa: F811
    """A run that comes by a place, and by all that takes little time."""
    from graft.trainers.objectives import Objective
    from graft.trainers.preview import Preview

    plan = {"save_every": 2, "autosave_every": 1, "validate_every": 3, "batch_size": 1}
    preserve = 1.0 if place == "draw priors" else 0.0
    rows = "all" if place == "rows of a preview" else "samples"
    return request(
        wires,
        steps=3,
        plan=plan,
        dataset=dataset(2),
        objective=Objective(preserve=preserve, preserve_prompts=("a cat",)),
        preview=Preview(("a zork", "a cat"), steps=1, cfg=1.0, every=2, rows=rows),
        validation=dataset(1, "held out") if place == "validate" else None,
    )


@pytest.fixture
def asked(wires):  # noqa: F811
    return asked_for(wires)


def used(asked):
    """What the host's own nodes leave of the wires in use: they load them. Returns the latents."""
    from tests.host import tiny

    asked.clip.encode_from_tokens_scheduled(asked.clip.tokenize("a cat"))
    asked.vae.decode(asked.vae.encode(torch.zeros(1, 64, 64, 3)))
    return tiny.sample(asked.model, "sdxl")


def train(asked):
    from graft.host import engine

    return engine.train(asked)


@pytest.mark.parametrize(("place", "kind"), list(cases()))
def test_the_host_is_as_it_was(wires, output, failing, monkeypatch, place, kind):  # noqa: F811
    import comfy.model_management as mm

    asked = asked_for(wires, place)
    with torch.inference_mode():
        sampled = used(asked)
        before, process = of_wires(asked), of_process()
        loaded = [m.model for m in mm.current_loaded_models]
        calls, after = failing(place, errors()[kind])
        try:
            train(asked)
        except BaseException as error:  # noqa: BLE001 - all of them are raised here
            assert isinstance(error, type(errors()[kind]())), error
        assert len(calls) > after, "the run does not come by this place"
        monkeypatch.undo()
        assert_same(process, of_process())
        now = [m.model for m in mm.current_loaded_models]
        assert all(
            any(patcher is one or patcher.is_clone(one) for one in now) for patcher in loaded
        )
        assert torch.equal(used(asked), sampled)
        assert_same(before, of_wires(asked))
    assert not full_disk.damaged(output)


@pytest.mark.parametrize("way", ["whole", "finished", "no number"])
def test_a_run_that_ends_by_itself_leaves_no_trace_either(asked, output, monkeypatch, way):  # noqa: F811
    from graft.host.runs import history as runs
    from graft.trainers.loop import Diverged
    from graft.trainers.objectives import Objective

    if way == "finished":
        monkeypatch.setattr(runs, "wants_finish", lambda run: True)
    if way == "no number":
        real = Objective.sample_loss
        monkeypatch.setattr(Objective, "sample_loss", lambda *args: real(*args) * float("nan"))
    with torch.inference_mode():
        sampled = used(asked)
        before, process = of_wires(asked), of_process()
        if way == "no number":
            with pytest.raises(Diverged):
                train(asked)
        else:
            train(asked)
        assert_same(process, of_process())
        assert torch.equal(used(asked), sampled)
        assert_same(before, of_wires(asked))


def test_a_run_after_all_of_that_is_the_one_before(asked, output, failing, monkeypatch):  # noqa: F811
    """The same figures after runs that were broken off, in the same process."""
    fresh = dataclasses.replace(asked.plan, when_found="start fresh")
    asked = dataclasses.replace(asked, plan=fresh)
    with torch.inference_mode():
        first = train(asked)
        for place in ("forward", "sample a preview", "apply the result"):
            failing(place, errors()["interrupt"])
            with pytest.raises(errors()["interrupt"]):
                train(asked)
            monkeypatch.undo()
            import folder_paths

            monkeypatch.setattr(folder_paths, "output_directory", str(output))
        again = train(asked)
    assert again.loss_map == first.loss_map
    assert all(torch.equal(v, again.lora_model[k]) for k, v in first.lora_model.items())
