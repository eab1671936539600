"""Requests of Kafka's protocol that librdkafka does not make: who has a transaction open where, and how to end it.

The messages are those of KIP-664, over aiokafka's connections, which speak TLS and SASL.
"""

from __future__ import annotations

import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Self

import aiokafka.errors
from aiokafka.conn import AIOKafkaConnection, create_conn
from aiokafka.protocol.api import RequestHeader_v2, ResponseHeader_v1
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
)

from stream.config import KafkaConfig
from stream.kafka.admin import Address, Place
from stream.kafka.errors import BrokerUnavailable
from stream.kafka.security import RequestRefused, connection_security

REQUEST_TIMEOUT_MS = 10_000
NOT_COORDINATOR, UNKNOWN_ID = 16, 105
NO_TAGS: dict[int, bytes] = {}


@dataclass(frozen=True, slots=True)
class OpenAt:
    """What the leader of a partition knows of a producer that has a transaction open there."""

    topic: str
    partition: int
    producer_id: int
    producer_epoch: int
    coordinator_epoch: int
    start_offset: int
    """Of its first record: no committed reader gets beyond it."""
    last_ms: int
    """Time of its last record, by the record's own stamp."""

    @property
    def place(self) -> Place:
        """Topic and partition."""
        return self.topic, self.partition


@dataclass(frozen=True, slots=True)
class Known:
    """What its coordinator knows of a transactional id."""

    transactional_id: str
    producer_id: int
    state: str
    places: frozenset[Place]
    """Partitions of its transaction that still lack a marker."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of request, in the one version that is spoken here, and its answer."""

    key: int
    version: int
    asked: Schema
    answered: Schema

    def decode(self, body: BytesIO) -> tuple[Any, ...]:
        """Called by the connection with the body of an answer."""
        values: tuple[Any, ...] = self.answered.decode(body)
        return values


class _Question:
    """A request as aiokafka's connections take it. All kinds here have flexible versions only."""

    def __init__(self, kind: _Kind, *values: Any) -> None:
        self.API_KEY, self.API_VERSION, self.RESPONSE_TYPE = kind.key, kind.version, kind
        self._values = (*values, NO_TAGS)

    def prepare(self, versions: Mapping[int, tuple[int, int]]) -> Self:
        """Called with what the broker speaks."""
        least, most = versions.get(self.API_KEY, (0, -1))
        if not least <= self.API_VERSION <= most:
            raise RequestRefused(f"the broker does not speak version {self.API_VERSION} of request {self.API_KEY}")
        return self

    def build_request_header(self, *, correlation_id: int, client_id: str) -> Any:
        return RequestHeader_v2(self, correlation_id=correlation_id, client_id=client_id)

    def encode(self) -> bytes:
        encoded: bytes = self.RESPONSE_TYPE.asked.encode(self._values)
        return encoded

    def parse_response_header(self, body: BytesIO) -> Any:
        return ResponseHeader_v1.decode(body)


def _array(*fields: tuple[str, Any]) -> Any:
    return CompactArray(*fields, ("tags", TaggedFields))


def _schema(*fields: tuple[str, Any]) -> Schema:
    return Schema(*fields, ("tags", TaggedFields))


_TEXT = CompactString()
_PLACES = _array(("name", _TEXT), ("partitions", CompactArray(Int32)))
_PRODUCER = _array(
    ("producer_id", Int64),
    ("producer_epoch", Int32),
    ("last_sequence", Int32),
    ("last_ms", Int64),
    ("coordinator_epoch", Int32),
    ("start_offset", Int64),
)
_PRODUCERS = _array(("partition", Int32), ("error", Int16), ("message", _TEXT), ("producers", _PRODUCER))
_TRANSACTION = _array(
    ("error", Int16),
    ("id", _TEXT),
    ("state", _TEXT),
    ("timeout_ms", Int32),
    ("start_ms", Int64),
    ("producer_id", Int64),
    ("producer_epoch", Int16),
    ("places", _PLACES),
)
_MARKER = _array(
    ("producer_id", Int64),
    ("producer_epoch", Int16),
    ("commit", Boolean),
    ("places", _PLACES),
    ("coordinator_epoch", Int32),
)
_MARKED = _array(("name", _TEXT), ("partitions", _array(("partition", Int32), ("error", Int16))))
DESCRIBE_PRODUCERS = _Kind(
    61,
    0,
    _schema(("places", _PLACES)),
    _schema(("throttle_ms", Int32), ("topics", _array(("name", _TEXT), ("partitions", _PRODUCERS)))),
)
LIST_TRANSACTIONS = _Kind(
    66,
    0,
    _schema(("states", CompactArray(_TEXT)), ("producer_ids", CompactArray(Int64))),
    _schema(
        ("throttle_ms", Int32),
        ("error", Int16),
        ("unknown_states", CompactArray(_TEXT)),
        ("transactions", _array(("id", _TEXT), ("producer_id", Int64), ("state", _TEXT))),
    ),
)
DESCRIBE_TRANSACTIONS = _Kind(
    65, 0, _schema(("ids", CompactArray(_TEXT))), _schema(("throttle_ms", Int32), ("transactions", _TRANSACTION))
)
WRITE_MARKERS = _Kind(
    27, 1, _schema(("markers", _MARKER)), _schema(("markers", _array(("producer_id", Int64), ("topics", _MARKED))))
)


class Wire:
    """Requests to brokers by their address; one connection each, kept until `close`. In one event loop."""

    def __init__(self, kafka: KafkaConfig) -> None:
        self._security = connection_security(kafka.options)
        self._is_secured = "ssl_context" in self._security
        self._open: dict[Address, AIOKafkaConnection] = {}

    async def producers(self, leader: Address, places: Iterable[Place]) -> list[OpenAt]:
        """Transactions that are open in partitions of this leader."""
        _, topics, _ = await self._ask(leader, _Question(DESCRIBE_PRODUCERS, _by_topic(places)))
        found = []
        for topic, partitions, _ in topics:
            for partition, code, message, producers, _ in partitions:
                _check(code, f"the producers of {topic}[{partition}]", message or "")
                for producer_id, epoch, _, last_ms, coordinator_epoch, start, _ in producers:
                    if start >= 0:
                        found.append(OpenAt(topic, partition, producer_id, epoch, coordinator_epoch, start, last_ms))
        return found

    async def transactional_ids(self, broker: Address, producer_ids: Iterable[int]) -> list[str]:
        """Ids of these producers, of those whose coordinator the broker is. Raises BrokerUnavailable while it loads."""
        question = _Question(LIST_TRANSACTIONS, [], sorted(set(producer_ids)))
        _, code, _, transactions, _ = await self._ask(broker, question)
        _check(code, "the list of transactions")
        return [transactional_id for transactional_id, *_ in transactions]

    async def transactions(self, broker: Address, transactional_ids: Iterable[str]) -> list[Known]:
        """What the broker knows of those ids whose coordinator it is."""
        _, transactions, _ = await self._ask(broker, _Question(DESCRIBE_TRANSACTIONS, list(transactional_ids)))
        found = []
        for code, transactional_id, state, _, _, producer_id, _, topics, _ in transactions:
            if code in (NOT_COORDINATOR, UNKNOWN_ID):
                continue
            _check(code, f"the transaction of '{transactional_id}'")
            places = frozenset((topic, partition) for topic, partitions, _ in topics for partition in partitions)
            found.append(Known(transactional_id, producer_id, state, places))
        return found

    async def write_marker(self, leader: Address, opened: OpenAt, *, commit: bool) -> None:
        """End a transaction in one partition, whatever its coordinator says. Raises RequestRefused."""
        places, coordinator_epoch = _by_topic([opened.place]), max(0, opened.coordinator_epoch)
        marker = (opened.producer_id, opened.producer_epoch, commit, places, coordinator_epoch, NO_TAGS)
        markers, _ = await self._ask(leader, _Question(WRITE_MARKERS, [marker]))
        for _, topics, _ in markers:
            for topic, partitions, _ in topics:
                for partition, code, _ in partitions:
                    _check(code, f"the end of a transaction in {topic}[{partition}]")

    async def close(self) -> None:
        """Release the connections."""
        for connection in self._open.values():
            if (closed := connection.close()) is not None:
                await closed
        self._open.clear()

    async def _ask(self, address: Address, question: _Question) -> Any:
        place = f"{address.host}:{address.port}"
        try:
            connection = self._open.get(address)
            if connection is None or not connection.connected():
                timeout = {"request_timeout_ms": REQUEST_TIMEOUT_MS, "client_id": "recd"}
                connection = await create_conn(address.host, address.port, **timeout, **self._security)
                self._open[address] = connection
            return await connection.send(question)
        except (ssl.SSLError, ConnectionResetError, ConnectionAbortedError, ValueError, AssertionError) as error:
            kind = RequestRefused if self._is_secured or not isinstance(error, OSError) else BrokerUnavailable
            raise kind(f"the broker at {place} cannot be asked with these kafka.options: {error!r}") from None
        except (TimeoutError, OSError, aiokafka.errors.KafkaConnectionError) as error:
            raise BrokerUnavailable(f"the broker at {place} gives no answer ({error!r}); try again") from None
        except aiokafka.errors.KafkaError as error:
            raise RequestRefused(f"the broker at {place} refuses a question about transactions: {error!r}") from None


@asynccontextmanager
async def wire(kafka: KafkaConfig) -> AsyncIterator[Wire]:
    """A Wire that is closed behind it. Raises RequestRefused for security that it does not speak."""
    opened = Wire(kafka)
    try:
        yield opened
    finally:
        await opened.close()


def _by_topic(places: Iterable[Place]) -> list[tuple[str, list[int], dict[int, bytes]]]:
    partitions: dict[str, list[int]] = defaultdict(list)
    for topic, partition in places:
        partitions[topic].append(partition)
    return [(topic, sorted(numbers), NO_TAGS) for topic, numbers in partitions.items()]


def _check(code: int, what: str, message: str = "") -> None:
    error = aiokafka.errors.for_code(code)
    if error is aiokafka.errors.NoError:
        return
    text = f"asked for {what}, the broker says {error.__name__} ({code}) {message}".rstrip()
    raise (BrokerUnavailable if error.retriable else RequestRefused)(text)
