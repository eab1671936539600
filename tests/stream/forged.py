"""A record as a producer in a transaction would send it, straight to the leader; the coordinator hears nothing."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from aiokafka.conn import create_conn
from aiokafka.errors import for_code
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource

from recd.embedded import EmbeddedKafka

MAY_WRITE_INTERNAL_TOPICS = "__admin_client"


@dataclass(frozen=True, slots=True)
class Identity:
    """Of a producer: what the coordinator handed out, or nobody did."""

    producer_id: int
    epoch: int = 0
    sequence: int = 0
    transactional_id: str = "forged"


def trust_producers(server: EmbeddedKafka) -> None:
    """Leaders stop asking the coordinator whether a transaction is under way, as those before Kafka 3.6 did."""
    admin = AdminClient({"bootstrap.servers": server.bootstrap})
    entry = ConfigEntry(
        "transaction.partition.verification.enable", "false", incremental_operation=AlterConfigOpType.SET
    )
    broker = ConfigResource(ConfigResource.Type.BROKER, "1", incremental_configs=[entry])
    admin.incremental_alter_configs([broker])[broker].result(10)


def send_forged(server: EmbeddedKafka, topic: str, partition: int, *, identity: Identity, value: bytes) -> None:
    """One record of a transaction that stays open."""
    batch = DefaultRecordBatchBuilder(
        2, 0, 1, identity.producer_id, identity.epoch, identity.sequence, batch_size=1 << 16
    )
    batch.append(0, time.time_ns() // 1_000_000, b"forged", value, [])
    asyncio.run(_produce(server.port, topic, partition, identity.transactional_id, bytes(batch.build())))


async def _produce(port: int, topic: str, partition: int, transactional_id: str, records: bytes) -> None:
    connection = await create_conn("127.0.0.1", port, client_id=MAY_WRITE_INTERNAL_TOPICS)
    try:
        topics = [(topic, [(partition, records)])]
        answer = await connection.send(ProduceRequest(transactional_id, -1, 10_000, topics))
        for _, partitions in answer.topics:
            for _, code, *_ in partitions:
                assert code == 0, for_code(code)
    finally:
        await connection.close()
