"""What tests of the replay and of the archive share: replays in this process, and samples as plain bytes."""

from __future__ import annotations

import subprocess
import sys
import time
from threading import Event
from typing import Any

from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from dedup_cache import Batch, decode, expand
from stream.columns import batch_schema
from stream.config import Config
from stream.context import Clock
from stream.kafka import KafkaError, end_offsets
from stream.replay.history import History, KafkaHistory
from stream.replay.request import ReplayReport, ReplayRequest
from stream.replay.run import Replay
from tests.stream.rig import ROOT, Rig, read_all
from trainer.resolver import Resolver, ValuesLog


class NoStore:
    """A store that never has anything: what is by reference comes from the `values` topic."""

    def fetch(self, group: str, ids: Any, checks: Any, *, generation: str | None = None) -> list[bytes | None]:
        return [None] * len(ids)


def batches_of(config: Config, topic: str) -> list[Batch]:
    schema = batch_schema(config)
    resolver = Resolver(schema, store=NoStore(), log=ValuesLog(config.kafka, topic=config.topics.values))
    return [resolver.resolve(decode(message.value or b"", schema)) for message in read_all(config, topic)]


def rows_of(config: Config, topic: str) -> dict[int, list[bytes]]:
    """By source partition, every sample as bytes: all its columns, its features expanded; `seq` must count them."""
    found: dict[int, list[bytes]] = {}
    for batch in batches_of(config, topic):
        rows = found.setdefault(batch.meta.source_partition, [])
        if not rows:
            rows += [b""] * batch.meta.seq
        assert batch.meta.seq == len(rows), f"{topic}: a batch before sample {batch.meta.seq} is missing or doubled"
        columns = [batch.sample_ids, batch.labels, batch.weights, batch.scores]
        columns += [batch.event_times_ms, batch.append_times_ms]
        parts = [[column[i].tobytes() for i in range(batch.num_samples)] for column in columns]
        for group in batch.groups.values():
            plain = expand(group)
            parts.append([row.tobytes() for row in plain.dense])
            parts += [[ids.tobytes() for ids in column.rows()] for column in plain.lists.values()]
        rows += [repr(part).encode() for part in zip(*parts, strict=True)]
    return found


def replay(rig: Rig, into: str, *, history: History | None = None, **request: Any) -> ReplayReport:
    """In this process."""
    clock = Clock(lambda: time.time_ns() // 1_000_000, lambda: time.monotonic_ns() // 1_000_000)
    history = history or KafkaHistory(rig.config)
    asked = ReplayRequest(into=rig.prefix + into, **request)
    return Replay(rig.config, asked, history=history, clock=clock, stop=Event()).run()


def start_replay(rig: Rig, into: str, *options: str) -> subprocess.Popen[str]:
    """`recd replay`, as an operator does."""
    command = [sys.executable, "-m", "recd", "replay", "--config", str(rig.config_path), "--into", into, *options]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def has_batches(rig: Rig, into: str) -> bool:
    """Whether a replay has written anything."""
    try:
        return any(end_offsets(rig.config.kafka, rig.prefix + into).values())
    except KafkaError:
        return False


class Naps(Event):
    """What a replay sleeps by: sleeping takes no time, but moves the clock, which nothing else does."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = 0.0

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep."""
        self.now_ms += 1000 * (timeout or 0.0)
        return self.is_set()


def paced(rig: Rig, into: str, *, speed: float) -> float:
    """A replay at that speed; returns how many milliseconds it slept."""
    naps = Naps()
    clock = Clock(lambda: time.time_ns() // 1_000_000, lambda: round(naps.now_ms))
    asked = ReplayRequest(into=rig.prefix + into, speed=speed)
    Replay(rig.config, asked, history=KafkaHistory(rig.config), clock=clock, stop=naps).run()
    return naps.now_ms


def delete_records(rig: Rig, topic: str) -> None:
    """As retention does, all but the last of each partition."""
    client = AdminClient({"bootstrap.servers": rig.config.kafka.bootstrap})
    ends = end_offsets(rig.config.kafka, topic)
    for future in client.delete_records([TopicPartition(topic, p, end) for p, end in ends.items()]).values():
        future.result()
