"""Batches of this rank's partitions, decoded, resolved and made into tensors ahead of the step."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dedup_cache import BatchError, BatchSchema, decode
from stream.config import KafkaConfig
from stream.kafka import EndProbe, KafkaError, Message, OffsetOutOfRange, Reader, TopicMissing
from trainer.ahead import Ahead
from trainer.ikjt import GroupSpec, TrainBatch, dummy_batch, to_train_batch
from trainer.resolver import Resolver, Stopping, UnresolvedReference
from trainer.segments import Marker, Marks
from trainer.turns import Turn, Turns

POLL_MESSAGES = 64
POLL_MS = 20
PUT_WAIT_S = 0.05
MAX_BUFFERED = 256
"""Records of one partition that wait undecoded before it is paused."""
MAX_BUFFERED_BYTES = 32 << 20
"""The same in bytes."""
STUCK_S = 5.0
"""A partition that is not at its end, and gives nothing for so long, is passed over until it answers."""
PROBE_S = 0.5


class FeedError(Exception):
    """The feed cannot go on; the message names topic, partition and offset, and what to do."""


class UndecodableBatch(FeedError):
    """A record of `batches` is not a batch that this trainer understands, or one of its rows cannot be had."""


@dataclass(frozen=True)
class FedBatch:
    """A batch and where it came from: what is recorded when it has been trained."""

    tensors: TrainBatch
    partition: int
    offset: int
    next_partition: int
    """Whose turn is after this one."""
    num_samples: int
    id_sum: int
    """Sum of the sample ids modulo 2^64."""
    event_times_ms: np.ndarray
    append_times_ms: np.ndarray
    non_finite_dense: int
    """Dense values among the distinct rows that are not finite; the model reads them squashed."""
    marks: Marks | None = None
    """What segments the samples belong to."""
    skipped: int = 0
    """Samples that the record holds, but that are passed over: `num_samples` is 0 then."""


@dataclass(frozen=True)
class FeedSource:
    """What a feed reads: a topic, from the next offset of each of the rank's partitions, `first` to begin with."""

    kafka: KafkaConfig
    topic: str
    positions: Mapping[int, int]
    first: int = 0


@dataclass(frozen=True)
class BatchReader:
    """How a record becomes tensors."""

    schema: BatchSchema
    specs: Mapping[str, GroupSpec]
    dedup: bool
    resolver: Resolver
    expand_ids: bool = False
    marker: Marker | None = None

    def read(self, turn: Turn[Message]) -> FedBatch:
        """Raises UndecodableBatch, with the position; Stopping."""
        message = turn.item
        try:
            batch = self.resolver.resolve(decode(message.value or b"", self.schema))
        except (BatchError, UnresolvedReference) as error:
            place = f"{message.topic}[{message.partition}]@{message.offset}"
            hint = (
                "the trainer stops before it. Where features, labels or dedup.salt were changed: train what was made "
                "before with the former config, then change both (ARCHITECTURE.md, 'The cut')"
            )
            raise UndecodableBatch(f"{place}: {error}; {hint}") from None
        size = batch.num_samples
        tensors = (
            to_train_batch(batch, specs=self.specs, dedup=self.dedup, expand_ids=self.expand_ids)
            if size
            else dummy_batch(self.specs, num_labels=len(self.schema.labels))
        )
        return FedBatch(
            tensors=tensors,
            partition=message.partition,
            offset=message.offset,
            next_partition=turn.next_partition,
            num_samples=size,
            id_sum=int(batch.sample_ids.sum(dtype=np.uint64)),
            event_times_ms=batch.event_times_ms,
            append_times_ms=batch.append_times_ms,
            non_finite_dense=sum(int((~np.isfinite(g.rows.dense)).sum()) for g in batch.groups.values()),
            marks=self.marker.mark(batch) if self.marker is not None and size else None,
        )


@dataclass(frozen=True)
class FeedLimits:
    """How far a feed reads ahead: so many decoded batches, and so many bytes of them."""

    batches: int
    num_bytes: int


class Feed:
    """A thread that reads ahead; `get` hands out batches in the order of turns. Call `close` at the end.

    `close` sets `stop`: what the reader waits for must end with it.
    """

    def __init__(self, source: FeedSource, *, reader: BatchReader, limits: FeedLimits, stop: threading.Event) -> None:
        self._source = source
        self._reader = reader
        self._ahead: Ahead[FedBatch] = Ahead(max_items=limits.batches, max_bytes=limits.num_bytes)
        self._stop = stop
        self._failure: Exception | None = None
        self._lag = 0
        self._idle = not source.positions
        self.stalled_s = 0.0
        """How long `get` waited although the topic held more."""
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        if source.positions:
            self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether everything that the topic held at the last look has been handed out."""
        return self._idle and not self._ahead

    @property
    def lag_batches(self) -> int:
        """Records of the topic that were not handed out yet; may count a few that are no batches (markers)."""
        return self._lag + len(self._ahead)

    def get(self, *, timeout_s: float) -> FedBatch | None:
        """The next batch; None after `timeout_s` or at once when the feed is stopping.

        Raises FeedError or KafkaError, after all batches before it were handed out.
        """
        started = time.monotonic()
        was_idle = self.idle
        fed = self._ahead.get(timeout_s=timeout_s)
        if not was_idle:
            self.stalled_s += time.monotonic() - started
        if fed is None and self._failure is not None and not self._ahead:
            raise self._failure
        return fed

    def counters(self) -> dict[str, int]:
        """Where rows that stood by reference came from."""
        resolver = self._reader.resolver
        return {
            "rows_from_memory": resolver.from_memory,
            "rows_from_store": resolver.from_store,
            "rows_from_log": resolver.from_log,
            "store_failures": resolver.store_failures,
        }

    def close(self) -> None:
        """Stop the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            source = self._source
            with Reader(source.kafka, topic=source.topic, positions=source.positions) as reader:
                self._read(reader)
        except Stopping:
            pass
        except (OffsetOutOfRange, TopicMissing) as error:
            hint = (
                "what the cut names is no longer in the topic: was it deleted, made anew, or its retention too short?"
            )
            self._failure = FeedError(f"{error}; {hint}")
        except (FeedError, KafkaError) as error:
            self._failure = error
        except Exception as error:  # noqa: BLE001 - raised again in the thread that calls `get`
            self._failure = error

    def _read(self, reader: Reader) -> None:
        turns: Turns[Message] = Turns(self._source.positions, first=self._source.first)
        patience = _Patience()
        tide = _Tide(self._source)
        paused: set[int] = set()
        waiting_bytes = dict.fromkeys(self._source.positions, 0)
        while not self._stop.is_set():
            waiting = turns.waiting_for(passed_over=patience.passed_over(reader.ended))
            nothing = not any(turns.sizes().values())
            messages = reader.poll(max_messages=POLL_MESSAGES, timeout_ms=POLL_MS if nothing or waiting else 0)
            turns.add(messages)
            for message in messages:
                waiting_bytes[message.partition] += len(message.value or b"")
            patience.heard({message.partition for message in messages}, waiting=waiting)
            _hold_back(reader, _fullness(turns.sizes(), waiting_bytes), paused=paused)
            self._lag = sum(turns.sizes().values()) + tide.behind(reader.positions())
            turn = turns.next(passed_over=patience.passed_over(reader.ended))
            if turn is None:
                self._idle = reader.at_end and nothing and not messages
                continue
            self._idle = False
            waiting_bytes[turn.item.partition] -= len(turn.item.value or b"")
            self._put(self._reader.read(turn))

    def _put(self, fed: FedBatch) -> None:
        while not self._stop.is_set():
            if self._ahead.put(fed, num_bytes=fed.tensors.num_bytes, timeout_s=PUT_WAIT_S):
                return


class _Patience:
    """Which partitions are not to be waited for: those at their end, and those that have been silent for too long."""

    def __init__(self) -> None:
        self._silent: set[int] = set()
        self._waiting: int | None = None
        self._since_s = time.monotonic()

    def heard(self, partitions: set[int], *, waiting: int | None) -> None:
        """After a poll: who gave something, and whom it was all about."""
        self._silent -= partitions
        if waiting != self._waiting or waiting in partitions:
            self._waiting, self._since_s = waiting, time.monotonic()
        elif waiting is not None and time.monotonic() - self._since_s > STUCK_S:
            self._silent.add(waiting)

    def passed_over(self, ended: frozenset[int]) -> frozenset[int]:
        """Partitions that are not to be waited for."""
        return ended | self._silent


class _Tide:
    """How far the ends of the partitions are from where the reader stands, asked for twice a second."""

    def __init__(self, source: FeedSource) -> None:
        self._partitions = set(source.positions)
        self._probe = EndProbe(source.kafka, topic=source.topic)
        self._ends: dict[int, int] = {}
        self._asked_s = float("-inf")

    def behind(self, positions: Mapping[int, int]) -> int:
        """Records that the reader has not seen; 0 before the first answer."""
        now_s = time.monotonic()
        if now_s - self._asked_s > PROBE_S:
            self._probe.ask(self._partitions, now_ms=0)
            self._asked_s = now_s
        if (ends := self._probe.answer()) is not None:
            self._ends |= ends.offsets
        return sum(max(0, end - positions[p]) for p, end in self._ends.items())


def _fullness(sizes: Mapping[int, int], num_bytes: Mapping[int, int]) -> dict[int, float]:
    """By partition, the share of its room that is taken, by records or by bytes."""
    return {p: max(size / MAX_BUFFERED, num_bytes[p] / MAX_BUFFERED_BYTES) for p, size in sizes.items()}


def _hold_back(reader: Reader, fullness: Mapping[int, float], *, paused: set[int]) -> None:
    """Pause partitions that run ahead of the others, and let them go on when they were caught up with."""
    for partition, share in fullness.items():
        if share > 1 and partition not in paused:
            reader.pause(partition)
            paused.add(partition)
        elif share < 1 / 2 and partition in paused:
            reader.resume(partition)
            paused.discard(partition)
