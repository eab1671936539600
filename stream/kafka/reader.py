"""Reading explicit partitions from explicit positions, committed records only, without a consumer group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import confluent_kafka as ck

from stream.config import KafkaConfig
from stream.kafka.client import connected, consumer_settings, logger, named_errors
from stream.kafka.errors import is_unavailable, named

BULK_BYTES = 32 * 1024 * 1024
"""Of one partition in one answer; by default a megabyte, which is one piece of a snapshot."""


@dataclass(frozen=True, slots=True)
class Message:
    """One record as it stands in the log."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


class Reader:
    """Reads committed records of some partitions of one topic, in offset order per partition.

    `positions` gives, per partition, the next offset to read; it must lie in the log. A broker that goes away is
    waited for: `poll` returns nothing until it is back. With `bulk` an answer of the broker holds many large records.
    """

    def __init__(self, kafka: KafkaConfig, *, topic: str, positions: Mapping[int, int], bulk: bool = False) -> None:
        self._kafka = kafka
        self._topic = topic
        self._positions = dict(positions)
        self._ended: set[int] = set()
        required: dict[str, Any] = {"group.id": "recd-reader", "topic.metadata.propagation.max.ms": 5_000}
        if bulk:
            required["max.partition.fetch.bytes"] = BULK_BYTES
        self._consumer = connected(ck.Consumer, kafka, consumer_settings(kafka, required=required))
        with named_errors(kafka, doing=f"reading '{topic}'"):
            self._consumer.assign([ck.TopicPartition(topic, p, offset) for p, offset in self._positions.items()])

    def poll(self, *, max_messages: int, timeout_ms: int) -> list[Message]:
        """Up to `max_messages` records as soon as there are any; none after `timeout_ms`.

        Raises OffsetOutOfRange (the position was deleted or never written), TopicMissing.
        """
        messages: list[Message] = []
        with named_errors(self._kafka, doing=f"reading '{self._topic}'"):
            arrived = self._consumer.consume(max_messages, 0) or self._consumer.consume(1, timeout_ms / 1000)
        for raw in arrived:
            error = raw.error()
            if error is None:
                messages.append(self._message(raw))
            else:
                self._handle(raw, error)
        return messages

    @property
    def at_end(self) -> bool:
        """Whether every partition had nothing more to give at the last look."""
        return len(self._ended) == len(self._positions)

    @property
    def ended(self) -> frozenset[int]:
        """The partitions that had nothing more to give at the last look."""
        return frozenset(self._ended)

    def positions(self) -> dict[int, int]:
        """By partition, the next offset to be read."""
        return dict(self._positions)

    def seek(self, partition: int, offset: int) -> None:
        """Go on from another offset of one partition."""
        with named_errors(self._kafka, doing=f"seeking {self._topic}[{partition}]@{offset}"):
            self._consumer.incremental_unassign([ck.TopicPartition(self._topic, partition)])
            self._consumer.incremental_assign([ck.TopicPartition(self._topic, partition, offset)])
        self._positions[partition] = offset
        self._ended.discard(partition)

    def pause(self, partition: int) -> None:
        """Fetch no more of one partition; `poll` may still return what has arrived."""
        with named_errors(self._kafka, doing=f"pausing {self._topic}[{partition}]"):
            self._consumer.pause([ck.TopicPartition(self._topic, partition)])

    def resume(self, partition: int) -> None:
        """Fetch again what `pause` held back."""
        with named_errors(self._kafka, doing=f"resuming {self._topic}[{partition}]"):
            self._consumer.resume([ck.TopicPartition(self._topic, partition)])

    def close(self) -> None:
        """Release the connection."""
        self._consumer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _message(self, raw: Any) -> Message:
        partition, offset = raw.partition(), raw.offset()
        self._positions[partition] = offset + 1
        self._ended.discard(partition)
        headers = tuple((name, value or b"") for name, value in raw.headers() or ())
        return Message(self._topic, partition, offset, raw.timestamp()[1], raw.key(), raw.value(), headers)

    def _handle(self, raw: ck.Message, error: ck.KafkaError) -> None:
        if error.code() == ck.KafkaError._PARTITION_EOF:
            partition = raw.partition() or 0
            self._ended.add(partition)
            self._positions[partition] = max(self._positions[partition], raw.offset() or 0)
        elif is_unavailable(error):
            logger.warning("reading %s: %s", self._topic, error.str())
        else:
            place = f"reading {self._topic}[{raw.partition()}]@{self._positions.get(raw.partition() or 0)}"
            raise named(error, doing=place, kafka=self._kafka)
