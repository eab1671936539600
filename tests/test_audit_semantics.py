"""The audit's own sessions and the pipeline's, on the same random records: two implementations, one answer."""

import json
import random
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from recd.audit.partition import PartitionAudit, PartitionView
from recd.audit.sessions import Rules
from recd.audit.topics import Step
from stream.config import Config, SessionConfig, load
from stream.kafka import Message
from stream.pipeline import PartitionPipeline, PipelineConfig
from stream.records import NO_WATERMARK, CommitPoint, PipelineOutput, RecordBlock

APPEND_MS = 10_000
SEEDS = 300
CONFIGS = {
    "plain": (),
    "sampled": ("session.keep_negatives=0.4",),
    "by item": ("events.fields.impression_id=null", "events.fields.event_id=null"),
    "nested, seconds": ("events.time_unit=s", "events.fields.key=user.id", "events.fields.item=user.item"),
}


def _config(name: str) -> Config:
    features = (
        "[{name: price, group: item, type: float}, {name: tags, group: item, type: 'list[string]'},"
        " {name: place, group: item, type: 'list[float]', length: 2},"
        " {name: country, group: user, type: string, required: true}]"
    )
    session = ("gap_ms=40", "out_of_orderness_ms=15", "max_duration_ms=300", "max_events=5", "max_ahead_ms=1000")
    labels = "labels=[{name: click, engagements: [click], score_field: p}, {name: any, engagements: [click, buy]}]"
    overrides = ("events.engagements=[click, buy]", f"features={features}", labels, "events.max_bytes=600")
    return load(None, overrides=(*overrides, *(f"session.{s}" for s in session), *CONFIGS[name]))


def _event(rng: random.Random, time_ms: int, *, nested: bool) -> dict[str, Any]:
    """An event, nearly always a good one."""
    event: dict[str, Any] = {
        "event_id": rng.randint(0, 60),
        "event_time_ms": time_ms / 1000 if nested else time_ms,
        "type": rng.choice(["impression", "impression", "click", "buy"]),
        "country": "NL",
    }
    where = event.setdefault("user", {}) if nested else event
    where["id" if nested else "user_id"] = rng.choice([1, 2, "1", "zz"])
    where["item" if nested else "item_id"] = rng.choice([1, 2, "two"])
    if rng.random() < 0.5:
        event["impression_id"] = rng.randint(0, 60)
    for _ in range(rng.choice([0, 0, 0, 0, 0, 1, 2])):
        name = rng.choice([*event, "price", "tags", "place", "p", "else"])
        event[name] = rng.choice(VALUES)
    return event


VALUES: list[Any] = [
    None, True, 0, -1, 1.0, 1.5, 1e39, 2**63, -(2**63), 2**70, 10**20, "", "x", "ü", [], ["a", 1], [1.0, 2], ["t"], {},
    {"id": 1, "item": 2}, {"id": None}, 99_999_999_999, 253_402_300_799_999, 253_402_300_800_000, "impression", "buy",
]  # fmt: skip
BROKEN = (b"", b"{", b"null", b"[]", b'"x"', b'{"a": NaN}', b"\xff", b'{"else": "\xff"}', b"[" * 700, b"x" * 601, None)


def _records(rng: random.Random, *, nested: bool) -> list[bytes | None]:
    records: list[bytes | None] = []
    time_ms = rng.randint(500, 900)
    for _ in range(rng.randint(0, 60)):
        time_ms = max(0, time_ms + rng.randint(-30, 35))
        event = json.dumps(_event(rng, time_ms, nested=nested)).encode()
        fault = rng.choice([None] * 30 + ["broken", "tail", "deep", "not utf-8", "again", "before"])
        if fault == "broken":
            records.append(rng.choice(BROKEN))
        elif fault == "tail":
            records.append(event + b" x")
        elif fault == "deep":
            records.append(event[:-1] + b', "else": ' + b"[" * 100 + b"]" * 100 + b"}")
        elif fault == "again":
            records.append(event[:-1] + b", " + _member(rng, event) + b"}")
        elif fault == "before":
            records.append(b"{" + _member(rng, event) + b", " + event[1:])
        elif fault == "not utf-8":
            records.append(event[:-1] + b', "else": "\xff"}')
        else:
            records.append(event)
    return records


def _member(rng: random.Random, event: bytes) -> bytes:
    """A name of the event once more, with any value or one that another name has."""
    found = json.loads(event)
    name = rng.choice(list(found))
    return json.dumps({name: rng.choice([*VALUES, *found.values()])}).encode()[1:-1]


def _advances(rng: random.Random, *, end: int) -> list[tuple[int, int]]:
    positions = sorted(rng.randint(0, end) for _ in range(rng.randint(0, 3)))
    watermarks = sorted(rng.randint(400, 1500) for _ in positions)
    return list(zip(positions, watermarks, strict=True))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_verdict_on_every_record(name: str) -> None:
    config = _config(name)
    for seed in range(SEEDS):
        rng = random.Random(seed)
        records = _records(rng, nested=name.startswith("nested"))
        _compare(config, records, _advances(rng, end=len(records)))


def _compare(config: Config, records: list[bytes | None], advances: list[tuple[int, int]]) -> None:
    _agree(_run_pipeline(config, records, advances), _run_audit(config, records, advances), num_records=len(records))


def _agree(found: Any, view: PartitionView, *, num_records: int) -> None:
    samples, late, quarantined, duplicates, sampled_out, pipeline = found
    assert len(view.expected.sampled_out) == sampled_out
    expected = sorted(view.expected.due)
    assert [(due.offset, due.time_ms, due.labels, pytest.approx(due.weight)) for due in expected] == samples
    assert {offset: gone.reason for offset, gone in view.expected.late.items()} == late
    assert view.quarantined.keys() == quarantined.keys()
    assert all(reason in view.quarantined[offset] for offset, reason in quarantined.items())
    assert view.expected.duplicates == duplicates
    still_open = view.expected.open_impressions + view.expected.open_engagements
    assert (still_open > 0) == (pipeline.open_sessions > 0)
    verdicts = (
        len(samples) + sampled_out + len(late) + len(quarantined) + duplicates + view.expected.joined + still_open
    )
    assert verdicts == view.records == num_records


def test_sessions_close_under_the_parameters_that_were_in_force() -> None:
    config = _config("plain")
    for seed in range(SEEDS):
        rng = random.Random(seed)
        records = _records(rng, nested=False)
        ends = sorted(rng.randint(0, len(records)) for _ in range(rng.randint(1, 3)))
        run = _ChangingRun(config)
        for end in ends:
            run.go_on(records, rng, end=end)
            run.change(rng)
        run.go_on(records, rng, end=len(records))
        view = _follow(config, records, run.steps, begin=0)
        _agree(_found(run.outputs, run.pipeline), view, num_records=len(records))


class _ChangingRun:
    """What a worker does where parameters change: an advance closes all, the next transaction has the new ones."""

    def __init__(self, config: Config) -> None:
        self._config = PipelineConfig.of(config)
        self.pipeline = PartitionPipeline(self._config, partition=0, start=CommitPoint(0))
        self.outputs: list[PipelineOutput] = []
        self.steps = [Step(0, NO_WATERMARK, 0, (), _rules(config))]

    def go_on(self, records: list[bytes | None], rng: random.Random, *, end: int) -> None:
        """Up to a position, in one to three transactions."""
        for position in sorted(rng.randint(self.pipeline.position, end) for _ in range(rng.randint(0, 2))):
            self._feed(records, position)
            self._commit(position)
        self._feed(records, end)
        self._commit(end)

    def change(self, rng: random.Random) -> None:
        """Close all, if anything is open, and take other parameters."""
        position = self.pipeline.position
        if self.pipeline.open_sessions:
            watermark_ms = self.pipeline.close_all_watermark_ms()
            self.outputs.append(self.pipeline.advance(watermark_ms))
            self._commit(position, (position, watermark_ms))
        self._config = replace(self._config, session=_other_session(rng, self._config.session))
        start = CommitPoint(position, self.pipeline.watermark_ms)
        self.pipeline = PartitionPipeline(self._config, partition=0, start=start)

    def _feed(self, records: list[bytes | None], position: int) -> None:
        self.outputs.append(self.pipeline.feed(_block(records, self.pipeline.position, position)))

    def _commit(self, position: int, *advances: tuple[int, int]) -> None:
        self.steps.append(Step(0, NO_WATERMARK, position, advances, _rules(self._config)))


def _other_session(rng: random.Random, session: SessionConfig) -> SessionConfig:
    """One to all of the parameters, changed."""
    choices = {
        "gap_ms": (15, 40, 100, 400),
        "out_of_orderness_ms": (0, 15, 60),
        "max_duration_ms": (60, 300, 1_000),
        "max_events": (1, 2, 5, 100),
        "max_ahead_ms": (1_000, 10**11),
        "keep_negatives": (0.2, 0.7, 1.0),
    }
    names = rng.sample(sorted(choices), rng.randint(1, len(choices)))
    return msgspec.structs.replace(session, **{name: rng.choice(choices[name]) for name in names})


def test_an_audit_from_a_commit_point_says_the_same_of_what_follows() -> None:
    config = _config("plain")
    for seed in range(SEEDS):
        rng = random.Random(seed)
        records = _records(rng, nested=False)
        _compare_from(config, records, _advances(rng, end=len(records)), cut=rng.randint(0, len(records)))


def _compare_from(config: Config, records: list[bytes | None], advances: list[tuple[int, int]], *, cut: int) -> None:
    pipeline = PartitionPipeline(PipelineConfig.of(config), partition=0, start=CommitPoint(0))
    done = 0
    for position, watermark_ms in [a for a in advances if a[0] <= cut]:
        pipeline.feed(_block(records, done, position))
        pipeline.advance(watermark_ms)
        done = position
    pipeline.feed(_block(records, done, cut))
    point = pipeline.commit_point()
    rules = _rules(config)
    early = tuple(a for a in advances if a[0] <= cut)
    steps = [
        Step(0, NO_WATERMARK, 0, (), rules),
        Step(point.offset, point.watermark_ms, cut, early, rules),
        Step(len(records), 0, len(records), tuple(a for a in advances if a[0] > cut), rules),
    ]
    whole = _run_audit(config, records, advances)
    part = _follow(config, records, steps, begin=max(1, point.offset))
    if point.offset == 0 or (steps[1].watermark_ms == NO_WATERMARK and cut > 0):
        return
    later = {due.offset: due for due in whole.expected.due}
    for due in part.expected.due:
        assert due == later[due.offset]
    already = {offset for offset, *_ in _run_pipeline(config, records[:cut], list(early))[0]}
    missing = later.keys() - already - {due.offset for due in part.expected.due}
    assert not missing
    assert not already & {due.offset for due in part.expected.due}


def _rules(config: Config | PipelineConfig) -> Rules:
    return Rules(*(getattr(config.session, name) for name in Rules._fields))


def _block(records: list[bytes | None], start: int, stop: int) -> RecordBlock:
    count = max(0, stop - start)
    return RecordBlock(
        partition=0,
        offsets=np.arange(start, start + count),
        append_times_ms=np.full(count, APPEND_MS),
        keys=[None] * count,
        values=records[start : start + count],
    )


def _run_pipeline(config: Config, records: list[bytes | None], advances: list[tuple[int, int]]) -> Any:
    pipeline = PartitionPipeline(PipelineConfig.of(config), partition=0, start=CommitPoint(0))
    outputs, done = [], 0
    for position, watermark_ms in advances:
        outputs.append(pipeline.feed(_block(records, done, position)))
        outputs.append(pipeline.advance(watermark_ms))
        done = max(done, position)
    outputs.append(pipeline.feed(_block(records, done, len(records))))
    return _found(outputs, pipeline)


def _found(outputs: list[PipelineOutput], pipeline: PartitionPipeline) -> Any:
    samples = []
    for block in (output.samples for output in outputs if output.samples is not None):
        labels = [tuple(row) for row in block.labels.tolist()]
        columns = (block.offsets.tolist(), block.event_times_ms.tolist(), labels, block.weights.tolist())
        samples += list(zip(*columns, strict=True))
    late = {r.offset: r.reason for output in outputs for r in output.late}
    quarantined = {r.offset: r.reason for output in outputs for r in output.quarantined}
    duplicates = sum(output.counts.duplicates for output in outputs)
    return samples, late, quarantined, duplicates, sum(output.counts.sampled_out for output in outputs), pipeline


def _run_audit(config: Config, records: list[bytes | None], advances: list[tuple[int, int]]) -> Any:
    rules = _rules(config)
    steps = [Step(0, NO_WATERMARK, 0, (), rules), Step(0, NO_WATERMARK, len(records), tuple(advances), rules)]
    return _follow(config, records, steps, begin=0)


def _follow(config: Config, records: list[bytes | None], steps: list[Step], *, begin: int) -> Any:
    audit = PartitionAudit(config, partition=0, begin=begin, before=steps, after=steps)
    for offset, value in enumerate(records[begin:], begin):
        audit.add(Message("interactions", 0, offset, APPEND_MS, None, value))
    return audit.finish()
