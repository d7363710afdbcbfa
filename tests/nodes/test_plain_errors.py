# SPDX-License-Identifier: Apache-2.0
"""A node's error quotes what came, and the host writes it into its log: it stays one text of the log."""

import pytest

pytestmark = pytest.mark.comfy


def test_errors_of_all_nodes_are_plain(comfy):
    from graft.nodes import node_classes

    nodes = {node.GET_SCHEMA().node_id: node for node in node_classes()}
    again = {node.GET_SCHEMA().node_id: node for node in node_classes()}
    assert all(
        again[name].execute.__func__ is node.execute.__func__ for name, node in nodes.items()
    )
    assert all(node.execute.__func__.has_plain_errors for node in nodes.values())
    evil = "cat\n[ERROR] all is lost\x1b[2J"
    with pytest.raises(ValueError) as caught:
        nodes["GraftNetwork"].execute(evil, 4, 2.0, "all", "")
    assert str(caught.value).isprintable() and "cat" in str(caught.value)
    with pytest.raises(ValueError) as caught:
        nodes["GraftLoadState"].execute(evil)
    assert all(line.isprintable() for line in str(caught.value).split("\n"))
