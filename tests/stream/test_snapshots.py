"""Snapshots of open sessions: written once, brought back exactly, refused when they are damaged."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Self

import msgspec
import numpy as np
import pytest

from dedup_cache.wire import read, write
from stream.config import StreamConfig
from stream.events import IMPRESSION
from stream.journal import Parameters
from stream.kafka import Message
from stream.opening import Opened, Opener
from stream.pipeline import PartitionPipeline, PipelineConfig
from stream.records import CommitPoint
from stream.recovery import Plan
from stream.sessions import OpenSessions, RestoreError
from stream.snapshot_columns import ColumnWriter
from stream.snapshot_format import (
    Head,
    SnapshotError,
    SnapshotRef,
    decode_events,
    decode_head,
    encode_events,
    encode_head,
)
from stream.snapshot_reader import LoadedSnapshot, load_snapshot
from stream.snapshots import SnapshotLimits, Snapshots
from tests.stream.pipeline_machine import APPEND_MS, CONFIG, PipelineMachine, Source, block_of
from tests.stream.pipeline_machine import Snapshot as Taken
from tests.stream.test_pipeline import random_source

LIMITS = SnapshotLimits(every_events=20, chunk_bytes=700)


@pytest.fixture
def topic(monkeypatch: pytest.MonkeyPatch) -> Topic:
    topic = Topic()
    monkeypatch.setattr("stream.snapshot_reader.Reader", lambda *_, positions, **__: TopicReader(topic, positions))
    monkeypatch.setattr("stream.snapshot_reader.PATIENCE_S", 0.0)
    return topic


class Topic:
    """One partition of the snapshots topic, in memory; every transaction leaves a control record behind."""

    def __init__(self) -> None:
        self.records: dict[int, tuple[bytes, bytes]] = {}
        self.end = 0

    def write(self, snapshots: Snapshots, pipeline: PartitionPipeline, *, commit: int) -> SnapshotRef | None:
        part = snapshots.take(pipeline, commit=commit)
        for chunk in part.chunks:
            assert len(chunk.value) <= LIMITS.chunk_bytes
            self.records[self.end] = (chunk.key, chunk.value)
            self.end += 1
            snapshots.next_offset = self.end
        self.end += 1
        return part.ref

    def load(self, ref: SnapshotRef) -> LoadedSnapshot:
        like = PipelineMachine().pipeline.no_impressions()
        return load_snapshot(CONFIG.kafka, "snapshots", topic_partition=0, ref=ref, like=like)


class TopicReader:
    """As `stream.kafka.Reader`."""

    def __init__(self, topic: Topic, positions: dict[int, int]) -> None:
        self._topic = topic
        self._at = positions[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def positions(self) -> dict[int, int]:
        return {0: self._at}

    def seek(self, _partition: int, offset: int) -> None:
        self._at = offset

    def poll(self, *, max_messages: int, timeout_ms: int) -> list[Message]:
        offsets = sorted(o for o in self._topic.records if o >= self._at)[: min(3, max_messages)]
        self._at = offsets[-1] + 1 if offsets else self._topic.end
        return [Message("snapshots", 0, o, timeout_ms, *self._topic.records[o]) for o in offsets]


def grow(machine: PipelineMachine, rng: random.Random, *, count: int) -> None:
    """So many further events, of sessions that stay open for a while."""
    for _ in range(count):
        machine.clock_ms += rng.choice([0, 0, 0, 0, 1])
        source = random_source(rng, offset=machine.next_offset, clock_ms=machine.clock_ms)
        machine.next_offset += 1
        machine.log.append(source)
        machine.oracle.record(
            source.offset, append_ms=APPEND_MS, key=source.key, value=source.value, outcome=source.outcome
        )
        machine.feed(machine.pipeline, [source], cuts=set(), into=machine.emitted)


@pytest.mark.parametrize("seed", range(6))
def test_every_snapshot_brings_the_pipeline_back(seed: int, topic: Topic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.snapshots.SEGMENT_EVENTS", 15)
    monkeypatch.setattr("stream.snapshots.MOST_SEGMENTS", 4)
    monkeypatch.setattr("stream.event_store.SLACK", seed)
    rng, machine = random.Random(seed), PipelineMachine()
    machine.clock_ms = 1_000
    snapshots = Snapshots(3, limits=LIMITS, next_offset=0)
    taken = 0
    for commit in range(60):
        grow(machine, rng, count=rng.randrange(12))
        ref = topic.write(snapshots, machine.pipeline, commit=commit)
        if ref is None:
            continue
        taken += 1
        loaded = topic.load(ref)
        now = Taken.of(machine.pipeline)
        assert Taken(loaded.state, loaded.events).same_as(now)
        machine.restore_from(Taken(loaded.state, loaded.events), cuts=set())
        if rng.random() < 0.3:
            snapshots = Snapshots(3, limits=LIMITS, next_offset=topic.end, restored=loaded.restored)
    assert taken > 5
    machine.close_all()
    machine.same_as_oracle()


def test_the_bytes_of_an_impression_are_not_kept_but_those_of_an_engagement(topic: Topic) -> None:
    machine, ref = written(topic)
    loaded = topic.load(ref)
    for row, key, value in zip(loaded.events.rows, loaded.events.record_keys, loaded.events.values, strict=True):
        [source] = [source for source in machine.log if source.offset == row["offset"]]
        kept = (source.key, source.value) if row["kind"] != IMPRESSION else (None, None)
        assert (key, value) == kept


def test_equal_lists_are_written_once_and_stay_one_slice() -> None:
    machine = PipelineMachine()
    body = {"type": "impression", "event_time_ms": 100, "item_id": 1}
    for i in range(8):
        lists = {"recent": [1, 2, i // 4], "tags": ["a"]}
        machine.log.append(Source(i, None, json.dumps(body | lists | {"event_id": i, "user_id": i}).encode(), None))
    machine.pipeline.feed(block_of(machine.log))
    events = machine.pipeline.held_events(machine.pipeline.held_offsets())
    like = machine.pipeline.no_impressions()
    found = decode_events(encode_events(events), like=like)
    assert [column.values.shape[0] for column in found.impressions.lists] == [1, 6]
    restored = PartitionPipeline.restore(
        PipelineConfig.of(CONFIG), partition=3, state=machine.pipeline.state(), events=found
    )
    again = restored.held_events(restored.held_offsets())
    for mine, theirs in zip(again.impressions.lists, events.impressions.lists, strict=True):
        assert [row.tolist() for row in mine.rows()] == [row.tolist() for row in theirs.rows()]


def written(topic: Topic, *, events: int = 80) -> tuple[PipelineMachine, SnapshotRef]:
    """A snapshot of several segments."""
    machine, rng = PipelineMachine(), random.Random(0)
    machine.clock_ms = 1_000
    snapshots, refs = Snapshots(3, limits=replace(LIMITS, every_events=1), next_offset=0), []
    for commit in range(4):
        grow(machine, rng, count=events // 4)
        refs.append(topic.write(snapshots, machine.pipeline, commit=commit))
    assert refs[-1] is not None
    return machine, refs[-1]


def test_what_is_damaged_missing_or_of_another_format_is_named(topic: Topic, monkeypatch: pytest.MonkeyPatch) -> None:
    _, ref = written(topic)
    topic.load(ref)
    for offset, (key, value) in list(topic.records.items()):
        name = key.decode().rpartition("/")[0]
        blobs = {ref.head.name, *(one.name for one in decode_head(head_of(topic, ref)).segments)}
        if name not in blobs:
            continue
        topic.records[offset] = (key, value[:-1] + bytes([value[-1] ^ 1]))
        with pytest.raises(SnapshotError, match=r"not those that were written|cut off|batch"):
            topic.load(ref)
        del topic.records[offset]
        with pytest.raises(SnapshotError, match=rf"{name}: 1 of \d+ records are not in the topic"):
            topic.load(ref)
        topic.records[offset] = (key, value)
    monkeypatch.setattr("stream.snapshot_format.FORMAT_VERSION", 99)
    with pytest.raises(SnapshotError, match="format 'head 2', this worker knows head 99"):
        topic.load(ref)


def test_a_partition_opens_behind_its_snapshot_or_where_one_byte_is_wrong_before_it(
    topic: Topic, caplog: pytest.LogCaptureFixture
) -> None:
    machine, ref = written(topic)
    config = msgspec.structs.replace(CONFIG, stream=StreamConfig(snapshot_every_events=1))
    plan = Plan(
        start=CommitPoint(0),
        resume=ref.position,
        seq=0,
        commit=4,
        advances=(),
        parameters=Parameters.of(config),
        snapshot=ref,
    )

    def opened() -> Opened:
        opener = Opener(config, ends={0: topic.end}, on_wait=lambda: None)
        return opener.open(3, plan, pipeline=PipelineConfig.of(config))

    whole = opened().pipeline
    assert (whole.position, whole.open_events) == (ref.position, machine.pipeline.open_events)
    assert not caplog.records
    for offset, (key, value) in list(topic.records.items()):
        if not key.decode().startswith(ref.head.name):
            continue
        topic.records[offset] = (key, value[:-1] + bytes([value[-1] ^ 1]))
        caplog.clear()
        empty = opened()
        assert (empty.pipeline.position, empty.pipeline.open_events, empty.plan.start.offset) == (0, 0, 0)
        (warning,) = [one for one in caplog.records if one.message == "snapshot not used, reading the log instead"]
        assert (warning.partition, warning.position) == (3, ref.position)
        assert warning.reason.startswith("head: ")
        topic.records[offset] = (key, value)


def head_of(topic: Topic, ref: SnapshotRef) -> bytes:
    parts = dict(topic.records.values())
    return b"".join(parts[f"{ref.head.name}/{i}".encode()] for i in range(ref.head.chunks))


def test_columns_of_another_configuration_are_refused() -> None:
    machine = PipelineMachine()
    machine.clock_ms = 1_000
    grow(machine, random.Random(1), count=10)
    pipeline = machine.pipeline
    blob = encode_events(pipeline.held_events(pipeline.held_offsets()))
    like = pipeline.no_impressions()
    assert decode_events(blob, like=like).rows.shape == (pipeline.open_events,)
    with pytest.raises(SnapshotError, match=r"events: 3 dense, .*, the configuration makes 4 dense, "):
        decode_events(blob, like=replace(like, dense=np.empty((0, 4), np.float32)))
    with pytest.raises(SnapshotError, match=r"2 lists, the configuration makes .* 3 lists"):
        decode_events(blob, like=replace(like, lists=(*like.lists, like.lists[0])))


def with_columns(blob: bytes, **columns: list[int]) -> bytes:
    """A blob as if these columns of integers had been written into it; its checksum is right."""
    wire, writer = read(blob), ColumnWriter()
    for name, values in columns.items():
        writer.integers(name, np.array(values, np.int64))
    layout = json.loads(wire.metadata["columns"]) | json.loads(writer.layout())
    return write(wire.arrays | writer.arrays, wire.metadata | {"columns": json.dumps(layout)})


def with_layout(blob: bytes, name: str, *packed: object) -> bytes:
    """A blob that says this of how one column is packed; its checksum is right."""
    wire = read(blob)
    layout = json.loads(wire.metadata["columns"]) | {name: packed}
    return write(wire.arrays, wire.metadata | {"columns": json.dumps(layout)})


def a_pipeline() -> PartitionPipeline:
    machine = PipelineMachine()
    machine.clock_ms = 1_000
    grow(machine, random.Random(1), count=30)
    return machine.pipeline


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"list.0.lengths": [-1, 1]}, "list.0: lengths: a negative length"),
        ({"list.0.values": [1, 2], "list.0.lengths": [1]}, "list.0: lengths: they add up to 1, but there are 2"),
        ({"list.0.values": [1], "list.0.lengths": [2**62] * 4 + [1]}, r"list.0: a list of \d+ ids among 1"),
        ({"list.0.values": [1], "list.0.lengths": [1], "list.0.inverse": [0]}, r"list.0: 1 rows, expected \d+"),
        ({"ids.0": [7]}, r"ids.0: 1 rows, expected \d+"),
        ({"row.kind": [0]}, r"row.kind: 1 rows, expected \d+"),
        ({"values.lengths": [0]}, r"values: 1 rows, expected \d+"),
        ({"values.lengths": [2**62] * 4}, r"values: \d+ bytes, expected"),
    ],
)
def test_columns_that_do_not_fit_together_are_refused(columns: dict[str, list[int]], message: str) -> None:
    """By an error after which the log is read, not by a kernel that reads memory that is not its own."""
    pipeline = a_pipeline()
    blob, like = encode_events(pipeline.held_events(pipeline.held_offsets())), pipeline.no_impressions()
    decode_events(with_columns(blob), like=like)
    with pytest.raises(SnapshotError, match=message):
        decode_events(with_columns(blob, **columns), like=like)


@pytest.mark.parametrize("packed", [(1 << 40, 0, 1, False), (1, 1 << 70, 1, False), (-1, 0, 1, True)])
def test_a_layout_that_cannot_be_is_refused(packed: tuple[object, ...]) -> None:
    pipeline = a_pipeline()
    blob, like = encode_events(pipeline.held_events(pipeline.held_offsets())), pipeline.no_impressions()
    with pytest.raises(SnapshotError, match=r"keys: \d+ bytes|layout: "):
        decode_events(with_layout(blob, "keys", *packed), like=like)


def test_fewer_rows_of_features_than_impressions_are_refused() -> None:
    pipeline = a_pipeline()
    wire = read(encode_events(pipeline.held_events(pipeline.held_offsets())))
    for name in ("dense", "scores"):
        blob = write(wire.arrays | {name: wire.arrays[name][:-1]}, wire.metadata)
        with pytest.raises(SnapshotError, match=rf"{name}: \d+ rows, expected \d+"):
            decode_events(blob, like=pipeline.no_impressions())


@pytest.mark.parametrize("ready", [True, False])
def test_events_without_their_sessions_are_refused(ready: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.pipeline.warm.ready", lambda: ready)
    pipeline = a_pipeline()
    events, head = pipeline.held_events(pipeline.held_offsets()), encode_head(Head(pipeline.state(), (), ()))
    with pytest.raises(SnapshotError, match=r"sessions.lasts_ms: 1 rows, expected \d+"):
        decode_head(with_columns(head, **{"sessions.lasts_ms": [1]}))
    nothing: dict[str, list[int]] = {f"sessions.{name}": [] for name in OpenSessions.__slots__}
    state = decode_head(with_columns(head, **nothing)).state
    with pytest.raises(RestoreError, match=rf"{pipeline.open_events} events are of no session"):
        PartitionPipeline.restore(PipelineConfig.of(CONFIG), partition=3, state=state, events=events)


def test_a_short_log_is_cheaper_than_a_snapshot(topic: Topic) -> None:
    machine = PipelineMachine()
    grow(machine, random.Random(1), count=19)
    assert topic.write(Snapshots(3, limits=LIMITS, next_offset=0), machine.pipeline, commit=1) is None
    grow(machine, random.Random(1), count=40)
    machine.close_all()
    assert topic.write(Snapshots(3, limits=LIMITS, next_offset=0), machine.pipeline, commit=2) is None
    never = Snapshots(3, limits=replace(LIMITS, every_events=0), next_offset=0)
    assert topic.write(never, machine.pipeline, commit=3) is None
    assert not topic.records


def test_an_event_is_written_once_while_its_session_is_open(topic: Topic) -> None:
    machine, ref = written(topic)
    head = decode_head(head_of(topic, ref))
    again = encode_head(Head(head.state, head.segments, head.held))
    assert again == head_of(topic, ref)
    sizes = [held.size for held in head.held]
    assert len(sizes) > 1
    assert sum(int(held.sum()) for held in head.held) == machine.pipeline.open_events == ref.events
    assert sum(sizes) <= 2 * machine.pipeline.open_events + sizes[-1]
