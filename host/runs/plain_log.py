# SPDX-License-Identifier: Apache-2.0
"""The pack's lines in the host's log, in which names and texts of others cannot begin a line or color it."""

import logging

from ...plain import plain_lines

_PACK = __name__.rpartition(".host.")[0]


class _Plain(logging.Handler):
    """Writes nothing: it changes the record, which then goes on to the host's own handlers."""

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args = plain_lines(record.getMessage()), ()
        if record.exc_info:
            record.exc_text = plain_lines(logging.Formatter().formatException(record.exc_info))


def install() -> None:
    """Have all loggers of the pack write such lines; once is enough."""
    pack = logging.getLogger(_PACK)
    if not any(isinstance(handler, _Plain) for handler in pack.handlers):
        pack.addHandler(_Plain())
