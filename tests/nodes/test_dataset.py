# SPDX-License-Identifier: Apache-2.0
"""Datasets from folders and from the graph, through the nodes."""

import os

import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.comfy


@pytest.fixture
def folder(comfy):
    """A folder of two pictures under input/, one with a caption file."""
    import shutil

    path = comfy / "input" / "cats" / "tabby"
    path.mkdir(parents=True)
    for name, size in (("1.png", (96, 64)), ("2.png", (64, 64))):
        Image.new("RGB", size, "orange").save(path / name)
    (path / "1.txt").write_text("a zorb cat", encoding="utf-8")
    yield path
    shutil.rmtree(comfy / "input" / "cats")


def load(folder="cats/tabby", caption="a cat", trigger="zorb", recursive=False, resolution=64):
    from graft.nodes.dataset import LoadImages

    return LoadImages.execute(folder, caption, trigger, recursive, resolution, 1).args


def images_to_dataset(images, captions, trigger=" zorb "):
    from graft.nodes.dataset import ImagesToDataset

    return ImagesToDataset.execute(images, captions, [trigger], [64], [1]).args


def test_a_folder_is_loaded_with_its_captions(folder):
    dataset, report = load()
    assert [item.caption for item in dataset.items] == ["a zorb cat", "a cat"]
    assert (dataset.trigger, dataset.resolution) == ("zorb", 64)
    assert 'trigger "zorb": in 1 of 2 captions' in report


def test_folders_with_pictures_are_listed_again_every_time(folder):
    from graft.nodes.dataset import LoadImages

    def listed():
        return LoadImages.define_schema().inputs[0].options

    # A folder of folders can be read, too, but is not the first choice.
    assert listed().index("cats/tabby") < listed().index("cats")
    Image.new("RGB", (64, 64)).save(folder.parent / "3.png")
    assert listed().index("cats") < listed().index("cats/tabby")
    assert all(listed().count(name) == 1 for name in listed())


def test_the_fingerprint_follows_the_files(folder):
    from graft.nodes.dataset import LoadImages

    def fingerprint():
        return LoadImages.fingerprint_inputs("cats/tabby", "a", "", False, 64, 1)

    before = fingerprint()
    assert fingerprint() == before
    (folder / "2.txt").write_text("a cat", encoding="utf-8")
    assert fingerprint() != before


def test_the_examples_that_ship_are_folders():
    from graft.host import graph

    examples = [name for name in graph.picture_folders() if name.startswith("graft-examples/")]
    assert "graft-examples/shape" in examples
    dataset, _ = load("graft-examples/shape", caption="")
    assert 8 <= len(dataset) <= 12


@pytest.mark.parametrize(
    "name",
    ["graft-examples/../concepts/shape", "graft-examples/..", "graft-examples", "graft-examples/x"],
)
def test_an_example_name_stays_in_the_examples(name):
    from graft.host import graph

    with pytest.raises(ValueError, match="Unknown example folder"):
        graph.picture_folder(name)


@pytest.mark.parametrize(
    "name", ["../output", "cats/../../output", os.sep + "etc", "C:\\pictures", ""]
)
def test_a_path_that_leaves_the_input_folder_does_not_validate(folder, name):
    from graft.nodes.dataset import LoadImages

    assert isinstance(LoadImages.validate_inputs(name), str)


def test_a_wrong_folder_is_answered_with_near_names(folder):
    from graft.nodes.dataset import LoadImages

    assert "Did you mean cats" in LoadImages.validate_inputs("cat")
    assert LoadImages.validate_inputs("cats/tabby") is True
    assert LoadImages.validate_inputs() is True  # the value comes over a link


def test_a_link_is_neither_listed_nor_followed(folder, tmp_path):
    from graft.host import graph
    from graft.nodes.dataset import LoadImages

    Image.new("RGB", (64, 64)).save(tmp_path / "1.png")
    try:
        (folder.parent / "outside").symlink_to(tmp_path, target_is_directory=True)
    except OSError:
        pytest.skip("no right to make links")
    assert "cats/outside" not in graph.picture_folders()
    assert isinstance(LoadImages.validate_inputs("cats/outside"), str)


def test_pictures_of_the_graph_become_a_dataset_that_can_be_trained_on():
    with torch.inference_mode():
        batch = torch.rand(2, 64, 72, 3)
        dataset, report = images_to_dataset([batch, batch[:1, :, :64]], ["one\ntwo\nthree"])
    assert [item.caption for item in dataset.items] == ["one", "two", "three"]
    assert [item.size for item in dataset.items] == [(72, 64), (72, 64), (64, 64)]
    assert dataset.trigger == "zorb"
    assert not dataset.items[0].pixels.is_inference()
    assert "3 images" in report


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        (["one"], ["one"] * 3),
        ([" one \n"], ["one"] * 3),
        (["one\ntwo\nthree"], ["one", "two", "three"]),
        (["one", "two", "three"], ["one", "two", "three"]),
    ],
)
def test_captions_are_one_for_all_or_one_for_each(captions, expected):
    from graft.nodes.dataset import captions_for

    assert captions_for(3, captions) == expected


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ([""], "have no caption"),
        (["", "", ""], "have no caption"),
        (["one\ntwo"], "There are 3 pictures and 2 captions"),
        (["one", "", "three"], "empty caption: 2"),
    ],
)
def test_captions_that_do_not_fit_are_named(captions, message):
    from graft.nodes.dataset import captions_for

    with pytest.raises(ValueError, match=message):
        captions_for(3, captions)
