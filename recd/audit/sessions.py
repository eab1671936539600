"""The audit's own sessions: the plain way, key by key, to say what must have become of every record of a partition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import xxhash

from recd.audit.events import Event
from recd.audit.sampling import negative_weight
from stream.config import LabelConfig

NO_WATERMARK = -(1 << 62)


class Rules(NamedTuple):
    """What decides whether an event is taken and which session it belongs to."""

    gap_ms: int
    out_of_orderness_ms: int
    max_duration_ms: int
    max_events: int
    max_ahead_ms: int
    keep_negatives: float = 1.0

    @staticmethod
    def of(session: Mapping[str, Any]) -> Rules:
        """From the journal; older records keep every negative. Raises KeyError, ValueError."""
        share = float(session.get("keep_negatives", 1.0))
        return Rules(**{name: int(session[name]) for name in Rules._fields[:-1]}, keep_negatives=share)


class Due(NamedTuple):
    """An impression that must be a sample by now. The order of these tuples is the order of the partition's samples."""

    close_ms: int
    first_offset: int
    time_ms: int
    offset: int
    labels: tuple[float, ...]
    weight: float


class Late(NamedTuple):
    """Why an event must be in `late`, and since when: the record that decided it, or the close of its session."""

    reason: str
    """`late`, `full` or `unmatched`."""
    decided_at: int
    close_ms: int | None = None


@dataclass(slots=True, eq=False)
class _Session:
    cell: int
    first_offset: int
    start_ms: int
    last_ms: int
    kept: dict[str, Event] = field(default_factory=dict)
    """By event id."""


@dataclass(slots=True)
class Expected:
    """What must have become of the records of a partition, by offset."""

    due: list[Due] = field(default_factory=list)
    late: dict[int, Late] = field(default_factory=dict)
    sampled_out: set[int] = field(default_factory=set)
    """Impressions that would be due, but are left out as negatives."""
    joined: int = 0
    """Engagements that found their impression."""
    duplicates: int = 0
    open_impressions: int = 0
    open_engagements: int = 0
    expired: int = 0
    """Events of sessions whose beginning is no longer in the log: nothing can be said about them."""
    expired_offsets: set[int] = field(default_factory=set)


class PartitionSessions:
    """Sessions of one partition, fed event by event in offset order.

    A session is closed when something asks for it, as it was when the watermark reached it.
    """

    def __init__(
        self,
        labels: tuple[LabelConfig, ...],
        *,
        partition: int,
        rules: Rules,
        watermark_ms: int,
        is_judging: bool = True,
    ) -> None:
        self._partition = partition
        self._rules = rules
        self._labels = [frozenset(label.engagements) for label in labels]
        self.watermark_ms = watermark_ms
        self._is_judging = is_judging
        self._judge_after_ms = NO_WATERMARK
        self._now = 0
        self._by_key: dict[str, list[_Session]] = {}
        self.expected = Expected()

    def begin_judging(self) -> None:
        """Everything decided until now lies before what can be judged."""
        self._is_judging = True
        self._judge_after_ms = self.watermark_ms

    def use(self, rules: Rules) -> None:
        """From here on these rules are in force; what the watermark has reached was closed under those before."""
        if rules != self._rules:
            for key in list(self._by_key):
                self._still_open(key)
            self._rules = rules

    def advance(self, watermark_ms: int) -> None:
        """The watermark was raised without an event."""
        self.watermark_ms = max(self.watermark_ms, watermark_ms)

    def add(self, event: Event) -> None:
        """Place one event."""
        rules = self._rules
        self._now = event.offset
        if event.time_ms + rules.gap_ms <= self.watermark_ms:
            self._drop(event, "late")
            return
        sessions = self._still_open(event.key)
        cell = (event.time_ms + xxhash.xxh3_64_intdigest(event.key.encode()) % rules.max_duration_ms) // (
            rules.max_duration_ms
        )
        near = [
            s
            for s in sessions
            if s.cell == cell and s.start_ms - rules.gap_ms < event.time_ms < s.last_ms + rules.gap_ms
        ]
        session = self._merged(near) or _Session(cell, event.offset, event.time_ms, event.time_ms)
        session.start_ms = min(session.start_ms, event.time_ms)
        session.last_ms = max(session.last_ms, event.time_ms)
        self._by_key[event.key] = [s for s in sessions if s not in near] + [session]
        self._keep(session, event)
        self.watermark_ms = max(self.watermark_ms, event.time_ms - rules.out_of_orderness_ms)

    def finish(self) -> Expected:
        """Close what the watermark allows; the rest is open."""
        for key in list(self._by_key):
            for session in self._still_open(key):
                impressions = sum(event.is_impression for event in session.kept.values())
                self.expected.open_impressions += impressions
                self.expected.open_engagements += len(session.kept) - impressions
        return self.expected

    def _still_open(self, key: str) -> list[_Session]:
        """The open sessions of a key, after closing those that the watermark has reached."""
        still = []
        for session in self._by_key.pop(key, []):
            close_ms = session.last_ms + self._rules.gap_ms
            if close_ms <= self.watermark_ms:
                self._close(session, close_ms)
            else:
                still.append(session)
        if still:
            self._by_key[key] = still
        return still

    def _merged(self, near: list[_Session]) -> _Session | None:
        """One session of several, its events admitted anew, the lowest offset first."""
        if len(near) < 2:
            return near[0] if near else None
        first = min(near, key=lambda s: s.first_offset)
        start_ms, last_ms = min(s.start_ms for s in near), max(s.last_ms for s in near)
        merged = _Session(first.cell, first.first_offset, start_ms, last_ms)
        for event in sorted(event for s in near for event in s.kept.values()):
            self._keep(merged, event)
        return merged

    def _keep(self, session: _Session, event: Event) -> None:
        if event.event_id in session.kept:
            if self._is_judged(event):
                self.expected.duplicates += 1
        elif len(session.kept) >= self._rules.max_events:
            self._drop(event, "full")
        else:
            session.kept[event.event_id] = event

    def _drop(self, event: Event, reason: str) -> None:
        if self._is_judged(event):
            self.expected.late[event.offset] = Late(reason, self._now)

    def _is_judged(self, event: Event) -> bool:
        if self._is_judging:
            return True
        self._expire(event)
        return False

    def _expire(self, event: Event) -> None:
        self.expected.expired += 1
        self.expected.expired_offsets.add(event.offset)

    def _close(self, session: _Session, close_ms: int) -> None:
        events = sorted(session.kept.values(), key=lambda event: (event.time_ms, event.offset))
        if not self._is_judging or close_ms <= self._judge_after_ms:
            for event in events:
                self._expire(event)
            return
        found = self._join(events, close_ms)
        for event in events:
            if event.is_impression:
                labels = tuple(float(not wanted.isdisjoint(found[event.offset])) for wanted in self._labels)
                self._come_due(event, close_ms, session.first_offset, labels)

    def _come_due(self, event: Event, close_ms: int, first_offset: int, labels: tuple[float, ...]) -> None:
        share = self._rules.keep_negatives
        weight = 1.0 if 1.0 in labels else negative_weight(self._partition, event.offset, share=share)
        if weight:
            self.expected.due.append(Due(close_ms, first_offset, event.time_ms, event.offset, labels, weight))
        else:
            self.expected.sampled_out.add(event.offset)

    def _join(self, events: list[Event], close_ms: int) -> dict[int, set[str]]:
        """By impression, the types of the engagements that belong to it.

        An engagement belongs to the impression it names, else to the latest one of its item that is not after it,
        ties by the greatest offset. What finds none is late.
        """
        impressions = [event for event in events if event.is_impression]
        by_id = {event.event_id: event for event in impressions}
        found: dict[int, set[str]] = {event.offset: set() for event in impressions}
        latest: dict[str | None, Event] = {}
        for event in sorted(events, key=lambda event: (event.time_ms, not event.is_impression, event.offset)):
            if event.is_impression:
                latest[event.item] = event
                continue
            impression = by_id.get(event.target) if event.target is not None else latest.get(event.item)
            if impression is None:
                self.expected.late[event.offset] = Late("unmatched", event.offset, close_ms)
            else:
                found[impression.offset].add(event.type)
                self.expected.joined += 1
        return found
