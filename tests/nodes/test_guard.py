# SPDX-License-Identifier: Apache-2.0
"""What every node is held to: limits of its widgets, and errors that stay one text of the log."""

import pytest

pytestmark = pytest.mark.comfy


def test_errors_of_all_nodes_are_plain(comfy):
    from graft.nodes import node_classes

    nodes = {node.GET_SCHEMA().node_id: node for node in node_classes()}
    again = {node.GET_SCHEMA().node_id: node for node in node_classes()}
    assert all(
        again[name].execute.__func__ is node.execute.__func__ for name, node in nodes.items()
    )
    assert all(node.execute.__func__.is_guarded for node in nodes.values())
    evil = "cat\n[ERROR] all is lost\x1b[2J"
    with pytest.raises(ValueError) as caught:
        nodes["GraftNetwork"].execute(evil, 4, 2.0, "all", "")
    assert str(caught.value).isprintable() and "cat" in str(caught.value)
    with pytest.raises(ValueError) as caught:
        nodes["GraftLoadState"].execute(evil)
    assert all(line.isprintable() for line in str(caught.value).split("\n"))


@pytest.mark.parametrize("bins", [0, -1, 10**9, 10**30])
def test_a_number_beyond_its_widget_is_refused(comfy, bins):
    """The host checks what a widget holds, not what comes over a link: 10^9 bins took minutes and the memory."""
    from graft.nodes import node_classes

    node = next(n for n in node_classes() if n.GET_SCHEMA().node_id == "GraftLossReport")
    with pytest.raises(ValueError, match=rf"bins is {bins}; it must be between \d+ and \d+\."):
        node.execute(loss_map={"loss": [0.5], "sigma": [[1.0]], "sample_loss": [[0.5]]}, bins=bins)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_refused(comfy, value):
    from graft.nodes import node_classes

    node = next(n for n in node_classes() if n.GET_SCHEMA().node_id == "GraftNetwork")
    with pytest.raises(ValueError, match="alpha is (nan|inf); it must be a finite number"):
        node.execute(kind="lora", rank=4, alpha=value, blocks="all", options="")
