"""The audit on topics made by hand on a real broker: each thing that is wrong is found, named and counted."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from dedup_cache import FORMAT_VERSION, Batch, BatchMeta, BatchSchema, encode, sample_id
from recd.audit import AuditReport, audit, format_report
from recd.embedded import EmbeddedKafka
from stream.config import Config, ConfigError, load
from stream.kafka import TopicMissing, Writer, create_topic, topic_id

T = 1_700_000_000_000
SCHEMA = BatchSchema((), ("click",))
NO_WATERMARK = -(1 << 62)


@dataclass
class Row:
    """One sample to be written."""

    offset: int
    time_ms: int
    click: float = 0.0


@dataclass
class Scene:
    """What stands in the topics; a test spoils it before it is written.

    Partition 0: a session of two impressions and a click that has closed, a repeat, a broken record, a click on
    nothing, two open sessions and a late impression. Partition 1: a session closed by a journalled advance.
    """

    config: Config
    events: dict[int, list[bytes]] = field(default_factory=dict)
    batches: list[tuple[int, int, list[Row]]] = field(default_factory=list)
    """(partition of batches, source partition, samples)"""
    late: list[tuple[int, int, str]] = field(default_factory=list)
    quarantine: list[tuple[int, int, str]] = field(default_factory=list)
    journal: list[dict[str, Any]] = field(default_factory=list)
    cut: dict[int, tuple[int, list[tuple[int, int]]]] | None = None
    """By partition of batches: (position, samples trained as (source partition, offset))"""
    raw_batches: list[bytes] = field(default_factory=list)

    def fill(self) -> None:
        shown, clicked = {"type": "impression"}, {"type": "click"}
        self.events = {
            0: [
                _event("e0", "a", T, item=1, **shown),
                _event("e1", "a", T, item=2, **shown),
                _event("e2", "a", T + 500, item=1, impression_id="e0", **clicked),
                _event("e1", "a", T, item=2, **shown),
                b'{"event_id": "e4", "user',
                _event("e5", "a", T + 600, item=9, impression_id="nope", **clicked),
                _event("e6", "b", T + 20_000, item=1, **shown),
                _event("e7", "a", T + 100, item=3, **shown),
                _event("e8", "c", T + 20_100, item=2, **shown),
            ],
            1: [_event("f0", "d", T, item=1, **shown), _event("f1", "d", T + 1, item=1, **clicked)],
        }
        self.batches = [(0, 0, [Row(0, T, 1.0), Row(1, T)]), (1, 1, [Row(0, T, 1.0)])]
        self.late = [(0, 5, "unmatched"), (0, 7, "late")]
        self.quarantine = [(0, 4, "malformed")]
        self.journal = [self.step(0, 0), self.step(1, 0), self.step(0, 9), self.step(1, 2, advance=(2, T + 9_000))]

    def step(self, partition: int, resume: int, *, advance: tuple[int, int] | None = None) -> dict[str, Any]:
        names = ("gap_ms", "out_of_orderness_ms", "max_duration_ms", "max_events", "max_ahead_ms")
        session = {name: getattr(self.config.session, name) for name in names}
        return {
            "version": 1,
            "topic": self.config.topics.interactions,
            "topic_id": topic_id(self.config.kafka, self.config.topics.interactions),
            "partition": partition,
            "partitions": 2,
            "commit": 1,
            "offset": 0,
            "watermark_ms": NO_WATERMARK,
            "resume": resume,
            "seq": 0,
            "advances": [advance] if advance else [],
            "parameters": {"session": session, "schema": "x"},
            "note": "start" if resume == 0 else "",
        }

    def write(self) -> None:
        """Into the topics and the checkpoint's folder."""
        topics = self.config.topics
        with Writer(self.config.kafka) as writer:
            for partition, values in self.events.items():
                for value in values:
                    writer.send(topics.interactions, value, partition=partition)
            for partition, source, rows in self.batches:
                writer.send(topics.batches, self.payload(source, rows), partition=partition)
            for payload in self.raw_batches:
                writer.send(topics.batches, payload, partition=0)
            for topic, rejects in ((topics.late, self.late), (topics.quarantine, self.quarantine)):
                for partition, offset, reason in rejects:
                    source_place = f"{topics.interactions}/{partition}/{offset}".encode()
                    headers = [("recd.reason", reason.encode()), ("recd.source", source_place)]
                    writer.send(topic, b"", partition=partition, headers=headers)
            for step in self.journal:
                partition = step["partition"] % 2
                writer.send(topics.journal, json.dumps(step).encode(), key=b"0", partition=partition)
            writer.flush(10_000)
        if self.cut is not None:
            self.write_cut()

    def payload(self, source: int, rows: list[Row]) -> bytes:
        offsets, times = np.array([r.offset for r in rows]), np.array([r.time_ms for r in rows])
        count, topic = len(rows), self.config.topics.interactions
        meta = BatchMeta(
            FORMAT_VERSION, SCHEMA.digest(), "", topic, source, int(offsets.min()), int(offsets.max()), 0, T, T, T
        )
        batch = Batch(
            labels=np.array([[r.click] for r in rows], np.float32),
            weights=np.ones(count, np.float32),
            scores=np.full((count, 1), np.nan, np.float32),
            sample_ids=sample_id(source, offsets),
            event_times_ms=times,
            append_times_ms=times,
            groups={},
            meta=meta,
        )
        return encode(batch, SCHEMA)

    def write_cut(self) -> None:
        folder = Path(self.config.trainer.checkpoint_url)
        (folder / "cut-0000000007").mkdir(parents=True)
        (folder / "current.json").write_text('{"cut": "cut-0000000007"}')
        partitions = {}
        for partition, (position, trained) in (self.cut or {}).items():
            total = sum(int(sample_id(source, np.array([offset]))[0]) for source, offset in trained)
            partitions[str(partition)] = {"position": position, "samples": len(trained), "id_sum": str(total % 2**64)}
        cut = {"format": 1, "step": 7, "topic": self.config.topics.batches, "partitions": partitions}
        (folder / "cut-0000000007" / "cut.json").write_text(json.dumps(cut))


def _event(event_id: str, user: str, time_ms: int, *, item: int, **more: str) -> bytes:
    event = {"event_id": event_id, "user_id": user, "event_time_ms": time_ms, "item_id": item, **more}
    return json.dumps(event).encode()


@pytest.fixture
def empty(kafka: EmbeddedKafka, topic_prefix: str, tmp_path: Path) -> Scene:
    """Topics with nothing in them."""
    names = ("interactions", "batches", "values", "late", "quarantine", "journal", "snapshots", "control")
    session = ("session.gap_ms=4000", "session.out_of_orderness_ms=500")
    topics = [f"topics.{name}={topic_prefix}{name}" for name in names]
    url = f"trainer.checkpoint_url={tmp_path / 'checkpoints'}"
    config = load(None, overrides=(*topics, *session, url, f"kafka.bootstrap={kafka.bootstrap}"))
    for name in ("interactions", "batches", "late", "quarantine", "journal"):
        create_topic(config.kafka, getattr(config.topics, name), partitions=2)
    return Scene(config)


@pytest.fixture
def scene(empty: Scene) -> Scene:
    """Everything as it should be."""
    empty.fill()
    return empty


def _audited(scene: Scene) -> AuditReport:
    scene.write()
    return audit(scene.config)


def test_all_is_well(scene: Scene) -> None:
    scene.cut = {0: (1, [(0, 0), (0, 1)]), 1: (1, [(1, 0)])}
    report = _audited(scene)
    assert report.offences == {}
    assert report.ok
    assert (report.lost, report.duplicated) == (0, 0)
    assert (report.events, report.impressions, report.engagements) == (11, 7, 3)
    assert (report.due, report.samples, report.in_batches_once) == (3, 3, 3)
    assert (report.joined, report.duplicates) == (2, 1)
    assert (report.open_impressions, report.open_engagements) == (2, 0)
    assert (report.late, report.quarantined) == ({"late": 1, "unmatched": 1}, {"malformed": 1})
    assert (report.trained_once, report.trained_twice, report.trained_never, report.waiting) == (3, 0, 0, 0)
    assert "clean: 0 lost, 0 duplicated" in format_report(report)
    assert "NOT CLEAN" not in format_report(report)
    found = json.loads(json.dumps(report.to_dict()))
    assert found["ok"] is True
    assert found["late_total"] == 2


def test_empty_topics_without_a_cut(empty: Scene) -> None:
    report = _audited(empty)
    assert report.ok
    assert report.events == report.samples == 0
    assert report.cut is None


def test_what_no_worker_has_read_is_neither_lost_nor_late(scene: Scene) -> None:
    scene.batches, scene.late, scene.quarantine, scene.journal = [], [], [], []
    report = _audited(scene)
    assert report.ok
    assert (report.events, report.unread) == (11, 11)


def test_without_a_cut_every_sample_waits(scene: Scene) -> None:
    report = _audited(scene)
    assert report.ok
    assert (report.cut, report.trained_once, report.waiting) == (None, 0, 3)


def _miss_sample(scene: Scene) -> None:
    scene.batches[0][2].pop()


def _double_sample(scene: Scene) -> None:
    scene.batches.append((0, 0, [Row(1, T)]))


def _mislabel(scene: Scene) -> None:
    scene.batches[0][2][1].click = 1.0


def _mistime(scene: Scene) -> None:
    scene.batches[0][2][1].time_ms += 1


def _swap(scene: Scene) -> None:
    scene.batches[0][2].reverse()


def _drop_late(scene: Scene) -> None:
    scene.late.pop()


def _drop_unmatched(scene: Scene) -> None:
    scene.late.pop(0)


def _double_late(scene: Scene) -> None:
    scene.late.append((0, 7, "late"))


def _drop_quarantine(scene: Scene) -> None:
    scene.quarantine.clear()


def _other_reason(scene: Scene) -> None:
    scene.quarantine[0] = (0, 4, "too_large")


def _emit_open(scene: Scene) -> None:
    scene.batches.append((0, 0, [Row(6, T + 20_000)]))


def _emit_late(scene: Scene) -> None:
    scene.batches.append((0, 0, [Row(7, T + 100)]))


def _reject_good(scene: Scene) -> None:
    scene.late.append((0, 0, "late"))


def _emit_stranger(scene: Scene) -> None:
    scene.batches.append((1, 5, [Row(0, T)]))


def _misplace_batch(scene: Scene) -> None:
    scene.batches[1] = (0, 1, scene.batches[1][2])


def _damage_batch(scene: Scene) -> None:
    payload = bytearray(scene.payload(0, [Row(6, T + 20_000)]))
    payload[-1] ^= 1
    scene.raw_batches.append(bytes(payload))


def _damage_journal(scene: Scene) -> None:
    scene.journal.append(scene.step(0, 9) | {"resume": "nine"})


SPOILED: dict[str, tuple[Callable[[Scene], None], str, int, int, str, str | None]] = {
    "missing": (_miss_sample, "never_in_batches", 1, 0, "interactions[0]@1", "e1"),
    "doubled": (_double_sample, "twice_in_batches", 0, 1, "interactions[0]@1", "e1"),
    "mislabelled": (_mislabel, "wrong_label", 0, 0, "interactions[0]@1", "e1"),
    "mistimed": (_mistime, "wrong_time", 0, 0, "interactions[0]@1", "e1"),
    "out of order": (_swap, "wrong_order", 0, 0, "interactions[0]@0", "e0"),
    "late lost": (_drop_late, "missing_late", 1, 0, "interactions[0]@7", "e7"),
    "unmatched lost": (_drop_unmatched, "missing_late", 1, 0, "interactions[0]@5", "e5"),
    "late twice": (_double_late, "twice_rejected", 0, 1, "interactions[0]@7", "e7"),
    "quarantine lost": (_drop_quarantine, "missing_quarantine", 1, 0, "interactions[0]@4", None),
    "other reason": (_other_reason, "wrong_reason", 0, 0, "interactions[0]@4", None),
    "open emitted": (_emit_open, "unfounded", 0, 0, "interactions[0]@6", "e6"),
    "late emitted": (_emit_late, "unfounded", 0, 0, "interactions[0]@7", "e7"),
    "good one late": (_reject_good, "unfounded_reject", 0, 0, "late[0]@2", None),
    "no such partition": (_emit_stranger, "unfounded", 0, 0, "interactions[5]@0", None),
    "wrong partition": (_misplace_batch, "wrong_partition", 0, 0, "batches[0]@1", None),
    "damaged batch": (_damage_batch, "unreadable_batch", 0, 0, "batches[0]@1", None),
    "damaged journal": (_damage_journal, "unreadable_journal", 0, 0, "journal[0]@2", None),
}


@pytest.mark.parametrize("name", SPOILED)
def test_each_offence_is_found_and_named(scene: Scene, topic_prefix: str, name: str) -> None:
    spoil, kind, lost, duplicated, place, event_id = SPOILED[name]
    spoil(scene)
    report = _audited(scene)
    assert report.offences == {kind: 1}
    assert not report.ok
    assert (report.lost, report.duplicated) == (lost, duplicated)
    (offender,) = report.offenders[kind]
    assert (offender.place, offender.event_id) == (topic_prefix + place, event_id)
    text = format_report(report)
    assert "NOT CLEAN" in text
    assert topic_prefix + place in text


@pytest.mark.parametrize(
    ("cut", "kind", "count", "lost", "duplicated"),
    [
        ({0: (1, [(0, 0), (0, 2)]), 1: (1, [(1, 0)])}, "wrong_sum", 1, 0, 0),
        ({0: (1, [(0, 0)]), 1: (1, [(1, 0)])}, "trained_never", 1, 1, 0),
        ({0: (1, [(0, 0), (0, 1), (0, 0), (0, 1)]), 1: (1, [(1, 0)])}, "trained_twice", 2, 0, 2),
        ({0: (0, [(0, 0), (0, 1)])}, "trained_twice", 2, 0, 2),
        ({0: (1, [])}, "trained_never", 2, 2, 0),
    ],
)
def test_a_cut_that_does_not_add_up(
    scene: Scene, topic_prefix: str, cut: Any, kind: str, count: int, lost: int, duplicated: int
) -> None:
    scene.cut = cut
    report = _audited(scene)
    assert report.offences == {kind: count}
    assert (report.lost, report.duplicated) == (lost, duplicated)
    assert report.offenders[kind][0].place == f"{topic_prefix}batches[0]@{cut[0][0]}"


def test_samples_behind_the_cut_wait(scene: Scene) -> None:
    scene.cut = {0: (0, []), 1: (1, [(1, 0)])}
    report = _audited(scene)
    assert report.ok
    assert (report.trained_once, report.waiting) == (1, 2)


@pytest.mark.parametrize("text", ["{", "[]", '{"cut": "gone"}', "{}"])
def test_a_cut_that_cannot_be_read(scene: Scene, text: str) -> None:
    folder = Path(scene.config.trainer.checkpoint_url)
    folder.mkdir()
    (folder / "current.json").write_text(text)
    report = _audited(scene)
    assert report.offences == {"unreadable_cut": 1}


def test_a_checkpoint_folder_that_cannot_be_read(scene: Scene) -> None:
    (Path(scene.config.trainer.checkpoint_url) / "current.json").mkdir(parents=True)
    with pytest.raises(ConfigError, match="checkpoint_url"):
        _audited(scene)


def test_a_sample_too_large_for_any_batch_may_be_in_quarantine(scene: Scene) -> None:
    scene.batches[0][2].pop()
    scene.quarantine.append((0, 1, "too_large"))
    report = _audited(scene)
    assert report.ok
    assert report.quarantined == {"malformed": 1, "too_large": 1}


def test_a_log_that_lost_its_beginning_is_judged_from_where_it_can_be(scene: Scene) -> None:
    later = scene.step(0, 12) | {"offset": 6, "watermark_ms": T + 100}
    scene.events[0] += [_event(f"g{i}", "e", T + 40_000 + i, item=i, type="impression") for i in range(3)]
    scene.journal[2] |= {"offset": 6, "watermark_ms": T + 100}
    scene.journal.append(later)
    scene.batches.append((0, 0, [Row(6, T + 20_000), Row(8, T + 20_100)]))
    scene.write()
    assert audit(scene.config).ok
    _delete_before(scene.config, {scene.config.topics.interactions: {0: 5}})
    report = audit(scene.config)
    assert report.offences == {}
    assert (report.events, report.open_impressions, report.in_batches_once) == (9, 3, 3)
    assert report.expired == 2

    _delete_before(scene.config, {scene.config.topics.batches: {0: 1}})
    report = audit(scene.config)
    assert report.offences == {}


def _delete_before(config: Config, offsets: dict[str, dict[int, int]]) -> None:
    client = AdminClient({"bootstrap.servers": config.kafka.bootstrap})
    asked = [TopicPartition(topic, p, o) for topic, parts in offsets.items() for p, o in parts.items()]
    for future in client.delete_records(asked).values():
        future.result()


def test_a_missing_topic_is_named(scene: Scene) -> None:
    gone = msgspec.structs.replace(scene.config.topics, late="no-such-topic-here")
    config = msgspec.structs.replace(scene.config, topics=gone)
    with pytest.raises(TopicMissing, match="no-such-topic-here"):
        audit(config)
