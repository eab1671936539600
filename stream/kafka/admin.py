"""Questions and orders to the broker: topics, offsets, settings."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import confluent_kafka as ck
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, OffsetSpec

from stream.config import KafkaConfig
from stream.kafka.client import connected, settings
from stream.kafka.errors import BrokerUnavailable, KafkaError, LeaderUnsettled, named

REQUEST_TIMEOUT_S = 10.0
POLL_S = 0.02
SETTLES_IN_S = 10.0
EARLIEST = OffsetSpec.earliest()
LATEST = OffsetSpec.latest()
SHARED_S = 5.0
_T = TypeVar("_T")
_shared: dict[str, tuple[float, AdminClient]] = {}
"""By configuration, the client that was made last, and when."""


def wait_for_broker(
    kafka: KafkaConfig, *, timeout_ms: int | None = None, on_wait: Callable[[str], object] = lambda _: None
) -> None:
    """Return once a broker answers. `on_wait` gets a message about once a second until then.

    `on_wait` may raise to give up. Raises BrokerUnavailable after `timeout_ms` (None: waits for ever), OptionRefused.
    """
    client = _client(kafka)
    deadline = None if timeout_ms is None else time.monotonic() + timeout_ms / 1000
    while True:
        left = 1.0 if deadline is None else deadline - time.monotonic()
        try:
            client.list_topics(topic="__consumer_offsets", timeout=min(1.0, max(left, 0.01)))
        except ck.KafkaException as error:
            _shared.pop(str(kafka), None)
            unavailable = named(error, doing="waiting for the broker", kafka=kafka)
            if not isinstance(unavailable, BrokerUnavailable) or (deadline and time.monotonic() >= deadline):
                raise unavailable from None
            on_wait(str(unavailable))
        else:
            return


def create_topic(
    kafka: KafkaConfig, name: str, *, partitions: int, replication: int = 1, settings: Mapping[str, str] | None = None
) -> None:
    """Create a topic and return once the broker knows it everywhere: it says "created" a little before.

    Raises TopicExists, BrokerUnavailable, KafkaError (a setting that the broker refuses).
    """
    topic = NewTopic(name, num_partitions=partitions, replication_factor=replication, config=dict(settings or {}))
    client = _client(kafka)
    futures = client.create_topics([topic], request_timeout=REQUEST_TIMEOUT_S)
    _result(futures[name], doing=f"creating topic '{name}'", kafka=kafka)
    deadline = time.monotonic() + REQUEST_TIMEOUT_S
    while True:
        try:
            topic_settings(kafka, name)
            _offsets(kafka, name, spec=LATEST, committed=True)
        except KafkaError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)
        else:
            return


def partition_count(kafka: KafkaConfig, topic: str) -> int:
    """Number of partitions. Raises TopicMissing, BrokerUnavailable."""
    return len(_describe(_client(kafka), topic, kafka=kafka).partitions)


def topic_id(kafka: KafkaConfig, topic: str) -> str:
    """The broker's own id of the topic: another one after it was deleted and made again. Raises TopicMissing."""
    return str(_describe(_client(kafka), topic, kafka=kafka).topic_id)


def topic_settings(kafka: KafkaConfig, topic: str) -> dict[str, str]:
    """All settings in force for the topic, defaults included. Raises TopicMissing, BrokerUnavailable."""
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
    client = _client(kafka)
    future = client.describe_configs([resource], request_timeout=REQUEST_TIMEOUT_S)[resource]
    entries = _result(future, doing=f"reading the settings of topic '{topic}'", kafka=kafka)
    return {name: entry.value for name, entry in entries.items() if entry.value is not None}


Place = tuple[str, int]
"""A topic and a partition of it."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a broker listens."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Cluster:
    """The brokers, and which of them leads what."""

    brokers: list[Address]
    leaders: dict[Place, Address]


def cluster_of(kafka: KafkaConfig, topics: Iterable[str]) -> Cluster:
    """Who leads the partitions of some topics. Raises BrokerUnavailable, TopicMissing; LeaderUnsettled."""
    client = _client(kafka)
    leaders: dict[Place, Address] = {}
    described = client.describe_topics(ck.TopicCollection(sorted(topics)), request_timeout=REQUEST_TIMEOUT_S)
    for topic, future in described.items():
        for partition in _result(future, doing=f"describing topic '{topic}'", kafka=kafka).partitions:
            if partition.leader is None or partition.leader.id < 0:
                raise LeaderUnsettled(f"{topic}[{partition.id}] has no leader at the moment; try again")
            leaders[topic, partition.id] = Address(partition.leader.host, partition.leader.port)
    brokers = client.describe_cluster(request_timeout=REQUEST_TIMEOUT_S)
    nodes = _result(brokers, doing="describing the cluster", kafka=kafka).nodes
    return Cluster([Address(node.host, node.port) for node in nodes], leaders)


def begin_offsets(kafka: KafkaConfig, topic: str) -> dict[int, int]:
    """By partition, the offset of the oldest record still there. Raises TopicMissing, BrokerUnavailable."""
    return _offsets(kafka, topic, spec=EARLIEST, committed=True)


def end_offsets(kafka: KafkaConfig, topic: str, *, committed: bool = True) -> dict[int, int]:
    """By partition, the offset behind the last record.

    With `committed`, the last stable offset: no open transaction lies before it. Raises TopicMissing,
    BrokerUnavailable.
    """
    return _offsets(kafka, topic, spec=LATEST, committed=committed)


def offsets_at(kafka: KafkaConfig, topic: str, *, time_ms: int) -> dict[int, int]:
    """By partition, the offset of the first record whose timestamp is not before `time_ms`; the end without one.

    Raises TopicMissing, BrokerUnavailable.
    """
    found = _offsets(kafka, topic, spec=OffsetSpec.for_timestamp(time_ms), committed=True)
    if min(found.values()) >= 0:
        return found
    ends = end_offsets(kafka, topic)
    return {partition: offset if offset >= 0 else ends[partition] for partition, offset in found.items()}


def _offsets(kafka: KafkaConfig, topic: str, *, spec: OffsetSpec, committed: bool) -> dict[int, int]:
    """Asked again while a broker that has just started does not know yet what it leads."""
    deadline = time.monotonic() + SETTLES_IN_S
    while True:
        try:
            return _offsets_now(kafka, topic, spec=spec, committed=committed)
        except LeaderUnsettled:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)


def _offsets_now(kafka: KafkaConfig, topic: str, *, spec: OffsetSpec, committed: bool) -> dict[int, int]:
    client = _client(kafka)
    partitions = range(len(_describe(client, topic, kafka=kafka).partitions))
    isolation = ck.IsolationLevel.READ_COMMITTED if committed else ck.IsolationLevel.READ_UNCOMMITTED
    asked = {ck.TopicPartition(topic, p): spec for p in partitions}
    futures = client.list_offsets(asked, isolation_level=isolation, request_timeout=REQUEST_TIMEOUT_S)
    doing = f"reading the offsets of topic '{topic}'"
    return {tp.partition: _result(future, doing=doing, kafka=kafka).offset for tp, future in futures.items()}


def _describe(client: AdminClient, topic: str, *, kafka: KafkaConfig) -> Any:
    futures = client.describe_topics(ck.TopicCollection([topic]), request_timeout=REQUEST_TIMEOUT_S)
    return _result(futures[topic], doing=f"describing topic '{topic}'", kafka=kafka)


def _client(kafka: KafkaConfig) -> AdminClient:
    """A client for a few questions; it must be kept until their answers are there. Raises OptionRefused.

    Questions that follow each other share one: connecting takes ten times as long as an answer. It is kept neither long
    nor after a failure: a client may go on failing when the broker is back.
    """
    key = str(kafka)
    made_s, client = _shared.get(key, (-math.inf, None))
    if client is None or time.monotonic() - made_s > SHARED_S:
        client = connected(AdminClient, kafka, settings(kafka, required={}, quiet=True))
        _shared[key] = (time.monotonic(), client)
    return client


def _result(future: Future[_T], *, doing: str, kafka: KafkaConfig) -> _T:
    try:
        return future.result()
    except ck.KafkaException as error:
        _shared.pop(str(kafka), None)
        raise named(error, doing=doing, kafka=kafka) from None
