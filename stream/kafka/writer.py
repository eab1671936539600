"""Writing with the idempotent producer: no record is lost or doubled by a retry."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import confluent_kafka as ck

from stream.config import KafkaConfig
from stream.kafka.client import MAX_RECORD_BYTES, connected, settings
from stream.kafka.errors import DeliveryFailed, KafkaError, named

Headers = Iterable[tuple[str, bytes]]


class Writer:
    """An idempotent producer. `send` only hands over; `flush` says whether everything arrived."""

    def __init__(self, kafka: KafkaConfig, *, compression: str = "zstd", linger_ms: int = 5) -> None:
        self._kafka = kafka
        self._failures: list[KafkaError] = []
        required = {
            "enable.idempotence": True,
            "compression.type": compression,
            "linger.ms": linger_ms,
            "message.max.bytes": MAX_RECORD_BYTES,
            "delivery.report.only.error": True,
            "on_delivery": self._on_delivery,
        }
        self._producer = connected(ck.Producer, kafka, settings(kafka, required=required))

    def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Headers = (),
        timestamp_ms: int | None = None,
    ) -> None:
        """Hand over one record; waits while the local queue is full. Without `partition` the key decides.

        Raises DeliveryFailed when an earlier record failed, or this one is larger than any broker takes.
        """
        self._raise_failures()
        while True:
            try:
                self._producer.produce(
                    topic,
                    value,
                    key,
                    -1 if partition is None else partition,
                    headers=list(headers) or None,
                    timestamp=timestamp_ms or 0,
                )
                break
            except BufferError:
                self._producer.poll(0.05)
            except ck.KafkaException as error:
                raise DeliveryFailed(str(named(error, doing=f"sending to '{topic}'", kafka=self._kafka))) from None
        self._producer.poll(0)

    def flush(self, timeout_ms: int) -> None:
        """Return once every record is in its topic. Raises DeliveryFailed when one is not, or not in time."""
        left = self._producer.flush(timeout_ms / 1000)
        self._raise_failures()
        if left:
            raise DeliveryFailed(
                f"{left} records are still waiting for a broker at {self._kafka.bootstrap} after {timeout_ms} ms; "
                "start one or set kafka.bootstrap, then flush again"
            )

    def close(self) -> None:
        """Drop what was not flushed and release the connection."""
        self._producer.purge()
        self._producer.flush(1.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _on_delivery(self, error: ck.KafkaError | None, message: ck.Message) -> None:
        if error is not None:
            self._failures.append(named(error, doing=f"writing to '{message.topic()}'", kafka=self._kafka))

    def _raise_failures(self) -> None:
        if self._failures:
            failures, self._failures = self._failures, []
            raise DeliveryFailed(f"{len(failures)} records were not written, the first: {failures[0]}")
