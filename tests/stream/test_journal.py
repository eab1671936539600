"""Journal records, commit metadata, and how a partition goes on: every case of `recovery.decide`."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from stream.config import Config, EventsConfig, FeatureConfig, FieldsConfig, LabelConfig, SessionConfig
from stream.emitted import Emitted
from stream.journal import (
    Advance,
    CommitMetadata,
    JournalEntry,
    JournalError,
    JournalMarks,
    JournalRecord,
    Parameters,
    decode_metadata,
    decode_record,
    encode_metadata,
    encode_record,
    entry_at,
)
from stream.kafka import Committed
from stream.records import NO_WATERMARK, CommitPoint
from stream.recovery import Allowed, Found, JournalBehindError, RecoveryError, decide
from stream.snapshot_format import BlobRef, SnapshotRef

NOW = Parameters.of(Config())
RECORD = JournalRecord(
    topic="interactions",
    topic_id="A",
    partition=3,
    partitions=4,
    commit=7,
    offset=100,
    watermark_ms=5_000,
    resume=120,
    seq=55,
    advances=(Advance(95, 4_000), Advance(110, 5_500)),
    parameters=NOW,
)
METADATA = CommitMetadata(commit=7, resume=120, watermark_ms=5_000, seq=55, journal=9, partitions=4)
FOUND = Found(
    topic="interactions",
    topic_id="A",
    partition=3,
    partitions=4,
    begin=0,
    end=500,
    committed=Committed(100, encode_metadata(METADATA)),
    entries=(JournalEntry(9, RECORD),),
    parameters=NOW,
)
ACCEPT = Allowed(accept_loss=True)
STRICT = Allowed()


def test_records_and_metadata_come_back() -> None:
    assert decode_record(encode_record(RECORD), place="here") == RECORD
    assert decode_metadata(encode_metadata(METADATA), place="here") == METADATA
    assert len(encode_metadata(METADATA)) < 4_096


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", encode_record(RECORD)[:-5]])
def test_damage_names_its_place(data: bytes) -> None:
    with pytest.raises(JournalError, match=r"journal\[0\]@5"):
        decode_record(data, place="journal[0]@5")


def test_a_later_format_is_refused() -> None:
    with pytest.raises(JournalError, match="version 2"):
        decode_record(encode_record(msgspec.structs.replace(RECORD, version=2)), place="here")


def test_marks_cover_the_oldest_offset_still_needed() -> None:
    marks = JournalMarks(next_offset=50)
    for resume, written_at in ((10, 50), (20, 52), (30, 57)):
        marks.wrote(resume=resume)
        marks.next_offset = written_at + 1
    assert marks.covering(5) == 50
    assert marks.covering(10) == 50
    assert marks.covering(11) == 51
    assert marks.covering(30) == 53
    assert marks.covering(99) == 53, "nothing is written yet that covers it: the last record is the bound"


def test_goes_on_where_it_was_committed() -> None:
    plan = decide(FOUND, STRICT)
    assert (plan.start, plan.resume, plan.seq, plan.commit) == (CommitPoint(100, 5_000), 120, 55, 7)
    assert plan.advances == (Advance(110, 5_500),), "what lies before C is in its watermark already"
    assert plan.note == ""


def test_batches_without_a_commit_and_a_journal_are_not_made_again() -> None:
    found = replace(FOUND, committed=None, entries=(), emitted=Emitted("batches", 110, 42))
    refused(
        found, match="'batches' has 42 samples of it, up to offset 109.*--accept-loss 3`, which goes on at offset 110"
    )
    plan = decide(found, ACCEPT)
    assert (plan.start, plan.resume, plan.seq) == (CommitPoint(110, NO_WATERMARK), 110, 42)
    assert "neither a committed offset nor a journal record is left" in plan.note
    refused(replace(found, end=100), match="up to offset 109.*the log ends at offset 100, but 110 was processed")


def test_first_start_is_journalled_and_begins_with_the_log() -> None:
    plan = decide(replace(FOUND, committed=None, entries=(), begin=17), STRICT)
    assert (plan.start, plan.resume, plan.seq, plan.note) == (CommitPoint(17, NO_WATERMARK), 17, 0, "start")


def refused(found: Found, *, match: str) -> str:
    with pytest.raises(RecoveryError, match=match) as caught:
        decide(found, STRICT)
    assert "interactions[3]" in str(caught.value)
    assert "To go on: " in str(caught.value)
    return str(caught.value)


def test_offsets_that_expired() -> None:
    found = replace(FOUND, committed=None)
    refused(found, match=r"committed offset is gone.*--accept-loss 3")
    plan = decide(found, ACCEPT)
    assert (plan.start.offset, plan.resume, plan.seq) == (100, 120, 55)
    assert "gone" in plan.note


def test_offsets_that_were_set_back() -> None:
    old = Committed(40, encode_metadata(msgspec.structs.replace(METADATA, commit=6)))
    refused(replace(FOUND, committed=old), match="set back")
    assert decide(replace(FOUND, committed=old), ACCEPT).start.offset == 100


def test_offsets_of_another_program() -> None:
    foreign = Committed(40, "")
    refused(replace(FOUND, committed=foreign), match="not a stream worker")
    assert decide(replace(FOUND, committed=foreign), ACCEPT).start.offset == 100
    alone = replace(FOUND, committed=foreign, entries=())
    refused(alone, match="not a stream worker")
    plan = decide(alone, ACCEPT)
    assert (plan.start.offset, plan.resume) == (40, 40)
    assert plan.note


def test_a_journal_that_is_not_visible_yet() -> None:
    ahead = Committed(130, encode_metadata(msgspec.structs.replace(METADATA, commit=8)))
    with pytest.raises(JournalBehindError):
        decide(replace(FOUND, committed=ahead), ACCEPT)
    with pytest.raises(JournalBehindError):
        decide(replace(FOUND, entries=()), ACCEPT)


def test_a_topic_that_was_made_again() -> None:
    found = replace(FOUND, topic_id="B", committed=None, end=3)
    refused(found, match="deleted and made again")
    plan = decide(found, ACCEPT)
    assert (plan.start, plan.resume, plan.seq) == (CommitPoint(0, NO_WATERMARK), 0, 55)


def test_partitions_that_were_added() -> None:
    refused(replace(FOUND, partitions=8), match="had 4 partitions and has 8")
    assert decide(replace(FOUND, partitions=8), ACCEPT).resume == 120
    new = replace(FOUND, committed=None, entries=(), partitions=8, partitions_before=4)
    refused(new, match="had 4 partitions and has 8")
    assert "8" in decide(new, ACCEPT).note


def test_a_log_that_begins_too_late() -> None:
    refused(replace(FOUND, begin=105), match="begins at offset 105.*retention")
    plan = decide(replace(FOUND, begin=105), ACCEPT)
    assert (plan.start, plan.resume) == (CommitPoint(105, 5_000), 120)
    plan = decide(replace(FOUND, begin=300), ACCEPT)
    assert (plan.start.offset, plan.resume, plan.advances) == (300, 300, ())


def test_a_log_that_ends_too_early() -> None:
    refused(replace(FOUND, end=110), match="ends at offset 110, but 120 was processed")
    plan = decide(replace(FOUND, end=110), ACCEPT)
    assert (plan.start, plan.resume, plan.advances) == (CommitPoint(110, 5_000), 110, ())


def test_changed_session_parameters() -> None:
    changed = Parameters.of(Config(session=SessionConfig(gap_ms=1_000)))
    found = replace(FOUND, parameters=changed)
    assert "--close-all" in refused(found, match="session.gap_ms was 1800000, is 1000")
    plan = decide(found, Allowed(close_all=True))
    assert plan.close_all
    assert plan.parameters == NOW
    dropped = decide(found, ACCEPT)
    assert (dropped.start.offset, dropped.resume, dropped.parameters) == (120, 120, changed)


def test_a_changed_schema_needs_the_old_configuration() -> None:
    changed = Parameters.of(Config(labels=(LabelConfig(name="other", engagements=("click",)),)))
    message = refused(replace(FOUND, parameters=changed), match="events, features or labels")
    assert "--close-all" not in message
    with pytest.raises(RecoveryError):
        decide(replace(FOUND, parameters=changed), Allowed(close_all=True))


def test_nothing_open_means_that_parameters_may_change() -> None:
    changed = Parameters.of(Config(session=SessionConfig(gap_ms=1_000)))
    closed = msgspec.structs.replace(RECORD, offset=120, advances=(Advance(120, 9_000),))
    committed = Committed(120, encode_metadata(METADATA))
    found = replace(FOUND, parameters=changed, entries=(JournalEntry(9, closed),), committed=committed)
    plan = decide(found, STRICT)
    assert (plan.parameters, plan.close_all, plan.start.offset) == (changed, False, 120)


SNAPSHOT = SnapshotRef(position=115, events=3, sessions=1, head=BlobRef("3/7/head", 5, 2, 10, "x"))
SNAPPED = msgspec.structs.replace(RECORD, snapshot=SNAPSHOT)


def test_the_newest_snapshot_between_the_commit_and_where_it_was_is_used() -> None:
    assert decode_record(encode_record(SNAPPED), place="here") == SNAPPED
    assert decide(FOUND, STRICT).snapshot is None
    assert decide(replace(FOUND, entries=(JournalEntry(9, SNAPPED),)), STRICT).snapshot == SNAPSHOT
    older = msgspec.structs.replace(SNAPPED, commit=6, resume=118, snapshot=SNAPSHOT)
    assert (
        decide(replace(FOUND, entries=(JournalEntry(8, older), JournalEntry(9, RECORD))), STRICT).snapshot == SNAPSHOT
    )


@pytest.mark.parametrize("position", [90, 100, 121])
def test_a_snapshot_behind_the_commit_or_before_it_is_of_no_use(position: int) -> None:
    snapshot = msgspec.structs.replace(SNAPSHOT, position=position)
    entry = JournalEntry(9, msgspec.structs.replace(RECORD, snapshot=snapshot))
    assert decide(replace(FOUND, entries=(entry,)), STRICT).snapshot is None


def test_a_snapshot_of_another_log_or_other_parameters_is_never_used() -> None:
    other = Parameters.of(Config(session=SessionConfig(gap_ms=7)))
    for changes in ({"topic_id": "B"}, {"parameters": other}):
        older = msgspec.structs.replace(SNAPPED, commit=6, **changes)
        assert (
            decide(replace(FOUND, entries=(JournalEntry(8, older), JournalEntry(9, RECORD))), STRICT).snapshot is None
        )


def test_what_an_operator_accepted_drops_the_snapshot_with_the_sessions() -> None:
    entries = (JournalEntry(9, SNAPPED),)
    for changes in ({"begin": 110}, {"end": 118}, {"topic_id": "B"}):
        assert decide(replace(FOUND, entries=entries, **changes), ACCEPT).snapshot is None


def test_a_replay_starts_at_the_last_entry_before_its_position() -> None:
    entries = [JournalEntry(i, msgspec.structs.replace(RECORD, resume=resume)) for i, resume in enumerate((10, 20, 20))]
    found = [entry_at(entries, position) for position in (9, 10, 19, 20, 99)]
    assert [entry and entry.offset for entry in found] == [None, 0, 0, 2, 2]


class _LaterEvents(EventsConfig, frozen=True):
    """The section as a later version may have it."""

    added: int = 0


def test_a_key_that_a_later_version_adds_changes_the_parameters_only_when_it_is_set() -> None:
    def parameters(events: EventsConfig, *, feature: str = "a") -> Parameters:
        return Parameters.of(Config(events=events, features=(FeatureConfig(name=feature, group="g"),)))

    now = parameters(EventsConfig(max_bytes=7))
    assert parameters(_LaterEvents(max_bytes=7)) == now
    assert parameters(_LaterEvents(max_bytes=7, added=1)) != now
    assert parameters(EventsConfig(max_bytes=8)) != now
    assert parameters(EventsConfig(max_bytes=7, fields=FieldsConfig(key="k"))) != now
    assert parameters(EventsConfig(max_bytes=7), feature="b") != now
