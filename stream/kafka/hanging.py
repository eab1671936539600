"""Transactions that never end: open in a partition, while their coordinator holds them for ended, or for unknown.

Nobody reads past such a one with `read_committed`. A broker that is killed can leave them (KAFKA-20734, KAFKA-9144).
A commit of the same producer would even make the records of an aborted one visible.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from stream.config import KafkaConfig
from stream.kafka.admin import Address, Cluster, Place, cluster_of, end_offsets, partition_count
from stream.kafka.errors import KafkaError
from stream.kafka.transaction_log import TRANSACTION_LOG, Decision, decision, java_partition, log_of
from stream.kafka.wire import Known, OpenAt, Wire, wire

OFFSETS_LOG = "__consumer_offsets"
_TO_END = "To end it: `recd transactions --end"
CONFIRMED_AFTER_S = 2.0
"""A coordinator that has just started may not have begun to load what it knows."""


class HangingTransaction(KafkaError):
    """A transaction that the coordinator ended is open in a partition for ever; an operator must end it there."""


@dataclass(frozen=True, slots=True)
class Hanging:
    """One of them, in one partition."""

    opened: OpenAt
    transactional_id: str
    """Empty where no coordinator knows the producer."""
    decision: Decision

    def message(self, bootstrap: str) -> str:
        """What it is, where, and what to do."""
        at, name = self.opened, f" of '{self.transactional_id}'" if self.transactional_id else ""
        ended = {
            Decision.COMMIT: "its coordinator committed it and never wrote the marker: to abort it would lose records",
            Decision.ABORT: "its coordinator aborted it and never wrote the marker",
            Decision.UNKNOWN: "its coordinator's log no longer says how it ended: to abort it loses records if it was "
            "committed"
            if self.undecided
            else "no coordinator knows it",
        }[self.decision]
        kafkas = (
            f", or `kafka-transactions.sh --bootstrap-server {bootstrap} abort --topic {at.topic} --partition "
            f"{at.partition} --start-offset {at.start_offset}`"
        )
        command = "To abort it all the same: `recd transactions --end --abort-unknown" if self.undecided else _TO_END
        return (
            f"{at.topic}[{at.partition}]: nobody reads past offset {at.start_offset}, where a transaction{name} is "
            f"open for ever (producer {at.producer_id}, epoch {at.producer_epoch}): {ended} (a defect of the broker, "
            f"KAFKA-20734). {command}`{'' if self.decision is Decision.COMMIT else kafkas}"
        )

    @property
    def undecided(self) -> bool:
        """Whether its id is known, but not how it ended: it may have been committed."""
        return self.decision is Decision.UNKNOWN and bool(self.transactional_id)


@dataclass(frozen=True, slots=True)
class Unread:
    """A partition with records that committed readers do not get to see yet."""

    place: Place
    stable: int
    """The last stable offset."""


def unread(kafka: KafkaConfig, topics: Iterable[str]) -> list[Unread]:
    """Partitions in which a transaction is open. Raises KafkaError."""
    found = []
    for topic in topics:
        stable, ends = end_offsets(kafka, topic), end_offsets(kafka, topic, committed=False)
        found += [Unread((topic, p), stable[p]) for p, end in ends.items() if stable[p] < end]
    return found


def offsets_place(kafka: KafkaConfig, group: str) -> Place:
    """Where the broker keeps the offsets of a group. Raises KafkaError."""
    return OFFSETS_LOG, java_partition(group, partitions=partition_count(kafka, OFFSETS_LOG))


def find_hanging(kafka: KafkaConfig, places: Iterable[Place]) -> list[Hanging]:
    """Those in some partitions, looked for twice, some seconds apart. Raises KafkaError."""
    places = list(places)
    if not places or not (found := asyncio.run(_unknown_to_coordinators(kafka, places))):
        return []
    time.sleep(CONFIRMED_AFTER_S)
    again = {_identity(opened) for opened, _ in asyncio.run(_unknown_to_coordinators(kafka, places))}
    return _decided(kafka, [(opened, name) for opened, name in found if _identity(opened) in again])


def left_open(
    kafka: KafkaConfig, topics: Iterable[str], *, transactional_id: str, only: Place | None = None
) -> list[Hanging]:
    """Those of one id whose producer was just initialised: nothing of it may be open. Raises KafkaError.

    In every partition of the topics, or in one.
    """
    opened = asyncio.run(_open_of(kafka, set(topics), transactional_id, only))
    return _decided(kafka, [(one, transactional_id) for one in opened])


def end_hanging(kafka: KafkaConfig, hanging: Iterable[Hanging]) -> None:
    """End each as its coordinator decided, abort those without a decision. Raises KafkaError."""
    asyncio.run(_end(kafka, list(hanging)))


async def _unknown_to_coordinators(kafka: KafkaConfig, places: list[Place]) -> list[tuple[OpenAt, str]]:
    """What is open although, in between, no coordinator had it in hand."""
    cluster = cluster_of(kafka, {TRANSACTION_LOG, *(topic for topic, _ in places)})
    async with wire(kafka) as asked:
        before = await _producers(asked, cluster, places)
        known = [k for broker in cluster.brokers for k in await _transactions(asked, broker, before)]
        after = {_identity(opened) for opened in await _producers(asked, cluster, places)}
    names = {k.producer_id: k.transactional_id for k in known}
    in_hand = {(k.producer_id, place) for k in known for place in k.places}
    return [
        (opened, names.get(opened.producer_id, ""))
        for opened in before
        if _identity(opened) in after and (opened.producer_id, opened.place) not in in_hand
    ]


async def _open_of(kafka: KafkaConfig, topics: set[str], transactional_id: str, only: Place | None) -> list[OpenAt]:
    cluster = cluster_of(kafka, topics)
    async with wire(kafka) as asked:
        known = [k for broker in cluster.brokers for k in await asked.transactions(broker, [transactional_id])]
        producers = {k.producer_id for k in known if not k.places}
        places = cluster.leaders if only is None else [only]
        return [opened for opened in await _producers(asked, cluster, places) if opened.producer_id in producers]


async def _transactions(asked: Wire, broker: Address, opened: Iterable[OpenAt]) -> list[Known]:
    ids = await asked.transactional_ids(broker, [one.producer_id for one in opened])
    return await asked.transactions(broker, ids) if ids else []


async def _producers(asked: Wire, cluster: Cluster, places: Iterable[Place]) -> list[OpenAt]:
    by_leader: dict[Address, list[Place]] = defaultdict(list)
    for place in places:
        by_leader[cluster.leaders[place]].append(place)
    return [opened for leader, mine in by_leader.items() for opened in await asked.producers(leader, mine)]


async def _end(kafka: KafkaConfig, hanging: list[Hanging]) -> None:
    cluster = cluster_of(kafka, {one.opened.topic for one in hanging})
    async with wire(kafka) as asked:
        for one in hanging:
            commit = one.decision is Decision.COMMIT
            await asked.write_marker(cluster.leaders[one.opened.place], one.opened, commit=commit)


def _decided(kafka: KafkaConfig, found: list[tuple[OpenAt, str]]) -> list[Hanging]:
    """With what the coordinator's log says of each; it is read once for an id."""
    since_ms: dict[str, int] = {}
    for opened, name in found:
        since_ms[name] = min(opened.last_ms, since_ms.get(name, opened.last_ms))
    logs = {name: log_of(kafka, name, since_ms=since) if name else [] for name, since in since_ms.items()}
    return [Hanging(opened, name, decision(opened, logs[name])) for opened, name in found]


def _identity(opened: OpenAt) -> tuple[Place, int, int]:
    return opened.place, opened.producer_id, opened.start_offset
