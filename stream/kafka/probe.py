"""Proof that the end of a partition is the end: only an answer of the broker counts, its silence does not."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass

import confluent_kafka as ck
from confluent_kafka.admin import AdminClient, ListOffsetsResultInfo

from stream.config import KafkaConfig
from stream.kafka.admin import LATEST
from stream.kafka.client import connected, settings

REQUEST_TIMEOUT_S = 2.0
GIVE_UP_MS = 3_000


@dataclass(frozen=True, slots=True)
class Ends:
    """The last stable offsets at some moment not before `asked_ms`."""

    asked_ms: int
    offsets: dict[int, int]


class EndProbe:
    """Asks for the last stable offsets of some partitions without blocking; one question at a time."""

    def __init__(self, kafka: KafkaConfig, *, topic: str) -> None:
        self._kafka = kafka
        self._client = connected(AdminClient, kafka, settings(kafka, required={}, quiet=True))
        self._topic = topic
        self._asked_ms = 0
        self._failed = False
        self._pending: dict[ck.TopicPartition, Future[ListOffsetsResultInfo]] = {}

    def ask(self, partitions: Iterable[int], *, now_ms: int) -> None:
        """Send the question, unless one is unanswered or there is nothing to ask."""
        if self._failed or (self._pending and now_ms - self._asked_ms > GIVE_UP_MS):
            self._renew()
        asked = {ck.TopicPartition(self._topic, p): LATEST for p in partitions}
        if asked and not self._pending:
            self._asked_ms = now_ms
            committed = ck.IsolationLevel.READ_COMMITTED
            self._pending = self._client.list_offsets(
                asked, isolation_level=committed, request_timeout=REQUEST_TIMEOUT_S
            )

    def answer(self) -> Ends | None:
        """The answer once it is there. Partitions whose leader did not answer are left out."""
        if not self._pending or not all(future.done() for future in self._pending.values()):
            return None
        answered, self._pending = self._pending, {}
        offsets = {tp.partition: f.result().offset for tp, f in answered.items() if f.exception() is None}
        known = {partition: offset for partition, offset in offsets.items() if offset >= 0}
        self._failed = len(known) < len(answered)
        return Ends(self._asked_ms, known)

    def _renew(self) -> None:
        """A client that failed may go on failing when the broker is back (seen: it keeps a leader that is gone)."""
        self._client = connected(AdminClient, self._kafka, settings(self._kafka, required={}, quiet=True))
        self._pending = {}
        self._failed = False
