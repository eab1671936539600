"""A journal that was cut or made again, on a real broker: partitions stop with a message, and an operator goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from recd.embedded import EmbeddedKafka, EmbeddedRedis
from stream.config import Config, KafkaConfig, TopicsConfig
from stream.kafka import Writer, create_topic, end_offsets
from stream.topics import TopicError, create_topics
from tests.stream.rig import START_MS, Rig, read_all, traffic, wait_until

pytestmark = pytest.mark.kafka


@pytest.fixture
def rig(tmp_path: Path, kafka: EmbeddedKafka, redis_server: EmbeddedRedis, topic_prefix: str) -> Iterator[Rig]:
    rig = Rig(tmp_path, kafka=kafka.bootstrap, redis=redis_server.url, prefix=topic_prefix).create()
    yield rig
    rig.close()


def test_a_journal_that_was_cut_is_said_and_accepted(rig: Rig) -> None:
    rig.publish(traffic(sessions=40))
    with rig.worker() as worker:
        worker.wait_drained()
    journal, kafka = rig.config.topics.journal, rig.config.kafka
    ends = end_offsets(kafka, journal)
    client = AdminClient({"bootstrap.servers": kafka.bootstrap})
    for future in client.delete_records([TopicPartition(journal, p, end) for p, end in ends.items()]).values():
        future.result()
    refused = rig.worker("refused")
    assert refused.process.wait(timeout=60) != 0
    assert "the journal was cut or made again" in refused.log.read_text()
    rig.publish(traffic(seed=1, sessions=40, start_ms=START_MS + 4_000, first_id=1_000))
    with rig.worker(options=("--accept-loss", "0", "--accept-loss", "1")) as worker:
        worker.wait_drained()
    rig.check_exactly_once()

    records = read_all(rig.config, journal)
    client.delete_topics([journal])[journal].result()
    wait_until(lambda: journal not in client.list_topics(timeout=10).topics, "deleted journal")
    create_topics(rig.config)
    with Writer(kafka) as writer:
        for record in records * 4:
            writer.send(journal, record.value, key=record.key, partition=record.partition)
        writer.flush(30_000)
    refused = rig.worker("twice")
    assert refused.process.wait(timeout=60) != 0
    assert "the journal was cut or made again" in refused.log.read_text()
    assert "the topic has the id" in refused.log.read_text(), "offsets alone show nothing: it is as long as before"


def test_a_journal_with_a_limit_of_bytes_is_refused(kafka: EmbeddedKafka, topic_prefix: str) -> None:
    names = ("interactions", "batches", "values", "late", "quarantine", "journal", "snapshots", "control")
    config = Config(
        kafka=KafkaConfig(bootstrap=kafka.bootstrap),
        topics=TopicsConfig(**{name: topic_prefix + name for name in names}),
    )
    create_topic(
        config.kafka, config.topics.journal, partitions=1, settings={"retention.ms": "-1", "retention.bytes": "1000000"}
    )
    with pytest.raises(TopicError, match=r"retention.bytes=1000000.*set retention.bytes=-1"):
        create_topics(config)
