"""Open sessions and their events as rows of tables, moved by kernels; the form of `stream.open_events` for speed.

No step looks at a session that has nothing to do with it. Tables grow by half when they are full and are made anew,
smaller, when an eighth is used. Letters in shapes: M events that come, N events that are held.
"""

from __future__ import annotations

import numpy as np

from dedup_cache.arrays import AnyArray, Int32, Int64
from stream.columns import ImpressionColumns
from stream.compiled.session_place import advance, link_all, look, next_close_ms, place, refill, reopen
from stream.compiled.session_rows import take_rows
from stream.compiled.session_table import Rules, Table, empty_table, heads, make_out
from stream.compiled.session_timer import tick_ms
from stream.config import SessionConfig
from stream.event_block import EVENT, IMPRESSION, EventBlock
from stream.event_log import EventLog
from stream.records import CommitPoint
from stream.sessions import OpenSessions, Placement, RestoreError, session_of

MIN_ROWS = 1 << 10
SPARSE = 8


class ColumnEvents:
    """See OpenEvents. A handle is a slot: the number of a row of events."""

    def __init__(self, config: SessionConfig, *, watermark_ms: int, like: ImpressionColumns) -> None:
        disorder_ms = config.out_of_orderness_ms
        tick = tick_ms(config.gap_ms + disorder_ms)
        self._rules = Rules(config.gap_ms, disorder_ms, config.max_duration_ms, config.max_events, tick)
        self._like = like
        self._clear(watermark_ms)

    def _clear(self, watermark_ms: int) -> None:
        self._log = EventLog(self._like)
        self._table = empty_table(watermark_ms=watermark_ms, tick=watermark_ms // self._rules.tick_ms)
        self._free_slots = np.empty(0, np.int32)
        self._num_free_slots = 0
        self._out = make_out(slots=0, sessions=0)
        self._last_events = 0

    @property
    def _facts(self) -> AnyArray:
        return self._table.facts[0]  # type: ignore[no-any-return]

    @property
    def watermark_ms(self) -> int:
        """See OpenEvents."""
        return int(self._facts["watermark_ms"])

    @property
    def max_event_time_ms(self) -> int:
        """See OpenEvents."""
        return int(self._facts["max_event_time_ms"])

    @property
    def open_sessions(self) -> int:
        """See OpenEvents."""
        return int(self._facts["open_sessions"])

    @property
    def open_events(self) -> int:
        """See OpenEvents."""
        return int(self._facts["open_events"])

    @property
    def num_bytes(self) -> int:
        """Memory that it keeps, of which what was never used may not be resident."""
        arrays = (*self._table, *self._out, self._free_slots)
        return self._log.num_bytes + sum(int(array.nbytes) for array in arrays)

    def place(self, events: EventBlock) -> Placement:
        """See OpenEvents."""
        self._last_events = events.rows.shape[0]
        slots = self._take_slots(self._last_events)
        self._reserve_sessions(self._last_events)
        self._log.append(slots, events)
        place(events.rows, events.keys, slots, self._rules, self._table, self._out)
        return self._placement()

    def advance(self, watermark_ms: int) -> Placement:
        """See OpenEvents."""
        advance(watermark_ms, self._rules, self._table, self._out)
        return self._placement()

    def rows(self, handles: Int64) -> AnyArray:
        """See OpenEvents."""
        rows = np.empty(handles.shape[0], EVENT)
        take_rows(self._table.held, handles, rows)
        return rows

    def impressions(self, handles: Int64) -> ImpressionColumns:
        """See OpenEvents."""
        return self._log.impressions(handles.astype(np.int32))

    def records(self, handles: Int64) -> tuple[AnyArray, AnyArray]:
        """See OpenEvents."""
        return self._log.records(handles.astype(np.int32))

    def release(self, handles: Int64) -> None:
        """See OpenEvents."""
        slots = handles.astype(np.int32)
        self._log.release(slots)
        self._free_slots[self._num_free_slots : self._num_free_slots + slots.shape[0]] = slots
        self._num_free_slots += slots.shape[0]
        size = max(self._table.held.shape[0], self._table.sessions.shape[0])
        if size > SPARSE * max(MIN_ROWS, self._last_events, self.open_events):
            self._make_smaller()

    def held(self) -> Int64:
        """See OpenEvents."""
        return np.sort(self._table.held["offset"][self._held_slots()])

    def block(self, offsets: Int64) -> EventBlock:
        """See OpenEvents."""
        held = self._held_slots()
        of_slot = self._table.held["offset"][held]
        order = np.argsort(of_slot)
        slots = held[order[np.searchsorted(of_slot, offsets, sorter=order)]]
        rows = self.rows(slots)
        keys, values = self.records(slots)
        return EventBlock(
            rows=rows,
            keys=self._table.sessions["key"][self._table.held["session"][slots]],
            record_keys=keys,
            values=values,
            impressions=self.impressions(slots[rows["kind"] == IMPRESSION]),
        )

    def oldest(self) -> CommitPoint | None:
        """See OpenEvents."""
        if not self.open_sessions:
            return None
        session = self._table.sessions[self._facts["oldest"]]
        return CommitPoint(int(session["first_offset"]), int(session["watermark_before_ms"]))

    def state(self) -> OpenSessions:
        """See OpenEvents."""
        fields = np.empty((5, self.open_sessions), np.int64)
        look(fields, self._table)
        return OpenSessions(*fields)

    def restore(self, sessions: OpenSessions, events: EventBlock, *, max_event_time_ms: int) -> None:
        """See OpenEvents."""
        of_event = session_of(sessions, keys=events.keys, times_ms=events.rows["time_ms"])
        count = sessions.keys.shape[0]
        slots = self._take_slots(events.rows.shape[0])
        self._reserve_sessions(count)
        free = self._table.free[: int(self._facts["free_sessions"])][::-1][:count].astype(np.int64)
        reopen(
            sessions.starts_ms,
            sessions.lasts_ms,
            sessions.first_offsets,
            sessions.watermarks_before_ms,
            sessions.keys,
            self._rules,
            self._table,
        )
        once = refill(events.rows, free[of_event], slots, self._table)
        if not once or (self._table.sessions["num_events"][free] == 0).any():
            raise RestoreError("a session without events, or an event id twice in a session")
        self._facts["max_event_time_ms"] = max_event_time_ms
        self._log.append(slots, events)

    def close_all_watermark_ms(self) -> int:
        """See OpenEvents."""
        lasts_ms = self.state().lasts_ms
        return max(self.watermark_ms, int(lasts_ms.max()) + self._rules.gap_ms) if lasts_ms.size else self.watermark_ms

    def next_close_ms(self) -> int | None:
        """See OpenEvents."""
        return int(next_close_ms(self._table)) if self.open_sessions else None

    def _placement(self) -> Placement:
        facts, out = self._facts, self._out
        closed, events, dropped = int(facts["closed"]), int(facts["closed_events"]), int(facts["dropped"])
        return Placement(
            closed=out.closed[:events].astype(np.int64),
            closed_lengths=out.lengths[:closed].astype(np.int64),
            closed_turns=out.turns[:closed].copy(),
            dropped=out.dropped[:dropped].astype(np.int64),
            dropped_reasons=out.reasons[:dropped].astype(np.int64),
            dropped_turns=out.dropped_turns[:dropped].copy(),
        )

    def _held_slots(self) -> Int64:
        """int64[N], ascending."""
        used = np.ones(self._table.held.shape[0], np.bool_)
        used[self._free_slots[: self._num_free_slots]] = False
        return np.flatnonzero(used)

    def _take_slots(self, count: int) -> Int32:
        """int32[count] free slots."""
        if self._num_free_slots < count:
            self._more_slots(count)
        self._num_free_slots -= count
        return self._free_slots[self._num_free_slots : self._num_free_slots + count].copy()

    def _more_slots(self, count: int) -> None:
        before = self._free_slots.shape[0]
        size = max(MIN_ROWS, before + before // 2, before + count)
        table = self._table
        self._free_slots = _grown(self._free_slots, size)
        more = np.arange(size - 1, before - 1, -1).astype(np.int32)
        self._free_slots[self._num_free_slots : self._num_free_slots + more.shape[0]] = more
        self._num_free_slots += more.shape[0]
        self._log.reserve_slots(size)
        held, work, spare = _grown(table.held, size), np.empty(size, np.int32), np.empty(size, np.int32)
        self._replace(table._replace(held=held, work=work, spare=spare))

    def _reserve_sessions(self, count: int) -> None:
        table, free = self._table, int(self._facts["free_sessions"])
        if free >= count:
            return
        before = table.sessions.shape[0]
        size = max(MIN_ROWS, before + before // 2, before + count)
        unused = _grown(table.free, size)
        unused[free : free + size - before] = np.arange(size - 1, before - 1, -1)
        self._facts["free_sessions"] = free + size - before
        sessions, soon = _grown(table.sessions, size), _grown(table.soon, size)
        self._replace(table._replace(sessions=sessions, soon=soon, free=unused))

    def _replace(self, table: Table) -> None:
        """Go on with larger tables; chains that have become long are made anew."""
        by_key, by_id = (heads(size) for size in (table.sessions.shape[0], table.held.shape[0]))
        self._table = table._replace(by_key=by_key, by_id=by_id)
        link_all(self._table)
        self._out = make_out(slots=table.held.shape[0], sessions=table.sessions.shape[0])

    def _make_smaller(self) -> None:
        state, events, latest_ms = self.state(), self.block(self.held()), self.max_event_time_ms
        self._clear(self.watermark_ms)
        self.restore(state, events, max_event_time_ms=latest_ms)


def _grown(array: AnyArray, size: int) -> AnyArray:
    grown = np.empty(size, array.dtype)
    grown[: array.shape[0]] = array
    return grown
