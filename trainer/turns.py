"""Whose turn it is: partitions one after the other, reproducible on a topic that is finished."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from typing import Generic, NamedTuple, Protocol, TypeVar


class Positioned(Protocol):
    """Something that came from a partition."""

    @property
    def partition(self) -> int:
        """Its number."""


T = TypeVar("T", bound=Positioned)


class Turn(NamedTuple, Generic[T]):
    """An item, and the partition whose turn is next."""

    item: T
    next_partition: int


class Turns(Generic[T]):
    """Buffers of some partitions, emptied in turn.

    A partition with nothing is passed over only when it is known to have nothing: `next` is told which ones are at
    their end or not to be waited for. So the order of a finished topic depends on the topic alone.
    """

    def __init__(self, partitions: Iterable[int], *, first: int = 0) -> None:
        self._buffers: dict[int, deque[T]] = {p: deque() for p in sorted(partitions)}
        self._first = first

    def add(self, items: Iterable[T]) -> None:
        """Items of each partition in their order."""
        for item in items:
            self._buffers[item.partition].append(item)

    def next(self, *, passed_over: AbstractSet[int]) -> Turn[T] | None:
        """Whose turn it is; None while that partition has nothing and is not to be passed over."""
        order = sorted(self._buffers, key=lambda p: (p < self._first, p))
        for place, partition in enumerate(order):
            if self._buffers[partition]:
                self._first = order[(place + 1) % len(order)]
                return Turn(self._buffers[partition].popleft(), self._first)
            if partition not in passed_over:
                return None
        return None

    def waiting_for(self, *, passed_over: AbstractSet[int]) -> int | None:
        """The partition that `next` would wait for."""
        for partition in sorted(self._buffers, key=lambda p: (p < self._first, p)):
            if self._buffers[partition]:
                return None
            if partition not in passed_over:
                return partition
        return None

    def sizes(self) -> dict[int, int]:
        """Items that wait, by partition."""
        return {partition: len(buffer) for partition, buffer in self._buffers.items()}
