"""The pipeline against the oracle: any disorder, any cut of the blocks, stopped and rebuilt anywhere."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dedup_cache import MemoryStore, decode
from stream import event_store
from stream.builder import BatchBuilder, BatchLimits
from stream.column_events import ColumnEvents
from stream.columns import batch_schema
from stream.compiled import warm
from stream.config import Config, SessionConfig
from stream.indexer import Indexer, ReferencePolicy
from stream.open_events import ListedEvents, OpenEvents
from stream.pipeline import BlockOrderError, PartitionPipeline, PipelineConfig
from stream.records import NO_WATERMARK, CommitPoint, PipelineCounts, RecordBlock
from stream.transforms import Transforms
from tests.stream.any_bytes import BYTES, NOW_MS
from tests.stream.oracle import Oracle
from tests.stream.pipeline_machine import APPEND_MS, CONFIG, Kernels, PipelineMachine, Source, block_of

TestPipelineMachine = PipelineMachine.TestCase
TestPipelineMachine.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "ready", lambda: Kernels.loaded)


def random_source(rng: random.Random, *, offset: int, clock_ms: int) -> Source:
    """A record near the clock, most of them of one user, with times on and beside the limits of CONFIG."""
    body: dict[str, Any] = {
        "event_id": f"own {offset}" if rng.random() < 0.7 else f"own {offset - rng.randrange(4)}",
        "user_id": rng.choice([5, "5", "5", "other"]),
        "event_time_ms": clock_ms - rng.choice([0, 0, 0, 1, 5, 6, 9, 10, 11, 15, 16, 17]),
        "type": rng.choice(["impression", "impression", "impression", "click", "buy"]),
        "item_id": rng.choice([1, "1", "x"]),
        "tags": rng.sample("abcde", rng.randrange(5)),
        "number": rng.choice([None, offset]),
        "p": rng.random(),
    }
    if body["type"] != "impression" and rng.random() < 0.5:
        body |= {"impression_id": f"own {offset - rng.randrange(6)}", "item_id": rng.choice([None, 1])}
    if rng.random() < 0.05:
        return Source(offset, None, json.dumps(body | {"type": "other"}).encode(), "type")
    return Source(offset, None, json.dumps(body).encode(), body)


@pytest.mark.parametrize("seed", range(100))
def test_long_random_logs_cut_advanced_and_rebuilt_at_random(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if seed % 2:
        monkeypatch.setattr(event_store, "SLACK", 0)
    rng = random.Random(seed)
    machine, clock_ms = PipelineMachine(), 1_000
    kernels_from = (0, 125, 250)[seed % 3]
    for offset in range(250):
        Kernels.loaded = offset >= kernels_from
        clock_ms += rng.choice([0, 0, 0, 1, 1, 2, 4, 9, 10]) * rng.choice([1, 1, 1, 3])
        machine.log.append(random_source(rng, offset=offset, clock_ms=clock_ms))
        source = machine.log[-1]
        machine.oracle.record(offset, append_ms=APPEND_MS, key=source.key, value=source.value, outcome=source.outcome)
        if rng.random() < 0.25:
            due = machine.log[machine.pipeline.position :]
            machine.feed(machine.pipeline, due, cuts={rng.randrange(9)}, into=machine.emitted)
            machine.commits.append(machine.pipeline.commit_point())
            if rng.random() < 0.2:
                machine.idle_by(rng.randrange(12))
            if rng.random() < 0.2:
                machine.snapshot()
            if machine.snapshots and rng.random() < 0.2:
                machine.restore_from(rng.choice(machine.snapshots[-4:]), cuts={rng.randrange(250)})
            if rng.random() < 0.2:
                cuts = {rng.randrange(250) for _ in range(4)}
                machine.rebuild_from(rng.choice(machine.commits[-4:]), cuts=cuts)
    machine.feed(machine.pipeline, machine.log[machine.pipeline.position :], cuts=set(), into=machine.emitted)
    machine.close_all()
    machine.same_as_oracle()
    if seed % 2:
        assert nothing_held(machine.pipeline._open)


def nothing_held(held: OpenEvents) -> bool:
    if isinstance(held, ListedEvents):
        return held._store._held.used.shape == (0,)
    assert isinstance(held, ColumnEvents)
    return held._num_free_slots == held._free_slots.shape[0] and held._log._held_words == 0


@settings(deadline=None)
@given(st.lists(st.tuples(BYTES, st.sampled_from([NOW_MS, 0, -1, 253_402_300_799_999])), max_size=8), st.integers(0, 8))
def test_no_bytes_stop_the_partition(records: list[tuple[bytes | None, int]], cut: int) -> None:
    """Neither the pipeline nor the making of batches."""
    session = SessionConfig(gap_ms=1, max_duration_ms=2, max_events=1)
    config = Config(events=CONFIG.events, features=CONFIG.features, labels=CONFIG.labels, session=session)
    pipeline = PartitionPipeline(PipelineConfig.of(config), partition=3, start=CommitPoint(0))
    schema, emitted = batch_schema(config), []
    indexer = Indexer(schema, store=MemoryStore(), policy=ReferencePolicy(32, 1 << 20))
    builder = BatchBuilder(
        schema,
        topic="t",
        partition=3,
        seq=0,
        limits=BatchLimits(max_samples=3, max_bytes=1 << 20),
        indexer=indexer,
        transforms=Transforms(config.features),
    )
    counts = PipelineCounts()
    for part in (range(cut), range(cut, len(records))):
        offsets = [i for i in part if i < len(records)]
        block = RecordBlock(
            3,
            np.array(offsets, np.int64),
            np.array([records[i][1] for i in offsets], np.int64),
            [None] * len(offsets),
            [records[i][0] for i in offsets],
        )
        emitted.append(pipeline.feed(block))
    emitted.append(pipeline.advance(pipeline.close_all_watermark_ms()))
    batches = [b for one in emitted if one.samples for b in builder.add(one.samples, now_ms=NOW_MS).batches]
    batches += builder.flush(now_ms=NOW_MS)
    counts = sum((one.counts for one in emitted), counts)
    assert sum(decode(b.payload, schema).labels.shape[0] for b in batches) == counts.samples
    assert counts.events == len(records) == counts.impressions + counts.engagements + counts.quarantined
    assert counts.impressions + counts.engagements >= counts.samples + counts.late


def test_the_random_logs_reach_every_rule() -> None:
    oracle, rng, clock_ms = Oracle(CONFIG), random.Random(0), 1_000
    for offset in range(1_000):
        clock_ms += rng.choice([0, 0, 0, 1, 1, 2, 4, 9, 10]) * rng.choice([1, 1, 1, 3])
        source = random_source(rng, offset=offset, clock_ms=clock_ms)
        oracle.record(offset, append_ms=APPEND_MS, key=None, value=source.value, outcome=source.outcome)
    emitted = oracle.emitted
    assert {one[2] for one in emitted.late} == {"late", "full", "unmatched"}
    assert min(emitted.duplicates, emitted.sessions_closed, len(emitted.quarantined)) > 10
    assert {tuple(sample["labels"]) for sample in emitted.samples} == {(0.0, 0.0), (1.0, 0.0), (1.0, 1.0)}
    assert {len(sample["groups"]["session"]["seen"]) for sample in emitted.samples} == {0, 1, 2}


def test_counts_add_up() -> None:
    machine = PipelineMachine()
    bodies = [
        {"event_id": i, "user_id": 1, "event_time_ms": 100 + i, "type": "impression", "item_id": i} for i in range(3)
    ]
    bodies += [bodies[0], {"event_id": 9, "user_id": 1, "event_time_ms": 103, "type": "click", "item_id": 1}]
    sources = [Source(i, None, json.dumps(body).encode(), body) for i, body in enumerate(bodies)]
    output = machine.pipeline.feed(block_of([*sources, Source(5, None, b"{", "malformed")]))
    output_counts = output.counts + machine.pipeline.advance(machine.pipeline.close_all_watermark_ms()).counts
    assert output_counts == PipelineCounts(
        events=6, impressions=4, engagements=1, duplicates=1, sessions_closed=1, samples=3, late=1, quarantined=1
    )


def test_a_block_that_does_not_continue_the_partition_is_refused_and_changes_nothing() -> None:
    pipeline = PipelineMachine.fresh(CommitPoint(5))
    body = {"event_id": 1, "user_id": 1, "event_time_ms": 100, "type": "impression", "item_id": 1}
    sources = [Source(i, None, json.dumps(body).encode(), body) for i in (4, 5, 5)]
    for wrong in (sources[:1], sources[1:]):
        with pytest.raises(BlockOrderError, match="partition 3@5 was given offsets"):
            pipeline.feed(block_of(wrong))
    assert (pipeline.position, pipeline.open_sessions, pipeline.watermark_ms) == (5, 0, NO_WATERMARK)
    pipeline.feed(block_of(sources[1:2]))
    assert (pipeline.position, pipeline.max_event_time_ms) == (6, 100)
