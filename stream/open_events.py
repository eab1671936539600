"""What the open sessions of a partition hold, in either of two forms that do the same.

Objects, one per session, and arrays of events: `ListedEvents`, which reads as the rules are told and needs nothing
compiled. Rows of tables: `stream.column_events`, whose cost per event does not depend on how much is open.
"""

from __future__ import annotations

from typing import Protocol

from dedup_cache.arrays import AnyArray, Int64
from stream.columns import ImpressionColumns
from stream.config import SessionConfig
from stream.event_block import EventBlock
from stream.event_store import EventStore
from stream.records import CommitPoint
from stream.sessions import OpenSessions, PartitionSessions, Placement


class OpenEvents(Protocol):
    """Open sessions and their events. Events are named by handles, int64, valid until they are released."""

    @property
    def watermark_ms(self) -> int:
        """Greatest accepted event time less the allowed disorder, or a later advance."""
        ...

    @property
    def max_event_time_ms(self) -> int:
        """Greatest accepted event time; NO_WATERMARK before the first."""
        ...

    @property
    def open_sessions(self) -> int:
        """How many."""
        ...

    @property
    def open_events(self) -> int:
        """How many events they hold."""
        ...

    def place(self, events: EventBlock) -> Placement:
        """Take events whose offsets are above all before, and close what the watermark reaches in between."""
        ...

    def advance(self, watermark_ms: int) -> Placement:
        """Raise the watermark where it is lower, and close what it reaches."""
        ...

    def rows(self, handles: Int64) -> AnyArray:
        """EVENT[N]"""
        ...

    def impressions(self, handles: Int64) -> ImpressionColumns:
        """The feature columns of impressions, in the order of the handles."""
        ...

    def records(self, handles: Int64) -> tuple[AnyArray, AnyArray]:
        """object[N], object[N]: the records' own keys and values, bytes or None; of impressions they may be None."""
        ...

    def release(self, handles: Int64) -> None:
        """Forget events that were closed or dropped; every other handle stays valid or is released with them."""
        ...

    def held(self) -> Int64:
        """The offsets of all events held, ascending."""
        ...

    def block(self, offsets: Int64) -> EventBlock:
        """The held events at ascending offsets, as they came; records' own bytes of impressions may be None."""
        ...

    def oldest(self) -> CommitPoint | None:
        """The first offset that an open session needs and the watermark just before it; None without sessions."""
        ...

    def state(self) -> OpenSessions:
        """What `restore` needs besides the events that are held."""
        ...

    def restore(self, sessions: OpenSessions, events: EventBlock, *, max_event_time_ms: int) -> None:
        """Take over sessions and all their events, in offset order. Only when empty. Raises RestoreError."""
        ...

    def close_all_watermark_ms(self) -> int:
        """The smallest watermark at which every open session is closed; the present one without sessions."""
        ...

    def next_close_ms(self) -> int | None:
        """A watermark below which no open session closes; None without sessions."""
        ...


class ListedEvents:
    """Sessions as objects; a handle is an offset."""

    def __init__(self, config: SessionConfig, *, watermark_ms: int, like: ImpressionColumns) -> None:
        self._sessions = PartitionSessions(config, watermark_ms=watermark_ms)
        self._store = EventStore(like)
        self.advance = self._sessions.advance
        self.oldest = self._sessions.oldest
        self.state = self._sessions.state
        self.close_all_watermark_ms = self._sessions.close_all_watermark_ms
        self.next_close_ms = self._sessions.next_close_ms
        self.rows = self._store.rows
        self.impressions = self._store.impressions
        self.records = self._store.records
        self.release = self._store.release
        self.held = self._store.held
        self.block = self._store.block

    @property
    def watermark_ms(self) -> int:
        """See OpenEvents."""
        return self._sessions.watermark_ms

    @property
    def max_event_time_ms(self) -> int:
        """See OpenEvents."""
        return self._sessions.max_event_time_ms

    @property
    def open_sessions(self) -> int:
        """See OpenEvents."""
        return self._sessions.open_sessions

    @property
    def open_events(self) -> int:
        """See OpenEvents."""
        return self._sessions.open_events

    def place(self, events: EventBlock) -> Placement:
        """See OpenEvents."""
        self._store.append(events)
        rows = events.rows
        return self._sessions.place(
            rows["offset"], times_ms=rows["time_ms"], keys=events.keys, event_ids=rows["event_id"]
        )

    def restore(self, sessions: OpenSessions, events: EventBlock, *, max_event_time_ms: int) -> None:
        """See OpenEvents."""
        rows = events.rows
        self._sessions.restore(
            sessions, offsets=rows["offset"], times_ms=rows["time_ms"], keys=events.keys, event_ids=rows["event_id"]
        )
        self._sessions.max_event_time_ms = max_event_time_ms
        self._store.append(events)


def column_events(config: SessionConfig, *, watermark_ms: int, like: ImpressionColumns) -> OpenEvents:
    """Sessions as rows of tables. Imports numba, which nobody needs who has no kernels."""
    from stream.column_events import ColumnEvents

    return ColumnEvents(config, watermark_ms=watermark_ms, like=like)
