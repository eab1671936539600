"""Versions that are announced on a real topic: servers know at once, and none is needed to know."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from recd.embedded import EmbeddedKafka
from serving.announcements import AnnouncementListener
from serving.follower import Follower
from serving.telemetry import Telemetry
from stream.config import Config, KafkaConfig
from stream.kafka import Reader, Writer, begin_offsets, topic_settings
from tests.serving.served_world import CONFIG, T0, new_model, snapshot
from tests.serving.test_follower import in_service, wait_until
from trainer.announcements import Announcer
from trainer.versions import VersionStore

pytestmark = pytest.mark.kafka
NEVER_MS = 3_600_000


@pytest.fixture
def config(kafka: EmbeddedKafka, topic_prefix: str) -> Config:
    topics = msgspec.structs.replace(CONFIG.topics, versions=f"{topic_prefix}versions")
    return msgspec.structs.replace(CONFIG, kafka=KafkaConfig(bootstrap=kafka.bootstrap), topics=topics)


@pytest.fixture
def announcer(config: Config) -> Iterator[Announcer]:
    made = Announcer(config.kafka, topic=config.topics.versions, model="recd")
    yield made
    made.close()


@pytest.fixture
def store(tmp_path: Path) -> VersionStore:
    return VersionStore(str(tmp_path), keep=10)


@pytest.fixture
def follower(store: VersionStore) -> Iterator[Follower]:
    made = Follower(store, poll_ms=NEVER_MS, telemetry=Telemetry(), clock_ms=lambda: T0)
    yield made
    made.stop()


def announced(store: VersionStore, announcer: Announcer, seed: int) -> int:
    number = store.publish(snapshot(new_model(seed)))
    assert store.published is not None
    announcer.announce(store.published, url=store.url)
    return number


def test_one_who_is_told_needs_not_look(
    config: Config, announcer: Announcer, store: VersionStore, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.follower.TOLD_POLL_S", NEVER_MS / 1000)
    announced(store, announcer, 1)
    wait_until(lambda: announcer.announced == 1)
    follower.start()
    listener = AnnouncementListener(config, follower=follower)
    listener.start()
    try:
        wait_until(lambda: in_service(follower) == 1)
        assert not follower.is_told, "nothing has been announced since it listens"
        with Writer(config.kafka) as writer:
            writer.send(config.topics.versions, b"what?", key=b"recd")
            writer.flush(10_000)
        for seed in (2, 3):
            number = announced(store, announcer, seed)
            wait_until(lambda wanted=number: in_service(follower) == wanted)  # type: ignore[misc]
        assert follower.is_told
    finally:
        listener.stop()


def test_what_is_announced(config: Config, announcer: Announcer, store: VersionStore) -> None:
    for seed in (1, 2):
        announced(store, announcer, seed)
        wait_until(lambda wanted=seed: announcer.announced == wanted)  # type: ignore[misc]
    topic = config.topics.versions
    assert topic_settings(config.kafka, topic)["cleanup.policy"] == "compact"
    messages = []
    with Reader(config.kafka, topic=topic, positions=begin_offsets(config.kafka, topic)) as reader:
        wait_until(lambda: messages.extend(reader.poll(max_messages=9, timeout_ms=100)) or len(messages) == 2)
    manifest = store.manifest(2)
    assert messages[1].key == b"recd"
    assert json.loads(messages[1].value or b"") == {
        "format": 1,
        "version": 2,
        "kind": "full",
        "base": 0,
        "lineage": "",
        "stream_time_ms": manifest.stream_time_ms,
        "weights_ms": manifest.weights_ms,
        "url": store.url,
        "digest": manifest.digest,
    }


def test_a_broker_that_is_away_delays_no_version(store: VersionStore) -> None:
    announcer = Announcer(KafkaConfig(bootstrap="127.0.0.1:1"), topic="versions", model="recd")
    assert announced(store, announcer, 1) == 1
    assert announced(store, announcer, 2) == 2
    announcer.close(timeout_s=0)
    assert announcer.announced == 0
