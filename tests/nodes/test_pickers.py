# SPDX-License-Identifier: Apache-2.0
"""The table of nodes with a picture of blocks goes with the nodes' own inputs."""

import re

import pytest

from tests.host.inprocess import ROOT

pytestmark = pytest.mark.comfy

TABLE = (ROOT / "web/js/blocks.js").read_text(encoding="utf-8")
NAMES = re.compile(r'(?:widget|file|adapter|network|options): ["`]([a-z_]+)(?:\$\{n\})?["`]')


def inputs():
    """Names of inputs by node id."""
    import graft.nodes

    found = {}
    for node in graft.nodes.node_classes():
        schema = node.define_schema()
        found[schema.node_id] = {one.id: one for one in schema.inputs}
    return found


def rows():
    body = TABLE[TABLE.index("const NODES = {") : TABLE.index("\n};")]
    parts = re.split(r"\n  (Graft\w+): ", body)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_name_in_the_table_is_an_input():
    known = inputs()
    for node, row in rows().items():
        for name in NAMES.findall(row):
            wanted = {f"{name}{n}" for n in (1, 2, 3, 4)} if name.endswith("_") else {name}
            assert wanted <= set(known[node]), (node, name)


def test_every_text_of_blocks_or_strengths_has_a_picture():
    from comfy_api.latest import io

    table = rows()
    for node, own in inputs().items():
        for name, one in own.items():
            if not isinstance(one, io.String.Input) or one.force_input:
                continue
            if name in ("blocks", "strengths") or re.fullmatch(r"weights_\d", name):
                assert node in table, f"{node}.{name} has no picture in web/js/blocks.js"
