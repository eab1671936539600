"""The servers: Kafka with its topics, Redis."""

from __future__ import annotations

from typing import Annotated

import msgspec

from stream.config.section import Name, NonNegative, Positive, Section


class KafkaConfig(Section, frozen=True):
    """How to reach the broker."""

    bootstrap: str = "localhost:9092"
    options: dict[str, str] = {}
    """Further librdkafka options for every client (security, timeouts)."""


class TopicsConfig(Section, frozen=True):
    """Names of the topics, and how `recd topics create` makes them."""

    interactions: Name = "interactions"
    batches: Name = "batches"
    values: Name = "values"
    late: Name = "late"
    quarantine: Name = "quarantine"
    journal: Name = "journal"
    snapshots: Name = "snapshots"
    control: Name = "control"
    versions: Name = "versions"
    """Compacted: by model, the version in force; the trainer makes it where it is missing."""
    imports: Name = "imports"
    """How far imports have come; made by the first one."""
    archive: Name = "archive"
    """The manifest of the archive; `recd archive` makes it."""
    partitions: Positive = 4
    """Partitions of `interactions`; every other data topic gets the same number when it is created."""
    replication: Positive = 1
    retention_ms: NonNegative = 604_800_000
    """Retention of `interactions` and `batches`; 0 keeps them for ever."""


class RedisConfig(Section, frozen=True):
    """Where the dedup cache keeps its index."""

    url: str = "redis://localhost:6379/0"
    namespace: Name = "recd"
    timeout_ms: Positive = 250
    """Longest wait for one answer; after it the worker goes on with values inline."""
    max_wait_share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.25
    """Share of the time that a worker may wait for Redis; where answers are so slow that it would be more, values go
    inline in between. 1 waits as long as it takes."""
