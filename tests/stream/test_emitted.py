"""How far back a quiet source partition's batches are found, on a real topic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from confluent_kafka import Producer

from dedup_cache import wire
from recd.embedded import EmbeddedKafka, EmbeddedRedis
from stream.emitted import LOOK_BACK, Emitted, newest_batches
from stream.kafka import create_topic
from tests.stream.rig import Rig

BEHIND = 2 * LOOK_BACK + 100


def batch(source: str, partition: int, *, last_offset: int, seq: int) -> bytes:
    named = {"source_topic": source, "source_partition": str(partition), "last_offset": str(last_offset)}
    return wire.write({"sample_ids": np.arange(3, dtype=np.uint64)}, {**named, "seq": str(seq)})


@pytest.mark.kafka
def test_a_partition_that_was_quiet_for_long_is_found(
    tmp_path: Path, kafka: EmbeddedKafka, redis_server: EmbeddedRedis, topic_prefix: str
) -> None:
    rig = Rig(tmp_path, kafka=kafka.bootstrap, redis=redis_server.url, prefix=topic_prefix)
    config = rig.config
    create_topic(config.kafka, config.topics.batches, partitions=1)
    producer = Producer({"bootstrap.servers": kafka.bootstrap})
    source, topic = config.topics.interactions, config.topics.batches
    producer.produce(topic, batch(source, 1, last_offset=41, seq=7), partition=0)
    for number in range(BEHIND):
        producer.produce(topic, batch(source, 0, last_offset=number, seq=3 * number), partition=0)
    producer.flush()
    found = newest_batches(config, [0, 1, 2])
    rig.close()
    assert found == {0: Emitted(topic, BEHIND, 3 * BEHIND), 1: Emitted(topic, 42, 10)}
