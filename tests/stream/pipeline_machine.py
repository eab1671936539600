"""A growing log, the pipeline that is fed with it, stopped and rebuilt, and the oracle beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from stream.config import Config, EventsConfig, FeatureConfig, LabelConfig, SessionConfig
from stream.events import EventBlock
from stream.pipeline import PartitionPipeline, PipelineConfig, PipelineState
from stream.records import NO_WATERMARK, CommitPoint, PipelineCounts, RecordBlock
from tests.stream.oracle import Emitted, Oracle

APPEND_MS = 10_000
CONFIG = Config(
    events=EventsConfig(engagements=("click", "buy"), max_bytes=2_000),
    features=(
        FeatureConfig(name="user", group="user", type="string", field="who"),
        FeatureConfig(name="item_id", group="item", type="int", field="number"),
        FeatureConfig(name="price", group="item", type="float", field="shop.price", default=-1.0),
        FeatureConfig(name="vector", group="item", type="list[float]", length=2),
        FeatureConfig(name="tags", group="item", type="list[string]", max_length=2),
        FeatureConfig(name="seen", group="session", source="session.items", max_length=3),
        FeatureConfig(name="liked", group="session", source="session.engaged_items", max_length=2),
        FeatureConfig(name="shown", group="session", source="session.impressions"),
        FeatureConfig(name="engaged", group="session", source="session.engagements"),
        FeatureConfig(name="pause", group="user", source="session.ms_since_last_event"),
        FeatureConfig(name="since", group="user", source="session.ms_since_start"),
        FeatureConfig(name="recent", group="user", type="list[int]", max_length=3),
    ),
    labels=(
        LabelConfig(name="any", engagements=("click", "buy"), score_field="p"),
        LabelConfig(name="buy", engagements=("buy",)),
    ),
    session=SessionConfig(gap_ms=10, out_of_orderness_ms=6, max_duration_ms=37, max_events=3, max_ahead_ms=1_000),
)


@dataclass(frozen=True)
class Source:
    """One record of the log and what has to become of it: the event's body, or the reason it is quarantined."""

    offset: int
    key: bytes | None
    value: bytes | None
    outcome: Any


IDS = st.sampled_from([1, "1", "2", "x", "y", 7, "long id"])
TYPES = st.sampled_from(["impression", "impression", "impression", "click", "buy"])
OPTIONAL = st.fixed_dictionaries(
    {},
    optional={
        "who": st.sampled_from(["ann", "böb", None]),
        "number": st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
        "shop": st.one_of(st.none(), st.just({}), st.fixed_dictionaries({"price": st.floats(-8, 8, width=32)})),
        "vector": st.one_of(st.none(), st.lists(st.floats(-1, 1, width=16), min_size=2, max_size=2)),
        "tags": st.lists(st.sampled_from(["a", "b", "c"]), max_size=4),
        "recent": st.lists(st.integers(0, 9), max_size=5),
        "p": st.one_of(st.none(), st.floats(0, 1, width=32)),
        "unknown": st.just([{"nested": [1, "x", None]}]),
    },
)
SPOILED = st.sampled_from(
    [
        (lambda body: None, "malformed"),
        (lambda body: b"", "malformed"),
        (lambda body: b"{", "malformed"),
        (lambda body: json.dumps(body).encode()[:-1], "malformed"),
        (lambda body: json.dumps(body).encode() + b"," + json.dumps(body).encode(), "malformed"),
        (lambda body: json.dumps([body]).encode(), "schema"),
        (lambda body: json.dumps(body | {"user_id": None}).encode(), "schema"),
        (lambda body: json.dumps(body | {"number": "1"}).encode(), "schema"),
        (lambda body: json.dumps(body | {"vector": [1.0]}).encode(), "schema"),
        (lambda body: json.dumps(body | {"type": "other"}).encode(), "type"),
        (lambda body: json.dumps(body | {"event_time_ms": -1}).encode(), "time"),
        (lambda body: json.dumps(body | {"event_time_ms": "soon"}).encode(), "time"),
        (lambda body: json.dumps(body | {"event_time_ms": APPEND_MS + 1_001}).encode(), "ahead"),
        (lambda body: json.dumps(body | {"unknown": "x" * 2_000}).encode(), "too_large"),
    ]
)


class Kernels:
    """What a test may have `warm.ready` say; the machine begins without and loads them at some moment."""

    loaded = False


@dataclass(frozen=True)
class Snapshot:
    """What a pipeline said of itself at some moment."""

    state: PipelineState
    events: EventBlock

    @staticmethod
    def of(pipeline: PartitionPipeline) -> Snapshot:
        return Snapshot(pipeline.state(), pipeline.held_events(pipeline.held_offsets()))

    def same_as(self, other: Snapshot) -> bool:
        kept = self.events.values != None  # noqa: E711 - of every element
        mine, theirs = (
            [one.events.rows, one.events.keys, one.events.record_keys[kept], one.events.values[kept]]
            + [getattr(one.state.sessions, name) for name in one.state.sessions.__slots__]
            + [one.state.position, one.state.watermark_ms, one.state.max_event_time_ms]
            for one in (self, other)
        )
        return all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))


class PipelineMachine(RuleBasedStateMachine):
    """A log grows; the pipeline is fed, advanced, and replaced by one rebuilt from a commit point or a snapshot."""

    def __init__(self) -> None:
        super().__init__()
        Kernels.loaded = False
        self.pipeline = self.fresh(CommitPoint(0))
        self.oracle = Oracle(CONFIG)
        self.emitted = Emitted()
        self.log: list[Source] = []
        self.advances: list[tuple[int, int]] = []
        self.commits = [CommitPoint(0)]
        self.snapshots: list[Snapshot] = []
        self.clock_ms = 100
        self.next_offset = 0

    @staticmethod
    def fresh(start: CommitPoint) -> PartitionPipeline:
        return PartitionPipeline(PipelineConfig.of(CONFIG), partition=3, start=start)

    @rule()
    def load_kernels(self) -> None:
        """From the next block on, this pipeline and all that are made."""
        Kernels.loaded = True

    @rule(data=st.data(), count=st.integers(1, 8))
    def records(self, data: st.DataObject, count: int) -> None:
        sources = [self.draw_record(data) for _ in range(count)]
        for source in sources:
            self.oracle.record(
                source.offset, append_ms=APPEND_MS, key=source.key, value=source.value, outcome=source.outcome
            )
        self.oracle.close_due()
        self.log += sources
        self.feed(self.pipeline, sources, cuts=data.draw(st.sets(st.integers(1, 8))), into=self.emitted)

    @rule(step_ms=st.integers(-5, 25))
    def idle(self, step_ms: int) -> None:
        self.idle_by(step_ms)

    def idle_by(self, step_ms: int) -> None:
        watermark_ms = max(self.pipeline.watermark_ms, 0) + step_ms
        self.advances.append((self.pipeline.position, watermark_ms))
        self.oracle.advance(watermark_ms)
        self.emitted.add(self.pipeline.advance(watermark_ms))

    @rule()
    def commit(self) -> None:
        assert self.pipeline.flush().counts == PipelineCounts()
        self.commits.append(self.pipeline.commit_point())

    @precondition(lambda self: self.log)
    @rule(data=st.data())
    def rebuild(self, data: st.DataObject) -> None:
        start = data.draw(st.sampled_from([*self.commits[-3:], self.pipeline.commit_point()]))
        self.rebuild_from(start, cuts=data.draw(st.sets(st.integers(0, len(self.log)), max_size=5)))

    def rebuild_from(self, start: CommitPoint, *, cuts: set[int]) -> None:
        self.replay(self.fresh(start), cuts=cuts)

    @rule()
    def snapshot(self) -> None:
        self.snapshots.append(Snapshot.of(self.pipeline))

    @precondition(lambda self: self.snapshots)
    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        self.restore_from(data.draw(st.sampled_from(self.snapshots[-3:])), cuts=data.draw(st.sets(st.integers(0, 99))))

    def restore_from(self, snapshot: Snapshot, *, cuts: set[int]) -> None:
        restored = PartitionPipeline.restore(
            PipelineConfig.of(CONFIG), partition=3, state=snapshot.state, events=snapshot.events
        )
        assert Snapshot.of(restored).same_as(snapshot)
        self.replay(restored, cuts=cuts)

    def replay(self, rebuilt: PartitionPipeline, *, cuts: set[int]) -> None:
        """The log and the advances from where it stands to where the pipeline is; then it takes over."""
        advances = [one for one in self.advances if one[0] >= rebuilt.position]
        stops = [*advances, (self.pipeline.position, NO_WATERMARK)]
        for position, watermark_ms in stops:
            due = [s for s in self.log if rebuilt.position <= s.offset < position]
            self.feed(rebuilt, due, cuts=cuts, into=Emitted())
            rebuilt.advance(watermark_ms)
        for name in ("position", "watermark_ms", "open_sessions", "open_events"):
            assert getattr(rebuilt, name) == getattr(self.pipeline, name), name
        assert rebuilt.commit_point() == self.pipeline.commit_point()
        assert rebuilt.close_all_watermark_ms() == self.pipeline.close_all_watermark_ms()
        self.pipeline = rebuilt

    @rule()
    def close_all(self) -> None:
        watermark_ms = self.pipeline.close_all_watermark_ms()
        if self.pipeline.open_sessions:
            assert watermark_ms > self.pipeline.watermark_ms
            before = self.pipeline.open_sessions
            self.advances.append((self.pipeline.position, watermark_ms - 1))
            self.oracle.advance(watermark_ms - 1)
            self.emitted.add(self.pipeline.advance(watermark_ms - 1))
            assert 0 < self.pipeline.open_sessions <= before
        self.advances.append((self.pipeline.position, watermark_ms))
        self.oracle.advance(watermark_ms)
        self.emitted.add(self.pipeline.advance(watermark_ms))
        assert self.pipeline.open_sessions == self.pipeline.open_events == 0

    @invariant()
    def same_as_oracle(self) -> None:
        expected = self.oracle.emitted
        assert self.emitted.samples == expected.samples
        assert [self.with_bytes(late) for late in self.emitted.late] == expected.late
        assert self.emitted.quarantined == expected.quarantined
        assert self.emitted.duplicates == expected.duplicates
        assert self.emitted.sessions_closed == expected.sessions_closed
        assert self.pipeline.watermark_ms == self.oracle.watermark_ms
        assert self.pipeline.open_sessions == len(self.oracle.open)
        assert self.pipeline.open_events == sum(len(s.kept) for s in self.oracle.open)
        point, offset = self.pipeline.commit_point(), self.oracle.commit_offset()
        if self.log:
            assert self.pipeline.position == self.oracle.position
            assert point == CommitPoint(offset, self.oracle.before.get(offset, self.oracle.watermark_ms))

    def with_bytes(self, late: tuple[Any, ...]) -> tuple[Any, ...]:
        """As the worker makes it: what a snapshot did not keep is read again from the log."""
        offset, *told, _, value = late
        if value is not None:
            return late
        [source] = [source for source in self.log if source.offset == offset]
        assert source.outcome["type"] == "impression"
        return (offset, *told, source.key, source.value)

    def draw_record(self, data: st.DataObject) -> Source:
        offset = self.next_offset
        self.next_offset += data.draw(st.sampled_from([1, 1, 1, 2]))
        self.clock_ms += data.draw(st.sampled_from([0, 0, 1, 3, 9, 10]))
        body = {
            "event_id": data.draw(st.one_of(st.just(f"own {offset}"), st.just(f"own {offset}"), IDS)),
            "user_id": data.draw(st.sampled_from([5, "5", "someone else"])),
            "event_time_ms": max(0, self.clock_ms - data.draw(st.sampled_from([0, 0, 1, 5, 9, 10, 12, 17, 30]))),
            "type": data.draw(TYPES),
            "item_id": data.draw(st.sampled_from([1, "1", "x"])),
            **data.draw(OPTIONAL),
        }
        if body["type"] != "impression" and data.draw(st.booleans()):
            body["impression_id"] = data.draw(st.sampled_from([f"own {max(0, offset - 1)}", f"own {offset - 2}", 1]))
            if data.draw(st.booleans()):
                body["item_id"] = None
        key = data.draw(st.sampled_from([None, b"key"]))
        if data.draw(st.integers(0, 5)) == 0:
            spoil, reason = data.draw(SPOILED)
            return Source(offset, key, spoil(body), reason)
        return Source(offset, key, json.dumps(body).encode(), body)

    @staticmethod
    def feed(pipeline: PartitionPipeline, sources: list[Source], *, cuts: set[int], into: Emitted) -> None:
        edges = [0, *sorted(cut for cut in cuts if 0 < cut < len(sources)), len(sources)]
        for start, end in pairwise(edges):
            into.add(pipeline.feed(block_of(sources[start:end])))


def block_of(sources: list[Source]) -> RecordBlock:
    return RecordBlock(
        partition=3,
        offsets=np.array([source.offset for source in sources], np.int64),
        append_times_ms=np.full(len(sources), APPEND_MS, np.int64),
        keys=[source.key for source in sources],
        values=[source.value for source in sources],
    )
