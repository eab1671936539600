"""Positions of a job that is no consumer group: kept under a group name of its own, committed with its output."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import confluent_kafka as ck

from stream.config import KafkaConfig
from stream.kafka.client import connected, consumer_settings
from stream.kafka.errors import BrokerUnavailable, named
from stream.kafka.group import Committed, GroupMetadata

ASK_TIMEOUT_S = 30.0


class Bookmarks:
    """Offsets and metadata under the name `group`, without a member: only one process may write them.

    Nothing but the transactional id of its producer keeps a second one away, so read them behind
    `TransactionalWriter.init`, which has ended what that one had open.
    """

    def __init__(self, kafka: KafkaConfig, *, group: str) -> None:
        self._kafka = kafka
        self._consumer = connected(ck.Consumer, kafka, consumer_settings(kafka, required={"group.id": group}))

    def read(self, topic: str, partitions: Iterable[int]) -> dict[int, Committed]:
        """What was committed; partitions where nothing was are left out. Raises BrokerUnavailable, KafkaError."""
        asked = [ck.TopicPartition(topic, p) for p in partitions]
        try:
            answers = self._consumer.committed(asked, ASK_TIMEOUT_S)
        except ck.KafkaException as error:
            raise named(error, doing=f"reading the progress on '{topic}'", kafka=self._kafka) from None
        for tp in answers:
            if tp.error is not None:
                raise named(tp.error, doing=f"reading the progress on {topic}[{tp.partition}]", kafka=self._kafka)
        return {tp.partition: Committed(tp.offset, tp.metadata or "") for tp in answers if tp.offset >= 0}

    def metadata(self) -> GroupMetadata:
        """For `TransactionalWriter.send_offsets`. The generation is below 0: there is no member."""
        handle = self._consumer.consumer_group_metadata()
        if handle is None:
            raise BrokerUnavailable(f"no broker answers at {self._kafka.bootstrap}; start one or set kafka.bootstrap")
        return GroupMetadata(-1, handle)

    def close(self) -> None:
        """Release the connection."""
        self._consumer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
