# SPDX-License-Identifier: Apache-2.0
"""graft-mini's MODEL can be built again by the host, as a core loader's can."""

import inspect

import pytest
import torch

pytestmark = pytest.mark.comfy


@pytest.fixture(scope="module")
def model():
    from graft.host.model import mini

    with torch.inference_mode():
        return mini.load_mini()[0]


def assert_own_copy(made, model):
    weights, wanted = made.model.state_dict(), model.model.state_dict()
    assert weights.keys() == wanted.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, wanted[name])
        assert weight.data_ptr() != wanted[name].data_ptr(), name


def test_the_model_can_be_built_again_as_the_host_asks_for_it(model):
    from graft.host.model import mini

    if hasattr(model, "cached_patcher_init"):
        build, args = model.cached_patcher_init
    else:
        build, args = mini.rebuild_model, (None,)
    with torch.inference_mode(False):
        made = build(*args, disable_dynamic=True)
    assert_own_copy(made, model)
    assert not made.patches
    assert not any(weight.is_inference() for weight in made.model.parameters())


def test_the_hosts_deep_copies_have_their_own_weights_and_the_patches_of_the_wire(model):
    patched = model.clone()
    key = "diffusion_model.input_blocks.0.0.bias"
    size = patched.model.state_dict()[key].shape
    patched.add_patches({key: ("diff", (torch.ones(size),))}, 0.5)
    copies = []
    if "force_deepcopy" in inspect.signature(patched.clone).parameters:
        copies.append(patched.clone(force_deepcopy=True))
    if hasattr(model, "deepclone_multigpu") and hasattr(model, "cached_patcher_init"):
        copies.append(patched.deepclone_multigpu())
    for copy in copies:
        assert_own_copy(copy, model)
        assert list(copy.patches) == [key]
