"""Topics are made as the stream needs them, and refused where they would lose data."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from recd.embedded import EmbeddedKafka
from stream.config import BatchConfig, Config, DedupConfig, EventsConfig, KafkaConfig, TopicsConfig
from stream.kafka import create_topic, partition_count, topic_settings
from stream.topics import TopicError, check_topics, create_topics

pytestmark = pytest.mark.kafka


@pytest.fixture
def config(kafka: EmbeddedKafka, topic_prefix: str) -> Config:
    names = ("interactions", "batches", "values", "late", "quarantine", "journal", "snapshots", "control", "versions")
    topics = TopicsConfig(**{name: topic_prefix + name for name in names}, partitions=3)
    return Config(kafka=KafkaConfig(bootstrap=kafka.bootstrap), topics=topics)


def test_created_with_their_settings(config: Config) -> None:
    lines = create_topics(config)
    assert len([line for line in lines if line.endswith("created, 3 partitions")]) == 7
    assert not [line for line in lines if line.startswith("warning")]
    settings = {
        name: topic_settings(config.kafka, getattr(config.topics, name))
        for name in ("interactions", "batches", "values", "late", "quarantine", "journal")
    }
    assert settings["interactions"]["message.timestamp.type"] == "LogAppendTime"
    assert settings["values"]["cleanup.policy"] == "compact,delete"
    kept = {name: int(settings[name]["retention.ms"]) for name in ("values", "batches")}
    stands_ms = kept["batches"] + int(settings["batches"]["segment.ms"])
    assert kept["values"] > stands_ms + DedupConfig().generation_ms, "a batch outlives the values that it names"
    assert (settings["journal"]["cleanup.policy"], settings["journal"]["retention.ms"]) == ("delete", "-1")
    limit = {name: int(of["max.message.bytes"]) for name, of in settings.items()}
    assert limit["interactions"] > EventsConfig().max_bytes, "what is refused must arrive to be quarantined"
    assert min(limit["late"], limit["quarantine"], limit["values"]) > limit["interactions"]
    assert limit["batches"] > BatchConfig().max_bytes
    assert partition_count(config.kafka, config.topics.control) == 1


def test_creating_again_changes_nothing(config: Config) -> None:
    create_topics(config)
    assert all(": exists, " in line for line in create_topics(config))


@pytest.mark.parametrize(
    ("topic", "setting", "match"),
    [
        ("interactions", {"cleanup.policy": "compact"}, "cleanup.policy=compact"),
        ("journal", {"retention.ms": "1000"}, "the journal must outlive the log"),
        ("batches", {"max.message.bytes": "1000000"}, "batch.max_bytes"),
        ("values", {"cleanup.policy": "compact,delete", "retention.ms": "700000000"}, "set it to 781200000"),
        ("values", {"retention.ms": "-1", "retention.bytes": "1000"}, "retention.bytes=1000"),
    ],
)
def test_what_would_lose_data_is_refused(config: Config, topic: str, setting: dict[str, str], match: str) -> None:
    create_topic(config.kafka, getattr(config.topics, topic), partitions=3, settings=setting)
    with pytest.raises(TopicError, match=match):
        create_topics(config)


def test_what_may_lose_data_is_said(config: Config) -> None:
    create_topic(
        config.kafka,
        config.topics.interactions,
        partitions=3,
        settings={"message.timestamp.type": "CreateTime", "retention.ms": "60000", "max.message.bytes": "9000000"},
    )
    warnings = "\n".join(line for line in create_topics(config) if line.startswith("warning"))
    assert "LogAppendTime" in warnings
    assert "retention.ms=60000" in warnings
    assert "replaced by their size and digest" in warnings
    assert len(check_topics(config)) == 4


def test_a_worker_refuses_a_compacted_log(config: Config, tmp_path: Path) -> None:
    create_topics(config)
    compacted = config.topics.interactions + "-compacted"
    create_topic(config.kafka, compacted, partitions=3, settings={"cleanup.policy": "compact"})
    sets = {f"topics.{name}": getattr(config.topics, name) for name in TopicsConfig.__struct_fields__}
    sets |= {"topics.interactions": compacted, "kafka.bootstrap": config.kafka.bootstrap, "stream.port": 0}
    options = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "recd", "stream", *options, "--set", f"stream.data_dir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "cleanup.policy=compact" in done.stderr
