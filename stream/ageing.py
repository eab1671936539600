"""Which watermarks may grow although no event says so: by proven silence, or because everything shall be closed."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from stream.kafka import EndProbe, Ends
from stream.partition import OwnedPartition

logger = logging.getLogger("stream.worker")

CLOSE_REACHES_MS = 30_000
"""A partition that is taken over so soon after a `close` is closed as well."""
ANY_PARTITION = (0,)


@dataclass(slots=True)
class CloseOrder:
    """The last order to close every session, and which partitions still owe it; outlives the workers of a process.

    A partition that returns at a watermark before its close shows that the close was not committed: it owes it again.
    """

    id: str = ""
    at_ms: int | None = None
    """When it came; None before the first."""
    _owing: set[int] = field(default_factory=set)
    _closed_ms: dict[int, int] = field(default_factory=dict)
    """By partition, the watermark that its close raised."""

    def came(self, order: str, *, partitions: Iterable[int], now_ms: int) -> None:
        """These have to close."""
        self.id, self.at_ms = order, now_ms
        self._owing.update(partitions)
        self._closed_ms.clear()

    def opened(self, partition: int, *, watermark_ms: int, now_ms: int) -> None:
        """A partition was taken over at `watermark_ms`, as it was committed."""
        if self.at_ms is None:
            return
        closed_ms = self._closed_ms.get(partition)
        if now_ms < self.at_ms + CLOSE_REACHES_MS if closed_ms is None else watermark_ms < closed_ms:
            self._owing.add(partition)

    def owed_by(self, partition: int, *, asked_ms: int) -> bool:
        """Whether an end that was asked for at `asked_ms` is the place where the partition closes."""
        return self.at_ms is not None and partition in self._owing and asked_ms >= self.at_ms

    def done(self, partition: int, *, watermark_ms: int) -> None:
        """The partition closes at this watermark."""
        self._owing.discard(partition)
        self._closed_ms[partition] = watermark_ms


@dataclass(slots=True)
class Ageing:
    """Asks the broker for the ends of partitions, and says which partitions have to advance."""

    probe: EndProbe
    every_ms: int
    close: CloseOrder = field(default_factory=CloseOrder)
    _ask_again_ms: int = 0

    def ask(self, owned: Mapping[int, OwnedPartition], *, now_ms: int) -> Ends | None:
        """Ask from time to time; returns an answer when there is one, noted in the partitions.

        Who owns nothing asks for any partition: only an answer says that the broker is there.
        """
        if now_ms >= self._ask_again_ms:
            self.probe.ask(owned or ANY_PARTITION, now_ms=now_ms)
            self._ask_again_ms = now_ms + self.every_ms
        ends = self.probe.answer()
        for number, end in (ends.offsets if ends else {}).items():
            if number in owned:
                owned[number].end = end
        return ends

    def advances(self, ends: Ends, owned: Mapping[int, OwnedPartition]) -> list[tuple[OwnedPartition, int]]:
        """Partitions and the watermark that each has to advance to now."""
        due: list[tuple[OwnedPartition, int]] = []
        for number in ends.offsets.keys() & owned.keys():
            partition = owned[number]
            if not partition.at_end:
                continue
            if (earned_ms := partition.age(ends.asked_ms)) is not None:
                due.append((partition, earned_ms))
            if self.close.owed_by(number, asked_ms=ends.asked_ms):
                logger.info("closing every session", extra={"partition": number, "id": self.close.id})
                watermark_ms = partition.pipeline.close_all_watermark_ms()
                self.close.done(number, watermark_ms=watermark_ms)
                due.append((partition, watermark_ms))
        return due
