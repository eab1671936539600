"""What the coordinator decided about a transaction, read from its own log: Kafka's tools cannot tell."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from io import BytesIO

from aiokafka.protocol.types import Array, CompactArray, CompactString, Int8, Int16, Int32, Int64, String, TaggedFields

from stream.config import KafkaConfig
from stream.kafka.admin import Place, begin_offsets, end_offsets, offsets_at
from stream.kafka.reader import Reader
from stream.kafka.wire import OpenAt

TRANSACTION_LOG = "__transaction_state"
ONGOING, PREPARE_COMMIT, PREPARE_ABORT, COMPLETE_COMMIT, COMPLETE_ABORT = 1, 2, 3, 4, 5
FIRST_FLEXIBLE = 1
CLIENT_VERSION_TAG = 2
OWN_EPOCH_EACH = 2
"""From this version of the transaction protocol on, a transaction's end has a higher epoch than its records."""
SLACK_MS = 300_000
"""How much the clocks of a producer and its broker may differ."""
POLL_MS = 1_000


class Decision(StrEnum):
    """How the coordinator ended a transaction."""

    COMMIT = "commit"
    ABORT = "abort"
    UNKNOWN = "unknown"


_DECIDED = {PREPARE_COMMIT: Decision.COMMIT, COMPLETE_COMMIT: Decision.COMMIT}
_DECIDED |= {PREPARE_ABORT: Decision.ABORT, COMPLETE_ABORT: Decision.ABORT}


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One record of the coordinator's log."""

    transactional_id: str
    producer_id: int
    producer_epoch: int
    status: int
    places: frozenset[Place]
    client_version: int
    started_ms: int = 0
    updated_ms: int = 0

    def concerns(self, opened: OpenAt) -> bool:
        """Whether it speaks of the very transaction that is open there."""
        same = self.producer_id == opened.producer_id and self.producer_epoch >= self._epoch_of(opened)
        return same and opened.place in self.places

    def completes(self, opened: OpenAt) -> bool:
        """Whether it says, naming no partition, that a transaction of that producer, epoch and time has ended."""
        same = self.producer_id == opened.producer_id and self.producer_epoch == self._epoch_of(opened)
        in_time = self.started_ms - SLACK_MS <= opened.last_ms <= self.updated_ms + SLACK_MS
        return same and in_time and self.status in (COMPLETE_COMMIT, COMPLETE_ABORT)

    def _epoch_of(self, opened: OpenAt) -> int:
        return opened.producer_epoch + (self.status != ONGOING and self.client_version >= OWN_EPOCH_EACH)


def decode_entry(key: bytes, value: bytes) -> LogEntry | None:
    """A record of `__transaction_state`; None for a key of another kind or a version that is not known."""
    at, log = BytesIO(value), BytesIO(key)
    if Int16.decode(log) != 0 or (version := Int16.decode(at)) not in (0, FIRST_FLEXIBLE):
        return None
    flexible = version >= FIRST_FLEXIBLE
    text, array = (CompactString(), CompactArray) if flexible else (String(), Array)
    topic = [("topic", text), ("partitions", array(Int32))] + [("tags", TaggedFields)] * flexible
    producer_id, epoch = Int64.decode(at), Int16.decode(at)
    Int32.decode(at)
    status = Int8.decode(at)
    places = frozenset((name, p) for name, partitions, *_ in array(*topic).decode(at) or () for p in partitions)
    updated_ms, started_ms = Int64.decode(at), Int64.decode(at)
    tags = TaggedFields.decode(at) if flexible else {}
    client_version = Int16.decode(BytesIO(tags[CLIENT_VERSION_TAG])) if CLIENT_VERSION_TAG in tags else 0
    name = String().decode(log) or ""
    return LogEntry(name, producer_id, epoch, status, places, client_version, started_ms, updated_ms)


def decision(opened: OpenAt, entries: list[LogEntry]) -> Decision:
    """What the entries of one transactional id, in their order, say about an open transaction.

    A completion names no partitions. It counts where compaction has left nothing of the producer before it; elsewhere
    what it completes stands before it.
    """
    found, first = Decision.UNKNOWN, True
    for entry in entries:
        if entry.concerns(opened) or (first and entry.completes(opened)):
            found = _DECIDED.get(entry.status, Decision.UNKNOWN)
        first = first and entry.producer_id != opened.producer_id
    return found


def log_of(kafka: KafkaConfig, transactional_id: str, *, since_ms: int) -> list[LogEntry]:
    """The coordinator's entries about an id, from a moment before `since_ms` on; all, if there are none from then on.

    Raises KafkaError.
    """
    starts = offsets_at(kafka, TRANSACTION_LOG, time_ms=max(0, since_ms - SLACK_MS))
    partition = java_partition(transactional_id, partitions=len(starts))
    if entries := _entries(kafka, transactional_id, partition=partition, start=starts[partition]):
        return entries
    begin = begin_offsets(kafka, TRANSACTION_LOG)[partition]
    return _entries(kafka, transactional_id, partition=partition, start=begin)


def _entries(kafka: KafkaConfig, transactional_id: str, *, partition: int, start: int) -> list[LogEntry]:
    end = end_offsets(kafka, TRANSACTION_LOG)[partition]
    entries: list[LogEntry] = []
    if start >= end:
        return entries
    with Reader(kafka, topic=TRANSACTION_LOG, positions={partition: start}) as reader:
        while reader.positions()[partition] < end and not reader.at_end:
            for message in reader.poll(max_messages=1_000, timeout_ms=POLL_MS):
                entry = decode_entry(message.key or b"", message.value) if message.value else None
                if entry is not None and entry.transactional_id == transactional_id:
                    entries.append(entry)
    return entries


def java_partition(name: str, *, partitions: int) -> int:
    """Where coordinators keep a transactional id or a group: Java's hash of its UTF-16 units, absolute, modulo."""
    code = 0
    units = name.encode("utf-16-be")
    for place in range(0, len(units), 2):
        code = (31 * code + int.from_bytes(units[place : place + 2], "big")) & 0xFFFFFFFF
    signed = code - (1 << 32) if code >= 1 << 31 else code
    return (0 if signed == -(1 << 31) else abs(signed)) % partitions
