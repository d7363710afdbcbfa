# SPDX-License-Identifier: Apache-2.0
"""How a run answers running out of the host's memory."""

from ...trainers.events import Sink
from ...trainers.memory import Memory, Relief
from ..model.trainee import Trainee
from .out_of_memory import end, free, is_out_of_memory


def memory(trained: Trainee, sink: Sink, *, may_offload: bool = False) -> Memory:
    """How one run answers running out of memory.

    Args:
        trained: The trainee; checkpointing of all blocks is turned on on it, then offloading.
        sink: Hears of every step down.
        may_offload: Whether the weights of the blocks may be moved to the CPU.
    """

    def checkpoint() -> bool:
        was = trained.checkpointed
        trained.checkpointing(True)
        return trained.checkpointed > was

    def offload() -> bool:
        if trained.offloaded is not None or not may_offload or trained.device.type == "cpu":
            return False
        trained.offload()
        return True

    return Memory(0, Relief(is_out_of_memory, free, checkpoint, end, offload), sink)
