"""Everything a worker talks to, opened together and closed together."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from stream.ageing import Ageing
from stream.builder import BatchLimits
from stream.columns import batch_schema
from stream.config import Config
from stream.context import WorkerContext
from stream.indexer import Indexer, ReferencePolicy
from stream.kafka import (
    EndProbe,
    GroupConsumer,
    Rebalance,
    TopicMissing,
    TransactionalWriter,
    partition_count,
    topic_settings,
)
from stream.kafka.hanging import Hanging, HangingTransaction, left_open, offsets_place
from stream.kafka.security import RequestRefused
from stream.originals import with_originals
from stream.takeover import Takeover, probe_every_ms
from stream.topics import RECORD_OVERHEAD_BYTES
from stream.transaction import OpenTransaction, TopicLayout

logger = logging.getLogger("stream.worker")

PRODUCER_BATCH_BYTES = 1_000_000
DEFAULT_MAX_MESSAGE_BYTES = 1_048_588


@dataclass(frozen=True, slots=True)
class Edges:
    """The open clients of one worker, and what is built on them."""

    consumer: GroupConsumer
    writer: TransactionalWriter
    ageing: Ageing
    indexer: Indexer
    transaction: OpenTransaction
    takeover: Takeover

    def close(self) -> None:
        """Leave the group, release the connections. What is open in a transaction is not committed."""
        try:
            self.consumer.close()
        finally:
            self.writer.close()


def open_edges(
    config: Config, context: WorkerContext, *, rebalance: Rebalance, on_wait: Callable[[str], object]
) -> Edges:
    """Connect, fence what an earlier process with this id left, join the group.

    Raises TopicMissing, BrokerUnavailable, Fenced.
    """
    limits = _record_limits(config)
    topics, schema = config.topics, batch_schema(config)
    indexer = Indexer(
        schema,
        store=context.store,
        policy=ReferencePolicy(config.dedup.inline_bytes, limits[topics.values] - RECORD_OVERHEAD_BYTES),
    )
    layout = _layout(config, limits)
    writer = TransactionalWriter(
        config.kafka,
        transactional_id=context.transactional_id,
        timeout_ms=config.stream.transaction_timeout_ms,
        compression=config.batch.compression,
        max_batch_bytes=min(PRODUCER_BATCH_BYTES, *limits.values()),
    )
    writer.init(on_wait=on_wait)
    _refuse_left_open(config, context.transactional_id)
    consumer = GroupConsumer(
        config.kafka,
        topic=topics.interactions,
        group_id=config.stream.group_id,
        protocol=config.stream.group_protocol,
        rebalance=rebalance,
        instance_id=config.stream.worker_id if config.stream.static_member else None,
    )
    return Edges(
        consumer=consumer,
        writer=writer,
        ageing=Ageing(
            EndProbe(config.kafka, topic=topics.interactions), probe_every_ms(config), close=context.orders.close
        ),
        indexer=indexer,
        transaction=OpenTransaction(
            writer,
            topics=topics,
            layout=layout,
            indexer=indexer,
            membership=consumer.group_metadata,
            originals=partial(with_originals, config),
            crash_point=context.crash_point,
        ),
        takeover=Takeover(
            config,
            schema=schema,
            limits=BatchLimits(
                config.batch.max_samples, min(config.batch.max_bytes, limits[topics.batches] - RECORD_OVERHEAD_BYTES)
            ),
            indexer=indexer,
            overrides=context.overrides,
            journal_partitions=layout.journal,
        ),
    )


def _refuse_left_open(config: Config, transactional_id: str) -> None:
    """A transaction of a former process with this id that never ended: the next commit would make it visible.

    Raises HangingTransaction.
    """
    kafka, name = config.kafka, transactional_id
    left = _looked_at(lambda: left_open(kafka, _outputs(config), transactional_id=name), what="the output topics")
    left += _looked_at(partial(_left_in_offsets, config, name), what="the offsets of the group")
    if left:
        raise HangingTransaction("; ".join(one.message(config.kafka.bootstrap) for one in left))


def _left_in_offsets(config: Config, transactional_id: str) -> list[Hanging]:
    try:
        place = offsets_place(config.kafka, config.stream.group_id)
    except TopicMissing:  # no group ever committed anything
        return []
    return left_open(config.kafka, [place[0]], transactional_id=transactional_id, only=place)


def _looked_at(look: Callable[[], list[Hanging]], *, what: str) -> list[Hanging]:
    """What it finds; nothing, and a warning, where it may not look."""
    try:
        return look()
    except RequestRefused as error:  # an old broker, one that does not let everybody ask, or options not spoken here
        logger.warning(
            "not looked at: whether an earlier process with this id left a transaction open",
            extra={"where": what, "reason": str(error)},
        )
        return []


def _record_limits(config: Config) -> dict[str, int]:
    """By output topic, the largest record that it takes."""
    return {
        name: int(topic_settings(config.kafka, name).get("max.message.bytes", DEFAULT_MAX_MESSAGE_BYTES))
        for name in _outputs(config)
    }


def _layout(config: Config, limits: dict[str, int]) -> TopicLayout:
    topics = config.topics
    count = {name: partition_count(config.kafka, name) for name in _outputs(config)}
    return TopicLayout(
        batches=count[topics.batches],
        values=count[topics.values],
        journal=count[topics.journal],
        snapshots=count.get(topics.snapshots, 0),
        late=count[topics.late],
        quarantine=count[topics.quarantine],
        late_bytes=limits[topics.late],
        quarantine_bytes=limits[topics.quarantine],
    )


def _outputs(config: Config) -> tuple[str, ...]:
    topics = config.topics
    outputs = (topics.batches, topics.values, topics.late, topics.quarantine, topics.journal)
    return (*outputs, topics.snapshots) if config.stream.snapshot_every_events else outputs
