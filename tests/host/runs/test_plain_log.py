# SPDX-License-Identifier: Apache-2.0
"""Names of others in the log, in a node's text and in TensorBoard: they stay text."""

import logging

import pytest

pytestmark = pytest.mark.comfy
FORGED = "cat\n[ERROR] disk is full\x1b[2J\u202e"


@pytest.fixture
def log(caplog):
    from graft.host.runs import plain_log

    pack = logging.getLogger("graft")
    before = list(pack.handlers)
    plain_log.install()
    plain_log.install()
    assert len(pack.handlers) - len(before) <= 1
    caplog.set_level(logging.INFO)
    yield caplog
    pack.handlers[:] = before


def test_a_name_cannot_forge_a_line_of_the_log(log):
    from graft.host.runs import progress

    progress._log.info("%s: loading", FORGED)
    try:
        raise ValueError(FORGED)
    except ValueError:
        progress._log.exception("The LoRA could not be saved")
    lines = log.text.splitlines()
    assert not [line for line in lines if line.startswith("[ERROR]")]
    assert "    [ERROR] disk is full\\x1b[2J\\u202e: loading" in lines
    assert "\x1b" not in log.text and "\u202e" not in log.text
    assert [record.getMessage().split("\n")[0] for record in log.records] == [
        "cat",
        "The LoRA could not be saved",
    ]


def test_others_lines_stay_as_they_are(log):
    logging.getLogger("other").info(FORGED)
    assert FORGED in log.text


def test_text_in_a_node_is_no_html(comfy, monkeypatch):
    """Frontends up to 1.32, for one, put it into the page as HTML."""
    from types import SimpleNamespace

    from graft.host import graph
    from graft.host.runs import progress

    shown = []
    server = SimpleNamespace(send_progress_text=lambda text, node, sid: shown.append(text))
    monkeypatch.setattr(graph, "prompt_server", lambda: server)
    monkeypatch.setattr(progress, "prompt_server", lambda: server)
    evil = '<img src=x onerror=alert(1)> [[click|https://evil.example]] "&amp;"'
    graph.show_text("7", evil)
    progress.RunSink("ab" * 8, "7", 1)._show(evil)
    wanted = "&lt;img src=x onerror=alert(1)&gt; [&#91;click|https://evil.example]] &quot;&amp;amp;&quot;"
    assert shown == [wanted, wanted]
