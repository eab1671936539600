"""The processes that train together, and how they agree."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

COLLECTIVE_TIMEOUT = timedelta(minutes=10)
T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together. Every method is a collective: all ranks call it, in one order."""

    rank: int
    world_size: int
    device: torch.device
    control: dist.ProcessGroup
    """A gloo group for agreements and for objects on the host."""

    def apart(self) -> Ranks:
        """The same processes with a group of their own: another thread may agree while this one does."""
        return replace(self, control=_new_group())

    def sums(self, values: Sequence[int]) -> list[int]:
        """The sum over all ranks, place by place."""
        if self.world_size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(tensor, group=self.control)
        summed: list[int] = tensor.tolist()
        return summed

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in the order of the ranks, on every rank."""
        if self.world_size == 1:
            return [value]
        gathered: list[T] = [value] * self.world_size
        dist.all_gather_object(gathered, value, group=self.control)
        return gathered

    def collect(self, value: T) -> list[T]:
        """Every rank's value on rank 0, in the order of the ranks; nothing on the others."""
        if self.world_size == 1:
            return [value]
        collected: list[T] | None = [value] * self.world_size if self.rank == 0 else None
        dist.gather_object(value, collected, dst=0, group=self.control)
        return collected or []

    def first_error(self, error: str | None) -> str | None:
        """The error of the lowest rank that has one: all go on, or none."""
        errors = [text for text in self.gather(error) if text is not None]
        return errors[0] if errors else None


def join() -> Ranks:
    """Meet the other ranks; torchrun's environment says where, without it this one is alone.

    NCCL between GPUs, gloo between CPUs.
    """
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
    else:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    return Ranks(dist.get_rank(), dist.get_world_size(), device, _new_group())


def leave() -> None:
    """Say goodbye; after a failure the others notice it by themselves."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _new_group() -> dist.ProcessGroup:
    return cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT))
