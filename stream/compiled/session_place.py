"""Events into sessions, and sessions closed: the rules of `stream.sessions`, on tables instead of objects."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from dedup_cache.arrays import Int32, Int64
from dedup_cache.compiled.kernel import kernel, part, piece
from stream.compiled import session_rows, session_table, session_timer
from stream.compiled.session_rows import NOTHING, sort_events, take_row, take_rows
from stream.compiled.session_table import (
    Out,
    Rules,
    Table,
    append_youngest,
    empty_table,
    first_of_key,
    has_id,
    link_event,
    link_session,
    make_out,
    unlink_id,
    unlink_session,
)
from stream.compiled.session_timer import earliest_ms, next_due, turn_wheel, wait
from stream.event_block import EVENT
from stream.sessions import DUPLICATE, FULL, LATE

_SOURCES = zlib.crc32(
    b"".join(Path(str(one.__file__)).read_bytes() for one in (session_rows, session_table, session_timer))
)
"""An argument of every kernel, for numba's cache does not look at the files of what a kernel calls."""


@piece
def _drop(table: Table, out: Out, slot: int, reason: int) -> None:
    facts = table.facts[0]
    out.dropped[facts.dropped] = slot
    out.reasons[facts.dropped] = reason
    out.dropped_turns[facts.dropped] = facts.turn
    facts.dropped += 1
    facts.turn += 1


@part
def _cell(key: int, time_ms: int, span_ms: int) -> int:
    shift = int(np.uint64(key) % np.uint64(span_ms))
    return (time_ms + shift) // span_ms


@piece
def _open(table: Table, rules: Rules, key: int, cell: int, time_ms: int, offset: int) -> int:
    facts = table.facts[0]
    facts.free_sessions -= 1
    facts.open_sessions += 1
    s = int(table.free[facts.free_sessions])
    session = table.sessions[s]
    session.key = key
    session.cell = cell
    session.start_ms = time_ms
    session.last_ms = time_ms
    session.first_offset = offset
    session.watermark_before_ms = facts.watermark_ms
    session.num_events = 0
    session.is_open = 1
    link_session(table, s)
    append_youngest(table, s)
    wait(table, rules, s)
    return s


@piece
def _merge(table: Table, rules: Rules, out: Out, one: int, other: int) -> int:
    """Make one of two: the older goes on, the lowest offsets stay."""
    held, work = table.held, table.work
    if table.sessions[other].first_offset < table.sessions[one].first_offset:
        one, other = other, one
    survivor, lost = table.sessions[one], table.sessions[other]
    survivor.start_ms = min(survivor.start_ms, lost.start_ms)
    survivor.last_ms = max(survivor.last_ms, lost.last_ms)
    count = 0
    for s in (one, other):
        slot = table.sessions[s].first_event
        for _ in range(table.sessions[s].num_events):
            work[count] = slot
            count += 1
            following = held[slot].next
            unlink_id(table, s, slot)
            slot = following
    sort_events(held, work, table.spare, 0, count, False)
    survivor.num_events = 0
    for i in range(count):
        slot = work[i]
        if has_id(table, one, held[slot].event_id):
            _drop(table, out, slot, DUPLICATE)
        elif survivor.num_events >= rules.most:
            _drop(table, out, slot, FULL)
        else:
            link_event(table, one, slot)
    unlink_session(table, other)
    return one


@part
def _session_for(table: Table, rules: Rules, out: Out, key: int, time_ms: int, offset: int) -> int:
    """The session of this event, which it extends, joins with another, or opens."""
    cell, gap_ms = _cell(key, time_ms, rules.span_ms), rules.gap_ms
    found = int(NOTHING)
    s = int(first_of_key(table, key))
    while s >= 0:
        session = table.sessions[s]
        following = int(session.key_next)
        near = session.start_ms - gap_ms < time_ms < session.last_ms + gap_ms
        if session.key == key and session.cell == cell and near:
            session.start_ms = min(session.start_ms, time_ms)
            session.last_ms = max(session.last_ms, time_ms)
            found = s if found < 0 else _merge(table, rules, out, found, s)
        s = following
    return found if found >= 0 else _open(table, rules, key, cell, time_ms, offset)


@piece
def _close_due(table: Table, rules: Rules, out: Out) -> None:
    """Close by (last + gap, first offset)."""
    facts, held = table.facts[0], table.held
    turn_wheel(table, rules)
    while True:
        s = next_due(table, rules)
        if s < 0:
            return
        session = table.sessions[s]
        first, count = facts.closed_events, session.num_events
        slot = session.first_event
        for i in range(count):
            out.closed[first + i] = slot
            following = held[slot].next
            unlink_id(table, s, slot)
            slot = following
        sort_events(held, out.closed, table.work, first, count, True)
        unlink_session(table, s)
        out.lengths[facts.closed] = count
        out.turns[facts.closed] = facts.turn
        facts.closed += 1
        facts.closed_events = first + count
        facts.turn += 1


@part
def _begin(table: Table) -> None:
    facts = table.facts[0]
    facts.turn = facts.closed = facts.closed_events = facts.dropped = 0


@kernel
def place(rows: Any, keys: Int64, slots: Int32, rules: Rules, table: Table, out: Out, _sources: int = _SOURCES) -> None:
    """Take EVENT[M] rows in offset order into the free `slots`, and close what the watermark reaches in between.

    So many sessions must be free; `out` must have room for everything that is open and for these.
    """
    facts = table.facts[0]
    _begin(table)
    for i in range(rows.shape[0]):
        row, slot, key = rows[i], slots[i], keys[i]
        time_ms = row.time_ms
        take_row(table.held, slot, row)
        if time_ms + rules.gap_ms <= facts.watermark_ms:
            _drop(table, out, slot, LATE)
            continue
        facts.max_event_time_ms = max(facts.max_event_time_ms, time_ms)
        s = _session_for(table, rules, out, key, time_ms, row.offset)
        if has_id(table, s, row.event_id):
            _drop(table, out, slot, DUPLICATE)
        elif table.sessions[s].num_events >= rules.most:
            _drop(table, out, slot, FULL)
        else:
            link_event(table, s, slot)
        if time_ms - rules.disorder_ms > facts.watermark_ms:
            facts.watermark_ms = time_ms - rules.disorder_ms
            _close_due(table, rules, out)


@kernel
def advance(watermark_ms: int, rules: Rules, table: Table, out: Out, _sources: int = _SOURCES) -> None:
    """Raise the watermark where it is lower, and close what it reaches."""
    _begin(table)
    table.facts[0].watermark_ms = max(table.facts[0].watermark_ms, watermark_ms)
    _close_due(table, rules, out)


@kernel
def reopen(
    starts: Int64,
    lasts: Int64,
    offsets: Int64,
    before: Int64,
    keys: Int64,
    rules: Rules,
    table: Table,
    _sources: int = _SOURCES,
) -> None:
    """Open sessions as they were, oldest first; they get the numbers that stand last in `free`, in that order."""
    facts = table.facts[0]
    watermark_ms = facts.watermark_ms
    facts.tick = watermark_ms // rules.tick_ms
    for i in range(keys.shape[0]):
        facts.watermark_ms = before[i]
        s = _open(table, rules, keys[i], _cell(keys[i], starts[i], rules.span_ms), starts[i], offsets[i])
        table.sessions[s].last_ms = lasts[i]
    facts.watermark_ms = watermark_ms


@kernel
def refill(rows: Any, sessions: Int64, slots: Int32, table: Table, _sources: int = _SOURCES) -> bool:
    """Let sessions hold EVENT[M] rows again, in offset order; False where an id comes twice in a session."""
    for i in range(rows.shape[0]):
        take_row(table.held, slots[i], rows[i])
        if has_id(table, sessions[i], rows[i].event_id):
            return False
        link_event(table, sessions[i], slots[i])
    return True


@kernel
def link_all(table: Table, _sources: int = _SOURCES) -> None:
    """Make the chains anew after their heads have become more: all heads must be NOTHING."""
    s = table.facts[0].oldest
    while s >= 0:
        link_session(table, s)
        slot = table.sessions[s].first_event
        events, table.sessions[s].num_events = table.sessions[s].num_events, 0
        table.facts[0].open_events -= events
        for _ in range(events):
            following = table.held[slot].next
            link_event(table, s, slot)
            slot = following
        s = table.sessions[s].younger


@kernel
def next_close_ms(table: Table, _sources: int = _SOURCES) -> int:
    """A watermark below which nothing closes, if anything is open."""
    return earliest_ms(table)


@kernel
def look(fields: Int64, table: Table, _sources: int = _SOURCES) -> None:
    """The columns of `stream.sessions.OpenSessions`, int64[5, K]."""
    s = table.facts[0].oldest
    for i in range(fields.shape[1]):
        session = table.sessions[s]
        fields[0, i] = session.key
        fields[1, i] = session.start_ms
        fields[2, i] = session.last_ms
        fields[3, i] = session.first_offset
        fields[4, i] = session.watermark_before_ms
        s = session.younger


def samples() -> list[tuple[Any, tuple[object, ...]]]:
    """Every kernel with small arguments."""
    rules, table = Rules(1, 1, 2, 1, 1), empty_table(watermark_ms=0, tick=0)
    out, rows = make_out(slots=0, sessions=0), np.empty(0, EVENT)
    none, slots = np.empty(0, np.int64), np.empty(0, np.int32)
    return [
        (place, (rows, none, slots, rules, table, out)),
        (advance, (0, rules, table, out)),
        (reopen, (none, none, none, none, none, rules, table)),
        (refill, (rows, none, slots, table)),
        (link_all, (table,)),
        (next_close_ms, (table,)),
        (look, (np.empty((5, 0), np.int64), table)),
        (take_rows, (table.held, none, rows)),
    ]
