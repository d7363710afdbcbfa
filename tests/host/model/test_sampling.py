# SPDX-License-Identifier: Apache-2.0
"""The host's own models as objectives see them: families, EDM identities, zero-terminal tables."""

import pytest
import torch

from graft.host.model.sampling import of_model, zero_terminal
from graft.trainers.denoiser import c_out
from graft.trainers.facts import facts
from graft.trainers.objectives import NOISE, NOISINGS, WEIGHTS, Objective
from graft.trainers.objectives.check import check
from tests.host import tiny

pytestmark = pytest.mark.comfy

FAMILY = {
    "sd15": "eps",
    "sdxl": "eps",
    "sdxl_v": "v",
    "sdxl_zsnr": "v",
    "sdxl_edm": "edm",
    "sd3": "flow",
    "flux": "flow",
}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_facts_of_the_hosts_families(family):
    known = facts(of_model(tiny.model(family)))
    assert known.family == FAMILY[family]
    assert known.is_discrete == (FAMILY[family] in ("eps", "v"))
    assert known.is_zero_terminal == (family in ("sdxl_zsnr", "sd3", "flux"))
    assert known.sigma_data == (0.5 if family == "sdxl_edm" else 1.0)


def patched(family, prediction, continuous=False):
    """A MODEL with another `model_sampling` of the host's own classes."""
    import comfy.model_sampling as host

    base = host.ModelSamplingContinuousEDM if continuous else host.ModelSamplingDiscrete
    kind = type("Sampling", (base, getattr(host, prediction)), {})
    model = tiny.model(family).clone()
    model.add_object_patch("model_sampling", kind(model.model.model_config))
    return model


@pytest.mark.parametrize(
    ("prediction", "continuous", "expected"),
    [
        ("X0", False, ("x0", True)),
        ("V_PREDICTION", False, ("v", True)),
        ("V_PREDICTION", True, ("v", False)),
        ("EDM", True, ("edm", False)),
        ("COSMOS_RFLOW", True, ("other", False)),
    ],
)
def test_an_object_patch_of_the_wire_counts(prediction, continuous, expected):
    known = facts(of_model(patched("sdxl", prediction, continuous)))
    assert (known.family, known.is_discrete) == expected


def test_playgrounds_network_has_unit_weight_with_the_true_lambda():
    model = of_model(tiny.model("sdxl_edm"))
    assert float(model.sigmas[-1]) == pytest.approx(80.0)
    weight = WEIGHTS.get("edm")()(model.sigmas, model)
    assert float((weight - 1).abs().max()) < 1e-6
    plain = WEIGHTS.get("edm-diffusers")()(model.sigmas, model)
    assert float(plain.max()) < 0.25 and float(plain[model.sigmas < 0.1].max()) < 0.0097


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_edm_style_training_of_an_eps_model_changes_nothing(family):
    model = of_model(tiny.model(family))
    weight = WEIGHTS.get("edm-diffusers")()(model.sigmas, model)
    assert float((weight - 1).abs().max()) < 1e-6


def test_min_snr_is_refused_for_an_edm_model():
    with pytest.raises(ValueError, match="take soft-min-snr"):
        check(Objective(weight=WEIGHTS.get("min-snr")()), of_model(tiny.model("sdxl_edm")))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_law_that_goes_with_a_model_stays_in_its_levels(family):
    model = of_model(tiny.model(family))
    u = torch.rand(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    allowed = 0
    for name in NOISE.names():
        objective = Objective(NOISE.get(name)())
        try:
            check(objective, model)
        except ValueError:
            continue
        allowed += 1
        sigma = model.nearest(objective.levels(u, model))
        assert float(sigma.min()) >= float(model.sigmas[0])
        assert float(sigma.max()) <= float(model.sigmas[-1])
        assert bool((c_out(model, sigma) > 0).all())
    assert allowed == 4


def test_zero_terminal_is_the_hosts_own_table():
    """The v model with the rescaled table equals the host's zero-terminal model; its last sigma is 4518.76."""
    plain = tiny.model("sdxl_v")
    made, wanted = of_model(zero_terminal(plain)), of_model(tiny.model("sdxl_zsnr"))
    torch.testing.assert_close(made.sigmas, wanted.sigmas, rtol=1e-4, atol=0)
    assert float(made.sigmas[-1]) == pytest.approx(4518.76, rel=1e-4)
    assert facts(made).is_zero_terminal and facts(made).family == "v"
    assert not facts(of_model(plain)).is_zero_terminal
    assert torch.equal(made.nearest(made.sigmas), made.sigmas)


def test_zero_terminal_is_refused_or_left_alone():
    already = tiny.model("sdxl_zsnr")
    assert zero_terminal(already) is already
    with pytest.raises(ValueError, match="v-prediction model"):
        zero_terminal(tiny.model("sdxl"))
    with pytest.raises(ValueError, match="noise alone already"):
        zero_terminal(tiny.model("sd3"))


@pytest.mark.parametrize(
    ("family", "choice", "message"),
    [
        ("sdxl_edm", {"weight": "min-snr"}, r"this MODEL \(EDM\): take soft-min-snr"),
        ("sdxl", {"options": "zero_terminal=true"}, "connect a v-prediction model"),
        ("sdxl", {"noise": "shifted"}, r"this MODEL \(eps-prediction\): its levels have no shift"),
        ("sdxl", {"options": "sigma_min=50"}, "its levels run from 0.02917 to 14.61"),
    ],
)
def test_a_conflict_is_refused_before_anything_is_encoded_or_written(
    family, choice, message, tmp_path, monkeypatch
):
    import folder_paths

    from graft.host import engine
    from graft.nodes.config import ObjectiveNode
    from tests.host.test_engine import request

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    monkeypatch.setattr(engine, "Preparation", None)
    wires = {family: tiny.model(family), f"vae_{family}": tiny.vae(), f"clip_{family}": tiny.clip()}
    given = {"noise": "model", "weight": "one", "metric": "l2", "options": ""} | choice
    objective = ObjectiveNode.execute(**given, preserve=0.0, preserve_prompts="").args[0]
    with pytest.raises(ValueError, match=message):
        engine.train(request(wires, family, objective=objective))
    assert not list(tmp_path.rglob("*.*"))


def test_a_run_with_every_trick_trains_and_hands_its_table_on(tmp_path, monkeypatch):
    import dataclasses

    import folder_paths

    from graft.host import engine
    from tests.host.test_engine import request

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    wires = {"sdxl": tiny.model("sdxl_v"), "vae_sdxl": tiny.vae(), "clip_sdxl": tiny.clip()}
    objective = Objective(
        NOISE.get("log-normal")(),
        WEIGHTS.get("min-snr-diffusers")(),
        preserve=0.0,
        noising=NOISINGS.get("pyramid")(),
        sigma_min=0.1,
        stratified=True,
        input_perturbation=0.1,
        zero_terminal=True,
    )
    asked = request(wires, steps=2, objective=objective)
    with torch.inference_mode():
        whole = engine.train(asked)
        part = dataclasses.replace(asked.plan, steps=1, total_steps=2)
        head = engine.train(dataclasses.replace(asked, plan=part))
        tail = engine.train(dataclasses.replace(asked, plan=part, state=head.state))
    assert facts(of_model(whole.model)).is_zero_terminal
    assert not facts(of_model(wires["sdxl"])).is_zero_terminal
    assert tail.loss_map == whole.loss_map
    levels, losses = whole.loss_map["sigma"], whole.loss_map["sample_loss"]
    assert [len(row) for row in levels] == [len(row) for row in losses] == [2, 2]
    assert min(map(min, levels)) >= 0.1
    for key, value in whole.lora_model.items():
        assert torch.equal(value, tail.lora_model[key])
