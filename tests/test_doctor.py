"""The doctor on what is healthy and on what is broken."""

import os
from pathlib import Path

import pytest
import redis

from recd.doctor import Check, check_disk, check_kafka_jars, diagnose
from recd.embedded import EmbeddedKafka, EmbeddedRedis, free_port
from stream.config import Config, KafkaConfig, RedisConfig


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


@pytest.mark.kafka
def test_all_is_well_where_all_is_there(kafka: EmbeddedKafka, redis_server: EmbeddedRedis) -> None:
    config = Config(kafka=KafkaConfig(bootstrap=kafka.bootstrap), redis=RedisConfig(url=redis_server.url))
    checks = diagnose(config, everything=True)
    assert [check for check in checks if not check.ok] == []
    assert not any(check.remedy for check in checks)
    assert {"Python", "memory", "Kafka", "Redis", "Java runtime", "Kafka jars", "Redis server"} <= by_name(
        checks
    ).keys()


def test_what_does_not_answer_is_named_with_a_remedy() -> None:
    kafka, url = KafkaConfig(bootstrap=f"127.0.0.1:{free_port()}"), f"redis://:secret@127.0.0.1:{free_port()}/0"
    checks = by_name(diagnose(Config(kafka=kafka, redis=RedisConfig(url=url))))
    assert not checks["Kafka"].ok
    assert kafka.bootstrap in checks["Kafka"].remedy
    assert not checks["Redis"].ok
    assert "redis.url" in checks["Redis"].remedy
    assert "secret" not in checks["Redis"].detail + checks["Redis"].remedy


def test_a_redis_that_evicts_is_not_well(private_redis: EmbeddedRedis) -> None:
    with redis.Redis.from_url(private_redis.url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    config = Config(redis=RedisConfig(url=private_redis.url), kafka=KafkaConfig(bootstrap=f"127.0.0.1:{free_port()}"))
    check = by_name(diagnose(config))["Redis"]
    assert not check.ok
    assert "noeviction" in check.remedy


def test_jars_that_are_gone_are_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not check_kafka_jars().ok
    listing = tmp_path / "recd-stream" / "kafka-4.2.1.classpath"
    listing.write_text(f"{tmp_path / 'gone.jar'}\n")
    assert check_kafka_jars().remedy


def test_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    check = check_disk(tmp_path / "a" / "b")
    statistics = os.statvfs(tmp_path)
    assert check.ok == (statistics.f_bavail * statistics.f_frsize >= 2 << 30)
