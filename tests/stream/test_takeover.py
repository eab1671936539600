"""Taking over partitions: what an operator allowed is used up by a commit; a journal that was cut is said so."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from stream.builder import BatchLimits
from stream.columns import batch_schema
from stream.config import Config, StreamConfig
from stream.journal import CommitMetadata, JournalEntry, JournalPart, JournalRecord, Parameters, encode_metadata
from stream.kafka import BrokerUnavailable, Committed, GroupConsumer, OffsetOutOfRange
from stream.partition import Source
from stream.records import CommitPoint
from stream.recovery import JournalBehindError, RecoveryError
from stream.snapshot_format import BlobRef, SnapshotError, SnapshotRef
from stream.takeover import Overrides, Taken, Takeover

CONFIG = Config()
METADATA = CommitMetadata(commit=7, resume=120, watermark_ms=5_000, seq=55, journal=9, partitions=4)
RECORD = JournalRecord(
    topic="interactions",
    topic_id="A",
    partition=0,
    partitions=4,
    commit=7,
    offset=100,
    watermark_ms=5_000,
    resume=120,
    seq=55,
    parameters=Parameters.of(CONFIG),
)


class Broker:
    """Four partitions of which the first is committed up to `offset`; the journal gives what it has, or an error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, begin: int = 0, offset: int = 100) -> None:
        self.journal: list[JournalEntry] | Exception = [JournalEntry(9, RECORD)]
        self.metadata = METADATA
        self._offset = offset
        monkeypatch.setattr("stream.takeover.topic_id", lambda *_: "A")
        monkeypatch.setattr("stream.takeover.partition_count", lambda *_: 4)
        monkeypatch.setattr("stream.takeover.begin_offsets", lambda *_: dict.fromkeys(range(4), begin))
        monkeypatch.setattr("stream.takeover.end_offsets", lambda *_, **__: dict.fromkeys(range(4), 500))
        monkeypatch.setattr("stream.takeover.read_journals", lambda *_, **__: {0: self.read()})

    def committed(self, partitions: list[int], **_: int) -> dict[int, Committed | None]:
        return {p: Committed(self._offset, encode_metadata(self.metadata)) if p == 0 else None for p in partitions}

    def take(self, overrides: Overrides, *, config: Config = CONFIG, partitions: Sequence[int] = (0,)) -> Taken:
        takeover = Takeover(
            config,
            schema=batch_schema(config),
            limits=BatchLimits(10, 1 << 20),
            indexer=cast("Any", SimpleNamespace()),
            overrides=overrides,
            journal_partitions=4,
        )
        return takeover.take(cast("GroupConsumer", self), partitions, on_wait=lambda _: None)

    def read(self) -> JournalPart:
        if isinstance(self.journal, Exception):
            raise self.journal
        return JournalPart(self.journal, 10)


def test_a_partition_whose_commit_is_under_way_holds_back_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    broker, together = Broker(monkeypatch), threading.Barrier(4)

    def committed(partitions: list[int], **_: int) -> dict[int, Committed | None]:
        together.wait(timeout=20)  # a question that waited for the one before it would break the barrier
        if partitions == [2]:
            raise BrokerUnavailable("a transaction is open")
        return {p: Committed(100, encode_metadata(METADATA)) for p in partitions}

    monkeypatch.setattr(broker, "committed", committed)
    monkeypatch.setattr("stream.takeover.read_journals", lambda *_, starts, **__: dict.fromkeys(starts, broker.read()))
    taken = broker.take(Overrides(), partitions=[0, 1, 2, 3])
    assert [partition.number for partition in taken.partitions] == [0, 1, 3]
    assert list(taken.later) == [2]


def test_what_was_accepted_is_used_up_by_the_commit_of_its_note(monkeypatch: pytest.MonkeyPatch) -> None:
    broker, overrides = Broker(monkeypatch, begin=110), Overrides({0})
    for _attempt in range(2):
        (partition,) = broker.take(overrides).partitions
        assert "10 offsets were deleted" in partition.plan.note
    overrides.committed([partition])
    assert isinstance(broker.take(overrides).refused[0], RecoveryError)


def test_what_was_accepted_for_nothing_is_used_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = Overrides({0})
    (partition,) = Broker(monkeypatch).take(overrides).partitions
    assert not partition.plan.note
    assert not overrides.accept_loss


def test_a_journal_that_was_cut_stops_the_partition_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = Broker(monkeypatch)
    broker.journal = OffsetOutOfRange("reading journal[0]@9: out of range")
    refusal = str(broker.take(Overrides()).refused[0])
    assert "the journal was cut or made again: commit 7 needs it from offset 9 on" in refusal
    assert "`recd stream --accept-loss 0`, which drops the open sessions and goes on at offset 120" in refusal


def test_a_journal_that_was_made_again_is_known_by_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = Broker(monkeypatch)
    broker.metadata = msgspec.structs.replace(METADATA, journal_id="another")
    assert "the topic has the id A, the commit knows another" in str(broker.take(Overrides()).refused[0])
    (partition,) = broker.take(Overrides({0})).partitions
    assert (partition.plan.resume, partition.plan.advances) == (120, ())
    assert partition.commit_state(Source("interactions", "A", 4, "A")).committed.metadata.count('"journal_id":"A"') == 1


@pytest.mark.parametrize("offset", [100, 120])
def test_without_its_journal_a_partition_goes_on_behind_its_commit(
    offset: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = Broker(monkeypatch, offset=offset)
    broker.journal = OffsetOutOfRange("reading journal[0]@9: out of range")
    (partition,) = broker.take(Overrides({0})).partitions
    plan = partition.plan
    assert (plan.start, plan.resume, plan.seq, plan.commit) == (CommitPoint(120, 5_000), 120, 55, 7)
    assert "the journal was cut" in plan.note
    assert partition.marks.next_offset == 500


@pytest.mark.parametrize("every", [0, 100_000])
def test_a_snapshot_that_cannot_be_used_costs_a_replay_and_nothing_else(
    every: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise SnapshotError("0/7/head: 1 of 2 records are not in the topic")

    monkeypatch.setattr("stream.opening.load_snapshot", broken)
    broker = Broker(monkeypatch)
    snapshot = SnapshotRef(position=115, events=3, sessions=1, head=BlobRef("0/7/head", 5, 2, 10, "x"))
    broker.journal = [JournalEntry(9, msgspec.structs.replace(RECORD, snapshot=snapshot))]
    config = msgspec.structs.replace(CONFIG, stream=StreamConfig(snapshot_every_events=every))
    (partition,) = broker.take(Overrides(), config=config).partitions
    assert (partition.plan.start, partition.pipeline.position) == (CommitPoint(100, 5_000), 100)
    assert partition.rebuilding
    warned = [record for record in caplog.records if record.message.startswith("snapshot not used")]
    assert len(warned) == bool(every)


def test_a_cut_journal_without_a_commit_is_never_a_first_start(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = Broker(monkeypatch)
    broker.journal = OffsetOutOfRange("reading journal[0]@0: out of range")
    monkeypatch.setattr(broker, "committed", lambda partitions, **_: dict.fromkeys(partitions))
    assert isinstance(broker.take(Overrides({0})).later[0], JournalBehindError)
