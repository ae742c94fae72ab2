"""Training by several processes at once, one for each GPU, as ``torchrun`` starts them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn


@dataclass(frozen=True)
class Workers:
    """The processes that train one network together: each its own crops, all the same weights.

    Attributes:
        rank: of this process, from 0.
        count: of all processes; 1 without ``torchrun``.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def current(cls) -> Workers:
        """The workers of ``torchrun``, joined to a group (NCCL on GPUs, Gloo on CPUs); else this process alone."""
        if not dist.is_available() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        if not dist.is_initialized():
            # Both where there are GPUs: --device cpu leaves them alone.
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this process is the one that shows progress and writes files."""
        return self.rank == 0

    def device(self, wanted: torch.device) -> torch.device:
        """``wanted``, or where that is a GPU, the one of this process."""
        if wanted.type != "cuda" or self.count == 1:
            return wanted
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))

    def mean(self, value: float, device: torch.device) -> float:
        """The mean of every process's value, the same in all; not a number where any is not."""
        if self.count == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return total.item() / self.count

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Put the mean of all processes' gradients into each. Networks of this size go in one message."""
        if self.count == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        together = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(together)
        parts = (together / self.count).split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def leave(self) -> None:
        """End the group; call before the process ends."""
        if self.count > 1 and dist.is_initialized():
            dist.destroy_process_group()
