# SPDX-License-Identifier: Apache-2.0
"""The nodes that change, join, split and show datasets."""

import shutil

import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.comfy


@pytest.fixture
def folder(comfy):
    """A folder under input/ with two classes, masks and captions of several lines."""
    path = comfy / "input" / "pets"
    for name in ("10_cat/1.png", "10_cat/2.png", "2_dog/1.png"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (96, 64), "orange").save(path / name)
    Image.new("L", (96, 64), 255).save(path / "10_cat" / "1-masklabel.png")
    (path / "10_cat" / "1.txt").write_text("a cat\na tabby", encoding="utf-8")
    yield path
    shutil.rmtree(path)


def load(folder="pets", caption="", **more):
    from graft.nodes.dataset import LoadImages

    return LoadImages.execute(folder, caption, "zorb", False, 64, 1, **more).args


def options(node, **changed):
    """Execute with the defaults of the node's widgets, some of them changed."""
    given = {
        one.id: one.default
        for one in node.GET_SCHEMA().inputs
        if hasattr(one, "default") and not one.optional
    }
    return node.execute(**{**given, **changed}).args


def dataset(count=4, size=(48, 64), **values):
    from graft.trainers.data import Dataset, Item

    items = [Item(f"picture {n}", pixels=torch.full((*size, 3), n / 9)) for n in range(count)]
    return Dataset(items, **{"resolution": 64, "trigger": "zorb", **values})


def test_the_folder_node_reads_every_layout(folder):
    repeats, _ = load(layout="repeats", masks="files", caption_lines=True)
    assert [item.repeats for item in repeats.items] == [2, 10, 10]
    assert [item.captions for item in repeats.items] == [("dog",), ("a cat", "a tabby"), ("cat",)]
    assert [item.has_mask for item in repeats.items] == [False, True, False]
    classes, report = load(layout="classes")
    assert (
        classes.labels == ("10_cat", "2_dog") and "classes: 0 10_cat (2 images), 1 2_dog" in report
    )


def test_the_fingerprint_follows_layouts_and_masks(folder):
    from graft.nodes.dataset import LoadImages

    def fingerprint(**more):
        return LoadImages.fingerprint_inputs("pets", "", "", False, 64, 1, **more)

    before = fingerprint(), fingerprint(layout="repeats")
    Image.new("L", (96, 64)).save(folder / "10_cat" / "1-masklabel.png")
    assert fingerprint() == before[0], "folders inside are not read"
    assert fingerprint(layout="repeats") != before[1]


def test_old_calls_have_the_dataset_that_they_had(folder):
    from graft.nodes.dataset import ImagesToDataset

    images = [torch.rand(2, 64, 64, 3)]
    assert ImagesToDataset.execute(images, ["a"], [""], [64], [1]).args[0].items[0].mask is None
    with pytest.raises(ValueError, match="no images in 'pets'"):
        load(caption="a")


def test_masks_of_the_graph(folder):
    from graft.nodes.dataset import ImagesToDataset
    from graft.nodes.dataset_options import DatasetMasks

    images, masks = [torch.rand(2, 64, 48, 3)], [torch.rand(1, 64, 48), torch.rand(64, 48)]
    made, report = ImagesToDataset.execute(images, ["a"], [""], [64], [1], masks).args
    assert torch.equal(made.items[1].mask, masks[1]) and "masks: 2 of 2" in report
    changed, _ = DatasetMasks.execute([made], [True], [0.25], [masks[1]]).args
    assert torch.equal(changed.items[0].mask, 1 - masks[1])
    assert changed.framing.outside == 0.25
    kept, _ = DatasetMasks.execute([changed], [True], [0.0]).args
    assert torch.equal(kept.items[0].mask, 1 - masks[1]) and kept.framing.outside == 0
    with pytest.raises(ValueError, match="2 pictures and 3 masks"):
        DatasetMasks.execute([made], [False], [0.0], [torch.rand(3, 64, 48)])
    with pytest.raises(ValueError, match=r"image 2 \(64 x 64 for 48 x 64 px\)"):
        DatasetMasks.execute([made], [False], [0.0], [masks[0], torch.zeros(64, 64)])
    black, report = DatasetMasks.execute([made], [False], [0.0], [torch.zeros(1, 64, 48)]).args
    assert "warning: the mask is black all over" in report


def test_the_widgets_of_captions_are_its_fields():
    from graft.nodes.dataset_options import Captions
    from graft.trainers.data import Captioning

    plain, _ = options(Captions, dataset=dataset())
    assert plain.captioning == Captioning() and plain.digest() == dataset().digest()
    changed, texts = options(
        Captions, dataset=dataset(), prefix="photo of", add_trigger=True, dropout=0.1
    )
    assert changed.texts(0) == ("photo of zorb, picture 0", "")
    assert texts.splitlines()[:3] == ["image 1:", "  photo of zorb, picture 0", "  (empty)"]
    for name, value in (("shuffle", True), ("variants", 3), ("seed", 1), ("separator", ";")):
        assert (
            getattr(options(Captions, dataset=dataset(), **{name: value})[0].captioning, name)
            == value
        )


def test_the_widgets_of_buckets_are_its_fields():
    from graft.nodes.dataset_options import Buckets
    from graft.trainers.data import Framing

    plain, _ = options(Buckets, dataset=dataset())
    assert plain.framing == Framing() and plain.digest() == dataset().digest()
    masked = dataset(framing=Framing(outside=0.5))
    changed, report = options(Buckets, dataset=masked, buckets=False, flip=True, crop="random")
    assert changed.framing == Framing(buckets=False, flip=True, crop="random", outside=0.5)
    assert "48 x 48    4 images" in report and "also mirrored" in report


def test_datasets_are_joined_with_repeats_and_weights():
    from graft.nodes.dataset_options import Captions
    from graft.nodes.dataset_parts import JoinDatasets

    joined, report = options(
        JoinDatasets, dataset_1=dataset(), dataset_2=dataset(2), dataset_4=dataset(1, resolution=32),
        repeats="1, 2,3", weights="0.5",
    )  # fmt: skip
    assert joined.repeats == (1, 1, 1, 1, 2, 2, 3)
    assert {item.weight for item in joined.items} == {0.5}
    assert "7 images, 3 datasets joined" in report and "an epoch has 11" in report
    changed, _ = options(Captions, dataset=joined, suffix="!")
    assert changed.texts(6) == ("picture 0!",) and changed.size(6) == (32, 24)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"repeats": "1.5"}, "repeats are '1.5'; give whole numbers of 1 or more"),
        ({"repeats": "0"}, "repeats are '0'"),
        ({"weights": "1, -1"}, "weights are '1, -1'; give numbers of 0 or more"),
        ({"weights": "nan"}, "weights are 'nan'"),
        ({"weights": ""}, "weights are ''"),
        ({"weights": "1, 2, 3"}, "weights are 3 numbers for 2 datasets"),
    ],
)
def test_numbers_that_are_none_are_named(values, message):
    from graft.nodes.dataset_parts import JoinDatasets

    with pytest.raises(ValueError, match=message):
        options(JoinDatasets, dataset_1=dataset(), dataset_2=dataset(), **values)


def test_split_and_class_images():
    from graft.nodes.dataset_parts import ClassImages, SplitDataset

    with_classes, report = ClassImages.execute(dataset(), 0.5, dataset(2)).args
    assert len(with_classes.classes) == 2 and with_classes.class_weight == 0.5
    assert "class images, weight 0.5:\n  2 images, resolution 64" in report
    assert with_classes.digest() != dataset().digest()
    training, held_out, report = SplitDataset.execute(with_classes, 0.25, 0).args
    assert (len(training), len(held_out)) == (3, 1)
    assert training.classes is not None and held_out.classes is None
    assert report.startswith("training:\n3 images") and "held out:\n1 image" in report


def test_a_folder_without_captions_has_the_class_prompt(folder):
    from graft.nodes.dataset_parts import ClassImages

    with pytest.raises(ValueError, match="have no caption.*switch allow_no_caption on"):
        load("pets/2_dog")
    classes, report = load("pets/2_dog", allow_no_caption=True)
    assert {item.captions for item in classes.items} == {("",)} and "captions: 0 of" in report
    made, report = ClassImages.execute(dataset(), 1.0, classes, "a photo of a dog").args
    assert {made.classes.texts(i) for i in range(len(classes))} == {("a photo of a dog",)}
    assert made.classes.captioning.weighted, "a prompt has ComfyUI's syntax"
    with pytest.raises(ValueError, match=f"class_prompt is empty, but {len(classes)} of"):
        ClassImages.execute(dataset(), 1.0, classes)


def test_class_images_are_drawn_where_they_are_missing():
    from graft.nodes.dataset_parts import ClassImages

    given = (dataset(), 1.0, dataset(2), "a photo of a thing")
    made, _ = ClassImages.execute(*given, number=2).args
    assert len(made.classes) == 2
    with pytest.raises(ValueError, match="There are 2 class images, and number asks for 3"):
        ClassImages.execute(*given, number=3, model=object())
    with pytest.raises(ValueError, match="There are 0 class images, and number asks for 1"):
        ClassImages.execute(dataset(), 1.0)
    assert ClassImages.validate_inputs("class") is ClassImages.validate_inputs(None) is True
    assert "cannot be used" in ClassImages.validate_inputs("../class")


def test_the_preview_shows_the_sheet_in_the_node(comfy):
    from graft.nodes.dataset_parts import DatasetPreview

    output = DatasetPreview.execute(dataset(3), 24, 0, 0, 6)
    sheet, report = output.args
    assert sheet.ndim == 4 and sheet.shape[3] == 3 and "3 images" in report
    assert len(output.ui.as_dict()["images"]) == 1
