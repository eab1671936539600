"""Where a partition goes on, or why it must not: decided from the log, the journal and what was committed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import msgspec

from stream.emitted import Emitted
from stream.journal import (
    Advance,
    CommitMetadata,
    JournalEntry,
    JournalError,
    JournalRecord,
    Parameters,
    decode_metadata,
)
from stream.kafka import Committed
from stream.records import NO_WATERMARK, CommitPoint
from stream.snapshot_format import SnapshotRef

START = "start"


class _Problem(Protocol):
    """Notes what the operator has to accept, and what follows when that is done."""

    def __call__(self, text: str, *, then: str) -> None: ...


class RecoveryError(Exception):
    """A partition cannot go on without an operator; the message says what happened and what to do."""


class JournalBehindError(Exception):
    """The journal's newest record is not visible yet: another transaction is open before it. Look again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What is known of a partition when it is taken over."""

    topic: str
    topic_id: str
    partition: int
    partitions: int
    begin: int
    """Offset of the oldest record of the log."""
    end: int
    committed: Committed | None
    entries: Sequence[JournalEntry]
    """Of this partition, from the journal offset in the commit metadata on; all of them without a commit."""
    parameters: Parameters
    journal_cut: str = ""
    """Why the journal cannot be read from where the commit says; there are no entries then."""
    partitions_before: int | None = None
    """Partitions of the topic when any other partition was last committed."""
    emitted: Emitted | None = None
    """What the batches say where nothing else is known of the partition."""

    @property
    def place(self) -> str:
        """For messages."""
        return f"{self.topic}[{self.partition}]"

    @property
    def last(self) -> JournalRecord | None:
        """The newest journal record."""
        return self.entries[-1].record if self.entries else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """What the operator allowed on the command line."""

    accept_loss: bool = False
    close_all: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a partition goes on: rebuild silently from `start` to `resume`, with `advances`, then live."""

    start: CommitPoint
    resume: int
    seq: int
    commit: int
    """Number of the last commit."""
    advances: tuple[Advance, ...]
    parameters: Parameters
    """Those of the open sessions; they differ from the worker's own only with `close_all`."""
    snapshot: SnapshotRef | None = None
    """Of a state between `start` and `resume`: a way to be there sooner, nothing depends on it."""
    note: str = ""
    """Must be journalled before the first record is processed, unless empty."""
    close_all: bool = False


def decide(found: Found, allowed: Allowed) -> Plan:
    """Return how the partition goes on.

    Raises RecoveryError (stops the partition until an operator decides), JournalBehindError (look again).
    """
    last = found.last
    notes: list[str] = []
    consequences: list[str] = []

    def problem(text: str, *, then: str) -> None:
        notes.append(text)
        consequences.append(then)

    if last is None and found.committed is None and not found.journal_cut:
        plan = _within_log(found, _first_start(found, problem), problem)
        notes = notes or [START]
    elif last is not None and last.topic_id != found.topic_id:
        problem(
            f"the topic was deleted and made again (id {found.topic_id}, the journal knows {last.topic_id})",
            then="starts at the beginning of the new log",
        )
        plan = _anew(found, last)
    else:
        plan = _without_journal(found, problem) if found.journal_cut else _as_committed(found, problem)
        plan = _within_log(found, plan, problem)
    if consequences and not allowed.accept_loss:
        _name_changed_parameters(found, plan, problem)
        raise RecoveryError(
            f"{found.place}: {'; '.join(notes)}. To go on: `recd stream --accept-loss {found.partition}`, "
            f"which {', and '.join(consequences)}"
        )
    return replace(_with_parameters(found, plan, allowed, notes), note="; ".join(notes))


def commit_metadata(found_place: str, committed: Committed | None) -> CommitMetadata | None:
    """The metadata of a commit; None without a commit, or where something else than a stream worker committed."""
    if committed is None or not committed.metadata:
        return None
    try:
        return decode_metadata(committed.metadata, place=f"the commit of {found_place}")
    except JournalError:
        return None


def _first_start(found: Found, problem: _Problem) -> Plan:
    """Nothing is known of the partition: it is new, or all that was known is lost."""
    before, emitted = found.partitions_before, found.emitted
    if before is not None and before != found.partitions:
        problem(_partitions_changed(found, before), then="may cut sessions under way in two")
    if emitted is None:
        return _beginning(found)
    problem(
        f"neither a committed offset nor a journal record is left, but '{emitted.topic}' has {emitted.seq} samples of "
        f"it, up to offset {emitted.offset - 1}: from its beginning they would be made twice",
        then=f"goes on at offset {emitted.offset} and drops the sessions that were open there",
    )
    return replace(_moved(_beginning(found), emitted.offset), seq=emitted.seq)


def _beginning(found: Found) -> Plan:
    return Plan(
        start=CommitPoint(found.begin),
        resume=found.begin,
        seq=0,
        commit=0,
        advances=(),
        parameters=found.parameters,
    )


def _anew(found: Found, last: JournalRecord) -> Plan:
    return Plan(
        start=CommitPoint(found.begin),
        resume=found.begin,
        seq=last.seq,
        commit=last.commit,
        advances=(),
        parameters=found.parameters,
    )


def _as_committed(found: Found, problem: _Problem) -> Plan:
    """The plan that commit and journal agree on; where they do not, the journal is right."""
    metadata, last = commit_metadata(found.place, found.committed), found.last
    if found.committed is not None and metadata is None:
        problem(
            f"offset {found.committed.offset} was committed by something that is not a stream worker",
            then="goes on from the journal's last record, without a loss, or from that offset if there is none",
        )
        if last is None:
            return _moved(_beginning(found), found.committed.offset)
    if last is None:
        raise JournalBehindError(f"{found.place}: the journal has no record yet")
    if found.committed is None:
        problem(
            "the committed offset is gone (the broker forgets those of a group that was empty for "
            f"offsets.retention.minutes), but the journal ends at offset {last.resume}",
            then="goes on from there, without a loss",
        )
    elif metadata is not None and metadata.commit > last.commit:
        raise JournalBehindError(f"{found.place}: commit {metadata.commit} is not in the journal yet")
    elif metadata is not None and metadata.commit < last.commit:
        problem(
            f"the committed offset was set back to commit {metadata.commit}, the journal has {last.commit}",
            then="goes on from the journal's last record, without a loss",
        )
    if last.partitions != found.partitions:
        problem(_partitions_changed(found, last.partitions), then="may cut sessions under way in two")
    advances = tuple(a for entry in found.entries for a in entry.record.advances if a.position >= last.offset)
    return Plan(
        start=CommitPoint(last.offset, last.watermark_ms),
        resume=last.resume,
        seq=last.seq,
        commit=last.commit,
        advances=advances,
        parameters=last.parameters,
        snapshot=_newest_snapshot(found, last),
    )


def _newest_snapshot(found: Found, last: JournalRecord) -> SnapshotRef | None:
    """The newest one that the same log and the same parameters made, if it is of use."""
    for record in (entry.record for entry in reversed(found.entries)):
        if (record.topic_id, record.parameters) != (last.topic_id, last.parameters):
            return None
        if record.snapshot is not None:
            return record.snapshot if last.offset < record.snapshot.position <= last.resume else None
    return None


def _without_journal(found: Found, problem: _Problem) -> Plan:
    """The plan of the commit alone: without its advances an open session cannot be rebuilt as it was."""
    metadata = commit_metadata(found.place, found.committed)
    if found.committed is None or metadata is None:
        raise JournalBehindError(f"{found.place}: the journal was cut while it was read")
    offset, resume = found.committed.offset, metadata.resume
    problem(
        f"the journal was cut or made again: commit {metadata.commit} needs it from offset {metadata.journal} on "
        f"({found.journal_cut})",
        then=f"drops {'the open sessions' if offset < resume else 'nothing'} and goes on at offset {resume}",
    )
    return Plan(
        start=CommitPoint(resume, metadata.watermark_ms),
        resume=resume,
        seq=metadata.seq,
        commit=metadata.commit,
        advances=(),
        parameters=found.parameters,
    )


def _within_log(found: Found, plan: Plan, problem: _Problem) -> Plan:
    if plan.resume > found.end:
        problem(
            f"the log ends at offset {found.end}, but {plan.resume} was processed: its end was lost",
            then=f"drops {'the open sessions' if plan.start.offset < plan.resume else 'no session'}, goes on at the "
            "end of the log and leaves out what was written since the loss",
        )
        return _moved(plan, found.end, watermark_ms=plan.start.watermark_ms)
    if plan.start.offset < found.begin:
        problem(
            f"the log begins at offset {found.begin}, but open sessions need it from {plan.start.offset} on: "
            f"{found.begin - plan.start.offset} offsets were deleted (see retention.ms of the topic)",
            then="goes on with what is left",
        )
        start = CommitPoint(found.begin, plan.start.watermark_ms)
        advances = tuple(a for a in plan.advances if a.position >= found.begin)
        return replace(plan, start=start, resume=max(plan.resume, found.begin), advances=advances, snapshot=None)
    return plan


def _with_parameters(found: Found, plan: Plan, allowed: Allowed, notes: list[str]) -> Plan:
    if plan.parameters == found.parameters:
        return plan
    if plan.start.offset == plan.resume:
        return replace(plan, parameters=found.parameters)
    same_schema = plan.parameters.schema == found.parameters.schema
    if allowed.close_all and same_schema:
        notes.append(f"close-all before a change of {_difference(plan.parameters, found.parameters)}")
        return replace(plan, close_all=True)
    if allowed.accept_loss:
        notes.append(f"open sessions dropped at a change of {_difference(plan.parameters, found.parameters)}")
        dropped = _moved(plan, plan.resume, watermark_ms=plan.start.watermark_ms)
        return replace(dropped, parameters=found.parameters)
    remedy = "start once with `recd stream --close-all`, which closes them under the old values, or "
    raise RecoveryError(
        f"{found.place}: the configuration changed while sessions are open: "
        f"{_difference(plan.parameters, found.parameters)}. To go on: {remedy if same_schema else ''}"
        "go back to the old configuration, send `recd control stream close`, and start with the new one when no "
        "session is open"
    )


def _name_changed_parameters(found: Found, plan: Plan, problem: _Problem) -> None:
    """Whoever accepts a loss must know that open sessions are part of it."""
    if plan.parameters != found.parameters and plan.start.offset != plan.resume:
        difference = _difference(plan.parameters, found.parameters)
        problem(
            f"besides, the configuration changed while sessions are open: {difference}",
            then="drops them, or with `--close-all` closes them under the old values",
        )


def _difference(old: Parameters, new: Parameters) -> str:
    before, after = msgspec.structs.asdict(old.session), msgspec.structs.asdict(new.session)
    parts = [f"session.{name} was {before[name]}, is {after[name]}" for name in before if before[name] != after[name]]
    if old.schema != new.schema:
        parts.append("events, features or labels are not what they were")
    return ", ".join(parts)


def _partitions_changed(found: Found, before: int) -> str:
    return f"the topic had {before} partitions and has {found.partitions}: keys have moved to other partitions"


def _moved(plan: Plan, offset: int, *, watermark_ms: int = NO_WATERMARK) -> Plan:
    """The plan without anything to rebuild, from another offset on."""
    return replace(plan, start=CommitPoint(offset, watermark_ms), resume=offset, advances=(), snapshot=None)
