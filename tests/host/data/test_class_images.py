# SPDX-License-Identifier: Apache-2.0
"""Class images: given, drawn, kept, topped up, and refused where there are too few."""

import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.comfy


@pytest.fixture(scope="module")
def wires():
    from tests.host import tiny

    with torch.inference_mode():
        return tiny.model("sdxl"), tiny.clip("sdxl"), tiny.vae("sdxl")


@pytest.fixture
def output(tmp_path, monkeypatch):
    import folder_paths

    from graft.host.data import class_images

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    monkeypatch.setattr(class_images, "STEPS", 2)
    return tmp_path


def pictures(count=2, caption="a zork", seed=0):
    from graft.trainers.data import Dataset, Item

    generator = torch.Generator().manual_seed(seed)
    items = [
        Item((caption,), pixels=torch.rand(64, 64, 3, generator=generator)) for _ in range(count)
    ]
    return Dataset(tuple(items), resolution=64)


def add(wires, number, prompt="a thing", name="things", given=None, with_painter=True):
    from graft.host.data.class_images import Painter, with_class_images

    painter = Painter(*wires) if with_painter else None
    with torch.inference_mode():
        return with_class_images(pictures(), prompt, number, name, given, painter)


def drawn(output, name="things"):
    return sorted((output / "graft" / "class" / name).glob("*.png"))


def test_what_is_missing_is_drawn_kept_and_used_again(wires, output):
    state = torch.get_rng_state()
    dataset = add(wires, 3)
    assert len(dataset.items) == 2
    assert [item.captions for item in dataset.classes.items] == [("a thing",)] * 3
    files = drawn(output)
    assert len(files) == 4  # they are drawn four at a time
    assert [item.path for item in dataset.classes.items] == [str(path) for path in files[:3]]
    assert all(path.with_suffix(".txt").read_text() == "a thing" for path in files)
    assert dataset.classes.captioning.weighted  # a prompt drew them
    assert torch.equal(torch.get_rng_state(), state)
    bytes_of = {path: path.read_bytes() for path in files}
    assert len(set(bytes_of.values())) == 4 and Image.open(files[0]).size == (64, 64)
    times = [path.stat().st_mtime_ns for path in files]
    add(wires, 3)
    assert [path.stat().st_mtime_ns for path in drawn(output)] == times
    add(wires, 6)  # topped up
    assert len(drawn(output)) == 8 and [p.stat().st_mtime_ns for p in files] == times
    files[1].write_bytes(b"broken")
    add(wires, 3)
    assert files[1].read_bytes() == bytes_of[files[1]]


def test_a_folder_that_is_topped_up_holds_what_one_filled_at_once_holds(wires, output):
    for number in (2, 7):
        add(wires, number, name="slowly")
    add(wires, 7, name="at once")
    slowly, at_once = drawn(output, "slowly"), drawn(output, "at once")
    assert [p.name for p in slowly] == [p.name for p in at_once] and len(slowly) == 8
    assert [p.read_bytes() for p in slowly] == [p.read_bytes() for p in at_once]


def test_a_drawn_picture_that_is_deleted_is_drawn_again_by_the_same_graph(wires, output):
    """The host runs a node again when its fingerprint changes, and only then."""
    from graft.host.data.class_images import fingerprint

    before = fingerprint("things")
    assert not list(output.rglob("*")), "looking makes no folder"
    add(wires, 2)
    assert fingerprint("things") == before, "what was drawn is no change"
    for number in range(2):
        drawn(output)[number].unlink()
        changed = fingerprint("things")
        assert changed != before and fingerprint("things") == changed
        add(wires, 2)
        assert len(drawn(output)) == 4 and fingerprint("things") == changed
        before = changed
    drawn(output)[3].unlink()
    assert fingerprint("things") == before, "no dataset has that one"
    with pytest.raises(ValueError, match="name of the class images"):
        fingerprint("../things")


def test_another_prompt_or_model_draws_its_own(wires, output):
    from tests.host import tiny

    add(wires, 1)
    add(wires, 1, prompt="a house")
    add((tiny.model("sdxl", seed=3), *wires[1:]), 1)
    assert len(drawn(output)) == 12


def test_given_class_images_count_and_get_the_prompt_where_they_have_no_caption(wires, output):
    from graft.host.data.class_images import Painter, with_class_images

    given = pictures(3, caption="", seed=4)
    dataset = add(wires, 2, given=given, with_painter=False)
    assert len(dataset.classes) == 3 and not drawn(output)
    assert [item.caption for item in dataset.classes.items] == ["a thing"] * 3
    assert len(add(wires, 0, given=given).classes) == 3
    dataset = add(wires, 5, given=given)
    assert len(dataset.classes) == 5
    assert dataset.classes.size(4) == (64, 64) and dataset.classes.texts(4) == ("a thing",)
    with pytest.raises(
        ValueError, match="There are 3 class images, and number asks for 5: connect model"
    ):
        with_class_images(pictures(), "a thing", 5, "x", given, Painter(wires[0], None, wires[2]))


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"prompt": "  "}, "class_prompt is empty"),
        ({"name": "../x"}, "name of the class images"),
        ({"name": "CON"}, "Windows reserves"),
        ({"with_painter": False}, "There are 0 class images, and number asks for 2"),
        ({"with_painter": False, "number": 0}, "There are 0 class images"),
    ],
)
def test_what_cannot_be_is_named(wires, output, changes, message):
    with pytest.raises(ValueError, match=message):
        add(wires, **{"number": 2, **changes})
    assert not list(output.rglob("*.*"))


def test_an_interrupt_keeps_what_is_drawn(wires, output, monkeypatch):
    import comfy.model_management as management

    from graft.host.preview import sampled as preview

    real, calls = preview._sample, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 2:
            raise management.InterruptProcessingException()
        return real(*args)

    monkeypatch.setattr(preview, "_sample", interrupted)
    with pytest.raises(management.InterruptProcessingException):
        add(wires, 8)
    assert len(drawn(output)) == 4
    add(wires, 8)
    assert len(drawn(output)) == 8 and len(calls) == 3
