"""Which partitions a worker owns, which it has yet to open, and which it must not touch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from stream.kafka import BrokerUnavailable
from stream.partition import OwnedPartition
from stream.recovery import RecoveryError

OPEN_PATIENCE_MS = 45_000
"""Longer than the broker keeps a transaction open whose worker was killed."""


@dataclass(slots=True)
class Roster:
    """Every partition that is assigned stands in exactly one of the three."""

    owned: dict[int, OwnedPartition] = field(default_factory=dict)
    waiting: set[int] = field(default_factory=set)
    refused: dict[int, RecoveryError] = field(default_factory=dict)
    _postponed_since_ms: int | None = None

    @property
    def going_on(self) -> set[int]:
        """Those that are open, or will be."""
        return self.owned.keys() | self.waiting

    def assigned(self, partitions: Iterable[int]) -> None:
        """New ones, to be opened."""
        self.waiting.update(partitions)

    def opened(self, partition: OwnedPartition) -> None:
        """It goes on."""
        self.waiting.discard(partition.number)
        self.owned[partition.number] = partition

    def postponed(self, later: Mapping[int, Exception], *, now_ms: int) -> None:
        """These could not be opened yet. Raises BrokerUnavailable when that lasts: all clients must be made anew."""
        if not later:
            self._postponed_since_ms = None
        elif self._postponed_since_ms is None:
            self._postponed_since_ms = now_ms
        elif now_ms - self._postponed_since_ms > OPEN_PATIENCE_MS:
            raise BrokerUnavailable(f"partitions {sorted(later)} could not be opened: {next(iter(later.values()))}")

    def reopen(self, partitions: Iterable[int]) -> list[int]:
        """Drop their state; returns those that had one."""
        dropped = [number for number in partitions if self.owned.pop(number, None) is not None]
        self.waiting.update(dropped)
        return dropped

    def refuse(self, refused: Mapping[int, RecoveryError]) -> None:
        """These stop. Raises RecoveryError when none is left that could go on."""
        self.waiting.difference_update(refused)
        self.refused.update(refused)
        if refused and not self.owned and not self.waiting:
            raise RecoveryError("; ".join(map(str, self.refused.values())))

    def forget(self, partitions: Iterable[int]) -> None:
        """They belong to somebody else."""
        for number in partitions:
            self.owned.pop(number, None)
            self.refused.pop(number, None)
            self.waiting.discard(number)

    def dirty(self) -> list[OwnedPartition]:
        """Those with something to commit."""
        return [partition for partition in self.owned.values() if partition.dirty]

    def break_silence(self, now_ms: int) -> None:
        """Whatever was known of the ends is over."""
        for partition in self.owned.values():
            partition.silence.broken(now_ms)
