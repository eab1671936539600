"""The group consumer of the stream worker: partitions come and go, records come as columns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter
from typing import Any, Protocol

import confluent_kafka as ck
import numpy as np

from stream.config import KafkaConfig
from stream.kafka.client import connected, consumer_settings, named_errors
from stream.kafka.errors import KafkaError, is_missing, is_out_of_range, is_unavailable, named
from stream.records import RecordBlock

BEGIN_TIMEOUT_S = 1.0
_TIMESTAMP = itemgetter(1)
"""Of (kind of timestamp, timestamp)."""


@dataclass(frozen=True, slots=True)
class Committed:
    """A committed source offset and the text that was committed with it."""

    offset: int
    metadata: str


@dataclass(frozen=True, slots=True)
class GroupMetadata:
    """Which member of which generation of the group commits."""

    generation: int
    handle: object


@dataclass(frozen=True, slots=True)
class Polled:
    """What one poll brought."""

    blocks: list[RecordBlock]
    """One per partition that had records, in offset order."""
    ends: dict[int, int]
    """Partitions whose end was reached, and the offset of that end (behind control records)."""
    errors: list[str]
    """Troubles that pass by themselves; while they last the end of a partition proves nothing."""
    failed: dict[int, KafkaError]
    """Partitions that cannot go on: OffsetOutOfRange, TopicMissing."""

    @property
    def num_records(self) -> int:
        """Records in all blocks."""
        return sum(len(block.offsets) for block in self.blocks)


class Rebalance(Protocol):
    """Hears, inside `poll` and `close`, which partitions come and go. Each call must finish what it has to."""

    def assigned(self, partitions: list[int]) -> None:
        """These are new. They stay paused until `start` names their position."""

    def revoked(self, partitions: list[int]) -> None:
        """These are about to go; until this returns nobody else has them."""

    def lost(self, partitions: list[int]) -> None:
        """These are gone; somebody else may have them already."""


class GroupConsumer:
    """A member of a consumer group on one topic, committed records only. Use from one thread.

    With `instance_id` it is a static member: after a short absence it gets the same partitions back.
    """

    def __init__(
        self,
        kafka: KafkaConfig,
        *,
        topic: str,
        group_id: str,
        protocol: str,
        rebalance: Rebalance,
        instance_id: str | None = None,
    ) -> None:
        self._kafka = kafka
        self._topic = topic
        self._rebalance = rebalance
        self._errors: list[str] = []
        required: dict[str, Any] = {
            "group.id": group_id,
            "group.protocol": protocol,
            "error_cb": lambda error: self._errors.append(error.str()),
        }
        if instance_id is not None:
            required["group.instance.id"] = instance_id
        if protocol == "classic":
            required["partition.assignment.strategy"] = "cooperative-sticky"
        self._consumer = connected(ck.Consumer, kafka, consumer_settings(kafka, required=required))
        self._consumer.subscribe([topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost)

    def poll(self, *, max_records: int, timeout_ms: int) -> Polled:
        """Up to `max_records` records, grouped by partition. Raises TopicMissing, KafkaError."""
        polled = Polled([], {}, [], {})
        with named_errors(self._kafka, doing=f"reading '{self._topic}'"):
            messages = self._consumer.consume(max_records, timeout_ms / 1000)
        errors = list(map(ck.Message.error, messages))
        if any(errors):  # to compare an error with None is an error
            for message, error in zip(messages, errors, strict=True):
                if error is not None:
                    self._sort_out(message, error, into=polled)
            messages = [message for message, error in zip(messages, errors, strict=True) if error is None]
        polled.errors.extend(self._errors)
        self._errors.clear()
        polled.blocks.extend(_blocks(messages))
        return polled

    def committed(self, partitions: Iterable[int], *, timeout_ms: int) -> dict[int, Committed | None]:
        """What the group committed; None where it never did. Waits for a commit that is under way.

        Raises BrokerUnavailable when that takes longer than `timeout_ms`.
        """
        asked = [ck.TopicPartition(self._topic, p) for p in partitions]
        try:
            answers = self._consumer.committed(asked, timeout_ms / 1000)
        except ck.KafkaException as error:
            raise named(error, doing=f"reading committed offsets of '{self._topic}'", kafka=self._kafka) from None
        for tp in answers:
            if tp.error is not None:
                place = f"reading the committed offset of {self._topic}[{tp.partition}]"
                raise named(tp.error, doing=place, kafka=self._kafka)
        return {tp.partition: Committed(tp.offset, tp.metadata or "") if tp.offset >= 0 else None for tp in answers}

    def start(self, partition: int, *, offset: int) -> None:
        """Deliver the partition's records from `offset` on."""
        place = ck.TopicPartition(self._topic, partition, offset)
        with named_errors(self._kafka, doing=f"seeking {self._topic}[{partition}]@{offset}"):
            self._consumer.seek(place)
            self._consumer.resume([place])

    def pause(self, partitions: Iterable[int]) -> None:
        """Deliver nothing from these until `start` or `resume`."""
        with named_errors(self._kafka, doing=f"pausing '{self._topic}'"):
            self._consumer.pause([ck.TopicPartition(self._topic, p) for p in partitions])

    def resume(self, partitions: Iterable[int]) -> None:
        """Go on where `pause` stopped."""
        with named_errors(self._kafka, doing=f"resuming '{self._topic}'"):
            self._consumer.resume([ck.TopicPartition(self._topic, p) for p in partitions])

    def group_metadata(self) -> GroupMetadata:
        """Who commits. The generation is below 0 while this consumer is not a member."""
        handle = self._consumer.consumer_group_metadata()
        return GroupMetadata(_generation(handle), handle)

    def close(self) -> None:
        """Leave the group; `revoked` is called for what is still assigned."""
        with named_errors(self._kafka, doing=f"leaving the group of '{self._topic}'"):
            self._consumer.close()

    def _on_assign(self, consumer: ck.Consumer, partitions: list[ck.TopicPartition]) -> None:
        # Paused at a number: while librdkafka looks up a logical offset (the end), a seek may be dropped, and the
        # records before that end would never be delivered. It fetches once before it hears of the pause, so the
        # number must exist, or the partition fails.
        places = [ck.TopicPartition(self._topic, tp.partition, self._begin(consumer, tp)) for tp in partitions]
        consumer.incremental_assign(places)
        consumer.pause(places)
        self._rebalance.assigned([tp.partition for tp in partitions])

    def _begin(self, consumer: ck.Consumer, place: ck.TopicPartition) -> int:
        """Offset of the partition's oldest record; 0 where no broker answers in time."""
        try:
            begin, _ = consumer.get_watermark_offsets(place, timeout=BEGIN_TIMEOUT_S, cached=False)
        except (ck.KafkaException, TypeError):  # after a timeout it returns None, whatever its annotation says
            return 0
        return max(0, begin)

    def _on_revoke(self, consumer: ck.Consumer, partitions: list[ck.TopicPartition]) -> None:
        try:
            self._rebalance.revoked([tp.partition for tp in partitions])
        finally:
            self._give_up(consumer, partitions)

    def _on_lost(self, consumer: ck.Consumer, partitions: list[ck.TopicPartition]) -> None:
        try:
            self._rebalance.lost([tp.partition for tp in partitions])
        finally:
            self._give_up(consumer, partitions)

    def _give_up(self, consumer: ck.Consumer, partitions: list[ck.TopicPartition]) -> None:
        """A client that is dead refuses even this: the error that killed it, and the caller's own, count more."""
        try:
            consumer.incremental_unassign(partitions)
        except ck.KafkaException as error:
            self._errors.append(error.args[0].str())

    def _sort_out(self, message: ck.Message, error: ck.KafkaError, *, into: Polled) -> None:
        partition = _partition(message)
        place = f"reading {self._topic}[{partition}]"
        if error.code() == ck.KafkaError._PARTITION_EOF:
            into.ends[partition] = message.offset() or 0
        elif is_out_of_range(error) or (is_missing(error) and partition >= 0):
            into.failed[partition] = named(error, doing=place, kafka=self._kafka)
        elif is_unavailable(error):
            into.errors.append(f"{place}: {error.str()}")
        else:
            raise named(error, doing=place, kafka=self._kafka)


def _partition(message: ck.Message) -> int:
    partition = message.partition()
    return -1 if partition is None else partition


def _blocks(messages: list[ck.Message]) -> list[RecordBlock]:
    """By partition, without a step of Python per record."""
    if not messages:
        return []
    partitions = np.fromiter(map(ck.Message.partition, messages), np.int64, len(messages))
    order = np.argsort(partitions, kind="stable")
    cuts = [0, *(np.flatnonzero(np.diff(partitions[order])) + 1).tolist(), len(messages)]
    blocks = []
    for first, last in pairwise(cuts):
        places = order[first:last]
        mine = messages if len(cuts) == 2 else [messages[i] for i in places.tolist()]
        blocks.append(
            RecordBlock(
                int(partitions[places[0]]),
                np.fromiter(map(ck.Message.offset, mine), np.int64, len(mine)),
                np.fromiter(map(_TIMESTAMP, map(ck.Message.timestamp, mine)), np.int64, len(mine)),
                list(map(ck.Message.key, mine)),
                list(map(ck.Message.value, mine)),
            )
        )
    return blocks


def _generation(handle: object) -> int:
    """The generation inside librdkafka's opaque metadata ("CGMDv2:", little-endian int32); -1 without one."""
    raw = bytes(handle) if isinstance(handle, bytes | bytearray) else b""
    return int.from_bytes(raw[7:11], "little", signed=True) if raw.startswith(b"CGMDv2:") else -1
