"""When the journal went on: how long readers waited for the partitions of a worker that was killed."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from stream.config import Config
from stream.kafka import Reader, begin_offsets


@dataclass(frozen=True, slots=True)
class Seen:
    """A committed journal record: when its worker made it, and when a reader saw it."""

    made_ms: int
    seen_ms: int


@dataclass(frozen=True, slots=True)
class Loss:
    """A worker that held these partitions was killed."""

    at_ms: int
    partitions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Recovery:
    """A partition whose worker was killed, and when a reader saw that it went on."""

    partition: int
    killed_ms: int
    seen_ms: int

    @property
    def took_ms(self) -> int:
        """All in all."""
        return self.seen_ms - self.killed_ms


class JournalWatch:
    """Reads the journal as it grows, in a thread of its own; no commit is seen before its transaction is done."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._seen: dict[int, list[Seen]] = defaultdict(list)
        self._losses: list[Loss] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()

    def lost(self, *, at_ms: int, partitions: tuple[int, ...]) -> None:
        """A worker was killed."""
        self._losses.append(Loss(at_ms, partitions))

    def all_went_on(self, *, since_ms: int, partitions: int) -> bool:
        """Whether each partition has a commit that was made since then."""
        last = (self._seen[p][-1:] for p in range(partitions))
        return all(seen and seen[0].made_ms > since_ms for seen in last)

    def recoveries(self) -> list[Recovery]:
        """Per kill and partition: from the kill to the first commit of a successor that a reader could see."""
        found = []
        for loss in self._losses:
            for partition in loss.partitions:
                # The dead make no records: whatever was made later is a successor's.
                later = (seen.seen_ms for seen in list(self._seen[partition]) if seen.made_ms > loss.at_ms)
                if (first := next(later, None)) is not None:
                    found.append(Recovery(partition, loss.at_ms, first))
        return found

    def _read(self) -> None:
        kafka, topic = self._config.kafka, self._config.topics.journal
        with Reader(kafka, topic=topic, positions=begin_offsets(kafka, topic)) as reader:
            while not self._done.is_set():
                messages = reader.poll(max_messages=1_000, timeout_ms=20)
                seen_ms = now_ms()
                for message in messages:
                    self._seen[int(message.key or b"-1")].append(Seen(message.timestamp_ms, seen_ms))


def now_ms() -> int:
    """The wall clock, as records are stamped."""
    return time.time_ns() // 1_000_000
