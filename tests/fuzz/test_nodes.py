# SPDX-License-Identifier: Apache-2.0
"""Any widgets of any node, also beyond their limits, as a link can bring them; training nodes up to the first step."""

from collections import deque
from types import SimpleNamespace

import pytest
import torch
from hypothesis import strategies as st

from tests.fuzz.fuzzing import fuzz, tiers

pytestmark = pytest.mark.comfy
DRAWN = {"GraftMiniModel"}  # no widget
WORDS = st.sampled_from(
    "rank alpha lr p_mean sigma_max gamma delta stratified beta2 floor warmup eps d_coef blocks schedule.warmup "
    "s_churn s_tmax rho eta beta_d c2 m original_steps".split()
)
NUMBERS = st.one_of(
    st.integers(-3, 20).map(str),
    st.floats().map(str),
    st.sampled_from(
        ["1e400", "-1", "0", "1_000", "true", "\u0661", "0x10", "9" * 5000, "", "1" + "0" * 30]
    ),
)
OPTIONS = st.lists(st.tuples(WORDS, NUMBERS).map("=".join), max_size=3).map(", ".join)
PATTERNS = st.one_of(
    st.text("*?[]-.a1\\n^$()|+{}, _", max_size=24),
    st.sampled_from(
        [
            "all",
            "*" * 40 + "x",
            "*?" * 20 + "x",
            "[",
            "[a-z",
            "[z-a]",
            "a" * 5000,
            "-",
            ",",
            "*.*.*.*.*x",
        ]
    ),
    st.lists(st.sampled_from(["*", "*", "?", "[a-z]", "o", "_", "."]), max_size=40).map("".join),
)
TEXTS = st.one_of(
    st.text(max_size=30),
    OPTIONS,
    PATTERNS,
    st.sampled_from(
        [
            "../x", "/etc/passwd", "C:\\x", "\\\\host\\x", "a/../../b", "CON", "nul.txt", "a\0b", "a\nb", ".", "~",
            "\x1b[31m", "a" * 300, "a" * 100_000, "\u202egnp", "<script>alert(1)</script>", "${jndi:x}", "{{7*7}}",
            "__import__('os')", "%s%n", "\ud800", "1,2", "1,2,3,4", "nan", "1e999,2", "-1,-1", "{a|b", "[[a|b]]",
            "graft-examples/../..",
        ]
    ),
)  # fmt: skip
WHOLE = st.one_of(
    st.integers(-3, 100),
    st.integers(),
    st.sampled_from([0, -1, 1, 2**31, 2**63, 2**64 - 1, 2**64, 10**30]),
)
REAL = st.one_of(
    st.floats(),
    st.floats(0, 2),
    st.sampled_from([0.0, -1.0, 1e-300, 1e300, float("nan"), float("inf")]),
)


@pytest.fixture(scope="module")
def wires():
    """What comes over sockets, by type."""
    import comfy.samplers

    from graft.adapters import NETWORKS
    from graft.adapters.file import AdapterFile
    from graft.host.sampling.editing import Wanted
    from graft.host.sampling.inversion import Inverted
    from graft.host.sampling.recorder import Recorder, Trace
    from graft.host.sampling.sampler import sampler
    from graft.samplers import SAMPLERS, KeyedNoise
    from graft.samplers.editing import Edit
    from graft.samplers.guidance import COURSES, LOSSES
    from graft.samplers.guidance.parts import Term
    from graft.samplers.inversion import INVERSIONS
    from graft.trainers.data import Dataset, Item
    from graft.trainers.objectives import Objective
    from graft.trainers.optimizers import Optimizer
    from graft.trainers.preview import Preview
    from tests.host import tiny
    from tests.trainers.test_state_pack import trained

    pixels = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = {"MODEL": tiny.model("sdxl"), "CLIP": tiny.clip("sdxl"), "VAE": tiny.vae("sdxl")}
    guider = comfy.samplers.CFGGuider(found["MODEL"])
    guider.set_conds(tiny.conditioning("sdxl"), tiny.conditioning("sdxl", seed=6))
    way = INVERSIONS.get("ledits-ddim")().invert(
        lambda x, sigma: x / 2, torch.ones(1, 4, 8, 8), (14.0, 3.0, 0.0), KeyedNoise(0)
    )
    latent_format = found["MODEL"].get_model_object("latent_format")
    return found | {
        "GUIDER": guider,
        "GRAFT_INVERSION": Inverted(way, "ledits-ddim", "eps", latent_format, ""),
        "GRAFT_EDITS": (Wanted(Edit(), tiny.conditioning("sdxl", seed=7)),),
        "GRAFT_DATASET": Dataset(
            tuple(Item(f"a {{b|c}}, {n}", pixels=pixels) for n in range(3)), "zork"
        ),
        "GRAFT_NETWORK": NETWORKS.get("lora")(),
        "GRAFT_OBJECTIVE": Objective(),
        "GRAFT_OPTIMIZER": Optimizer(),
        "GRAFT_PREVIEW": Preview(("a",)),
        "GRAFT_STATE": trained(),
        "GRAFT_ADAPTER": AdapterFile(
            {"x.lora_up.weight": torch.ones(2, 2)}, {"graft.steps": "1"}, "cat"
        ),
        "LOSS_MAP": {"loss": [0.5, 0.4], "sigma": [[1.0], [2.0]], "sample_loss": [[0.5], [0.4]]},
        "IMAGE": torch.rand(2, 32, 32, 3),
        "CONDITIONING": tiny.conditioning("sdxl"),
        "LATENT": {"samples": torch.zeros(1, 4, 8, 8)},
        "MASK": torch.ones(2, 32, 32),
        "SIGMAS": torch.tensor([14.0, 3.0, 0.0]),
        "SAMPLER": sampler(SAMPLERS.get("edm-heun")()),
        "GRAFT_GUIDANCE": (Term(LOSSES.get("color")(), COURSES.get("constant")()),),
        "GRAFT_STEPS": Recorder(
            deque([Trace("D", "step", (14.0,), {"|D|": (1.0,)}, 1, 1, frozenset())])
        ),
    }


def widgets(node):
    """A strategy for the inputs of a node that have widgets, and the types of its sockets."""
    given, sockets = {}, {}
    for one in node.GET_SCHEMA().inputs:
        kind = one.get_io_type() if hasattr(one, "get_io_type") else one.io_type
        options = [*(getattr(one, "options", None) or [])]
        limits = [
            v for v in (getattr(one, "min", None), getattr(one, "max", None)) if v is not None
        ]
        default = st.just(one.default) if getattr(one, "default", None) is not None else None
        if kind == "COMBO":
            any_value = st.one_of(
                st.sampled_from(options or ["x"]), st.sampled_from(options or ["x"]), TEXTS
            )
        elif kind == "INT":
            any_value = st.one_of(WHOLE, st.sampled_from(limits or [0]))
        elif kind == "FLOAT":
            any_value = st.one_of(REAL, st.sampled_from(limits or [0.0]))
        elif kind == "BOOLEAN":
            any_value = st.booleans()
        elif kind == "STRING":
            any_value = TEXTS
        else:
            sockets[one.id] = kind, bool(one.optional)
            continue
        # Mostly as it is, so that more than the first wrong widget is met.
        given[one.id] = st.one_of(default, default, any_value) if default is not None else any_value
    return st.fixed_dictionaries(given), sockets


def all_nodes():
    from tests.host import inprocess

    inprocess.start()
    from graft.nodes import node_classes

    return sorted(
        (n for n in node_classes() if n.GET_SCHEMA().node_id not in DRAWN),
        key=lambda n: n.GET_SCHEMA().node_id,
    )


@tiers(14, 250)
def test_any_widgets(comfy, tmp_path, monkeypatch, wires, cases):
    import folder_paths

    from graft.adapters.targets import targets
    from graft.host.data import class_images
    from graft.host.files import paths
    from graft.host.request import check as check_request
    from graft.nodes import engine

    def begin(request):
        """What the engine does with a request before it trains."""
        paths.lora_name(request.name)
        check_request(request)
        targets(request.model.model.diffusion_model, request.network.blocks)
        names = ("model", "clip", "lora_model", "state", "loss_map", "images", "adapter", "report")
        return SimpleNamespace(**dict.fromkeys(names))

    monkeypatch.setattr(engine.engine, "train", begin)
    monkeypatch.setattr(
        class_images.Painter, "__call__", lambda *a, **k: pytest.fail("it draws"), raising=False
    )
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    count = 0
    for node in all_nodes():
        values, sockets = widgets(node)
        is_list = bool(node.GET_SCHEMA().is_input_list)
        held = SimpleNamespace(unique_id="7", prompt={}, extra_pnginfo={})
        ready = type(node.__name__, (node,), {"hidden": held})
        known = [
            name for name, (kind, optional) in sockets.items() if kind in wires and not optional
        ]
        missing = [
            k for k, (kind, optional) in sockets.items() if kind not in wires and not optional
        ]
        assert not missing, f"{node.__name__} needs {missing}"

        def check(widget, ready=ready, is_list=is_list, sockets=sockets, known=known):
            came = {**widget, **{name: wires[sockets[name][0]] for name in known}}
            if is_list:
                came = {name: [value] for name, value in came.items()}
            ready.execute(**came)

        count += sum(fuzz(cases, values, check))
    assert count > 8 * cases


@tiers(60, 1000)
def test_any_blocks(comfy, wires, cases):
    from graft.adapters.targets import targets

    root = wires["MODEL"].model.diffusion_model
    taken, refused = fuzz(cases, PATTERNS, lambda blocks: targets(root, blocks))
    assert taken and refused


@tiers(60, 1000)
def test_any_names_of_files(comfy, tmp_path, monkeypatch, cases):
    import folder_paths

    from graft.host import graph
    from graft.host.files import lora_files, lora_list, paths, states

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))

    def check(given):
        kind, name = given
        if kind == "safe":
            stem = paths.safe_name(name)
            assert paths.inside(tmp_path, f"{stem}.x").parent == tmp_path.resolve()
        elif kind == "input":
            assert paths.input_folder(name).is_relative_to(comfy.resolve())
        elif kind == "inside":
            assert paths.inside(tmp_path, name).is_relative_to(tmp_path.resolve())
        elif kind == "pictures":
            graph.picture_folder(name)
        elif kind == "lora":
            lora_files.load(name)
        elif kind == "list":
            lora_list.find(name)
        elif kind == "state":
            states.find(name)
        else:
            paths.run_folder(name, create=False)

    kinds = ["safe", "input", "inside", "pictures", "lora", "list", "state", "run"]
    taken, refused = fuzz(cases, st.tuples(st.sampled_from(kinds), TEXTS), check)
    assert taken and refused
