"""Generations end while a worker runs: old values are deleted, and every batch that is still there can be read."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import redis
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from recd.embedded import EmbeddedKafka, EmbeddedRedis
from stream.kafka import begin_offsets
from tests.stream.replays import batches_of
from tests.stream.rig import START_MS, Rig, traffic

pytestmark = pytest.mark.kafka

FAST = {"log.retention.check.interval.ms": 200, "log.cleaner.backoff.ms": 200, "log.initial.task.delay.ms": 200}
GENERATION_MS, BATCHES_MS, SEGMENT_MS = 500, 1_000, 300


def set_retention(rig: Rig, **retention_ms: int) -> None:
    client = AdminClient({"bootstrap.servers": rig.config.kafka.bootstrap})
    resources = [
        ConfigResource(
            ResourceType.TOPIC,
            getattr(rig.config.topics, topic),
            incremental_configs=[
                ConfigEntry(name, str(value), incremental_operation=AlterConfigOpType.SET)
                for name, value in (("retention.ms", ms), ("segment.ms", SEGMENT_MS))
            ],
        )
        for topic, ms in retention_ms.items()
    ]
    for future in client.incremental_alter_configs(resources).values():
        future.result()


def test_what_batches_name_outlives_them(tmp_path: Path, redis_server: EmbeddedRedis, topic_prefix: str) -> None:
    with EmbeddedKafka(tmp_path / "kafka", settings=FAST) as kafka:
        limits = {"inline_bytes": 100, "generation_ms": GENERATION_MS, "generation_ids": 60}
        rig = Rig(tmp_path, kafka=kafka.bootstrap, redis=redis_server.url, prefix=topic_prefix, dedup=limits).create()
        kept = BATCHES_MS + SEGMENT_MS + GENERATION_MS + 1_000
        set_retention(rig, batches=BATCHES_MS, values=kept)
        with rig.worker() as worker:
            wave = 0
            while wave < 4 or not all(begins(rig, topic) for topic in ("batches", "values")):
                publish(rig, wave)
                worker.wait_drained()
                wave += 1
                assert wave < 60, "Kafka deletes nothing"
            set_retention(rig, values=-1)
            set_retention(rig, batches=-1)
            time.sleep(2 * GENERATION_MS / 1000)
            publish(rig, wave)
            worker.wait_drained()
        generations = [batch.meta.generation for batch in rig.batches()]
        assert len(set(generations)) >= 2
        resolved = batches_of(rig.config, rig.config.topics.batches)
        assert len(resolved) == len(generations), "from the topic alone"
        assert max(batch.groups["user"].rows.lists["history"].lengths.max() for batch in resolved) == 30
        with redis.Redis.from_url(redis_server.url) as client:
            keys = [key.decode() for key in client.scan_iter(f"{{{topic_prefix}}}*")]
        assert 1 <= len({key.split(":")[2] for key in keys if key.count(":") > 1}) <= 2


def publish(rig: Rig, wave: int) -> None:
    """Users that were not there before, mostly."""
    start_ms, first_id = START_MS + wave * 10_000, wave * 1_000
    rig.publish(traffic(seed=wave, sessions=20, start_ms=start_ms, first_id=first_id, users=300))


def begins(rig: Rig, topic: str) -> bool:
    """Whether the beginning of the topic was deleted."""
    return any(begin_offsets(rig.config.kafka, getattr(rig.config.topics, topic)).values())
