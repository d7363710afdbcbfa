# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

pytestmark = pytest.mark.comfy


def pictures(count, caption):
    from graft.trainers.data import Dataset, Item

    return Dataset((Item((caption,), pixels=torch.rand(64, 64, 3)),) * count, resolution=64)


def test_the_node_adds_class_images_and_their_weight():
    from graft.nodes.class_images import add

    made, report = add(pictures(2, "a zork"), "a thing", 3, "x", pictures(3, ""), (None,) * 3, None)
    assert len(made.classes) == 3 and report.startswith("3 class images")
    with pytest.raises(ValueError, match="connect model, clip and vae"):
        add(pictures(2, "a zork"), "a thing", 4, "x", pictures(3, ""), (object(), None, None), None)


def test_a_name_that_is_no_folder_is_refused():
    from graft.nodes.class_images import ClassImages

    assert (
        ClassImages.validate_inputs("class") is True and ClassImages.validate_inputs(None) is True
    )
    assert "cannot be used" in ClassImages.validate_inputs("../class")
