"""Samples that no batch can hold: their records are read again together, and land in quarantine with their bytes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

import pytest

from recd.embedded import EmbeddedKafka, EmbeddedRedis
from stream.config import Config, ConfigError, KafkaConfig, load
from stream.kafka import Message, TransactionAborted
from stream.originals import with_originals
from stream.records import Rejected
from tests.stream.replays import delete_records
from tests.stream.rig import START_MS, Rig

LOG = {offset: Message("interactions", 2, offset, 1_000 + offset, b"k", b"v%d" % offset) for offset in range(10)}


class LogReader:
    """Reads `LOG`; counts how many were made."""

    made = 0

    def __init__(self, _kafka: KafkaConfig, *, topic: str, positions: Mapping[int, int]) -> None:
        LogReader.made += 1
        self._positions = dict(positions)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to release."""

    def positions(self) -> dict[int, int]:
        return self._positions

    def seek(self, partition: int, offset: int) -> None:
        self._positions[partition] = offset

    def poll(self, *, max_messages: int, timeout_ms: int) -> list[Message]:
        ((partition, offset),) = self._positions.items()
        self._positions[partition] += 1
        return [LOG[offset]] if offset in LOG else []


def test_records_are_read_again_with_one_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.originals.Reader", LogReader)
    monkeypatch.setattr("stream.originals.SKIP_RECORDS", 2)
    asked = {7: "seven", 3: "three", 4: "four", 99: "gone"}
    found = with_originals(Config(), 2, [Rejected(o, -1, "too_large", d, None, None) for o, d in asked.items()])
    assert LogReader.made == 1
    assert [(r.offset, r.value, r.append_time_ms, r.detail) for r in found[:3]] == [
        (7, b"v7", 1_007, "seven"),
        (3, b"v3", 1_003, "three"),
        (4, b"v4", 1_004, "four"),
    ]
    assert (found[3].value, found[3].detail) == (None, "gone; its bytes could not be read again")


def test_a_limit_below_ordinary_samples_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"at least 65536 - at \$\.batch\.max_bytes"):
        load(overrides=("batch.max_bytes=65535",))
    assert load(overrides=("batch.max_bytes=65536",)).batch.max_bytes == 65_536


@pytest.fixture
def rig(tmp_path: Path, kafka: EmbeddedKafka, redis_server: EmbeddedRedis, topic_prefix: str) -> Iterator[Rig]:
    rig = Rig(tmp_path, kafka=kafka.bootstrap, redis=redis_server.url, prefix=topic_prefix).create()
    yield rig
    rig.close()


@pytest.mark.kafka
def test_several_large_samples_of_one_session(rig: Rig) -> None:
    rig.tree["batch"]["max_bytes"] = 70_000
    rig.tree["features"][1]["max_length"] = 12_000
    rig.write()
    events = [
        {"event_id": i, "user_id": 0, "event_time_ms": START_MS + i, "type": "impression", "item_id": 1}
        | ({"history": list(range(12_000))} if i % 3 else {})
        for i in range(9)
    ]
    rig.publish(events, partition=0)
    with rig.worker() as worker:
        worker.wait_drained()
        assert worker.state["counters"]["samples"] == 3
    rejects = rig.rejects("quarantine")
    assert [(r.reason, r.offset) for r in rejects] == [("too_large", i) for i in range(9) if i % 3]
    assert [r.message.value for r in rejects] == [json.dumps(events[r.offset]).encode() for r in rejects]
    rig.check_exactly_once()


@pytest.mark.kafka
def test_a_silent_broker_is_not_a_record_that_is_gone(
    rig: Rig, kafka: EmbeddedKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.publish([b"a", b"b"], partition=0)
    asked = [Rejected(offset, -1, "too_large", "d", None, None) for offset in range(4)]
    os.kill(kafka.pid, signal.SIGSTOP)
    try:
        with monkeypatch.context() as patch:
            patch.setattr("stream.originals.QUIET_POLLS", 3)
            with pytest.raises(TransactionAborted, match="the broker gave nothing"):
                with_originals(rig.config, 0, asked[:2])
    finally:
        os.kill(kafka.pid, signal.SIGCONT)
    assert [one.value for one in with_originals(rig.config, 0, asked[:2])] == [b"a", b"b"]
    delete_records(rig, rig.config.topics.interactions)
    rig.publish([b"c", b"d"], partition=0)
    assert [one.value for one in with_originals(rig.config, 0, asked)] == [None, None, b"c", b"d"]
