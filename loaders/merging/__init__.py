# SPDX-License-Identifier: Apache-2.0
"""Several LoRAs as one: PEFT's ways and the sum of changes of any kind, one file each."""

from .base import MODES, Change, Mode

MODES.discover(__path__, __name__)

__all__ = ["MODES", "Change", "Mode"]
