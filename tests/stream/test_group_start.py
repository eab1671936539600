"""A partition delivers from where it is told to start, at once, whatever the client was doing."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from recd.embedded import EmbeddedKafka
from stream import kafka as edge
from stream.config import KafkaConfig
from tests.stream.test_kafka import Recorder, eventually

pytestmark = pytest.mark.kafka

RECORDS = 60
MEMBERS = 36


@pytest.fixture
def full(kafka: EmbeddedKafka, topic_prefix: str) -> tuple[KafkaConfig, str]:
    """A topic of one partition with RECORDS records."""
    broker, topic = KafkaConfig(bootstrap=kafka.bootstrap), f"{topic_prefix}topic"
    edge.create_topic(broker, topic, partitions=1)
    with edge.Writer(broker) as writer:
        for _ in range(RECORDS):
            writer.send(topic, b"x", partition=0)
        writer.flush(10_000)
    return broker, topic


def delivered(broker: KafkaConfig, topic: str, *, start: int) -> list[int]:
    """Offsets up to the first end that a new member hears of, when it starts right after its assignment."""
    recorder = Recorder()
    member = edge.GroupConsumer(broker, topic=topic, group_id=uuid.uuid4().hex, protocol="consumer", rebalance=recorder)
    offsets: list[int] = []
    ends: dict[int, int] = {}

    def poll() -> bool:
        polled = member.poll(max_records=25, timeout_ms=50)
        offsets.extend(offset for block in polled.blocks for offset in block.offsets.tolist())
        ends.update(polled.ends)
        assert not polled.failed
        return 0 in ends

    eventually(lambda: bool(member.poll(max_records=25, timeout_ms=50)) and recorder.owned == {0})
    member.start(0, offset=start)
    eventually(poll)
    member.close()
    return offsets


def test_a_start_right_after_the_assignment_is_never_dropped(full: tuple[KafkaConfig, str]) -> None:
    """It was, in 3 of 100 cases, while the client still looked up the end that it had been assigned at."""
    with ThreadPoolExecutor(12) as threads:
        runs = list(threads.map(lambda _: delivered(*full, start=0), range(MEMBERS)))
    assert runs == [list(range(RECORDS))] * MEMBERS


def test_a_log_whose_beginning_was_deleted_is_read_from_what_is_left(full: tuple[KafkaConfig, str]) -> None:
    broker, topic = full
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    for future in admin.delete_records([TopicPartition(topic, 0, 40)]).values():
        future.result(30)
    assert delivered(broker, topic, start=45) == list(range(45, RECORDS))
