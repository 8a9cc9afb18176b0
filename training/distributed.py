"""The processes of a run: one, or a member of the group that `torchrun` started."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from audiocnn.machine import cpu_name


@dataclass(frozen=True)
class DistributedContext:
    """The device of this process, its rank, and the number of processes."""

    device: str = "cpu"
    rank: int = 0
    world_size: int = 1

    @property
    def device_type(self) -> str:
        """ "cuda" or "cpu"."""
        return self.device.partition(":")[0]

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            torch.distributed.barrier()


def init_distributed() -> DistributedContext:
    """One process on the GPU or CPU, or a member of the group that `torchrun` started."""
    has_gpu = torch.cuda.is_available()
    if "WORLD_SIZE" not in os.environ:
        return DistributedContext("cuda" if has_gpu else "cpu")
    torch.distributed.init_process_group("nccl" if has_gpu else "gloo")
    device = f"cuda:{os.environ['LOCAL_RANK']}" if has_gpu else "cpu"
    return DistributedContext(device, torch.distributed.get_rank(), torch.distributed.get_world_size())


def hardware(context: DistributedContext) -> str:
    """Name and number of the processors, for the provenance."""
    if context.device_type == "cuda":
        return f"{context.world_size} x {torch.cuda.get_device_name()}"
    return f"{cpu_name()}, {context.world_size} x {torch.get_num_threads()} threads"
