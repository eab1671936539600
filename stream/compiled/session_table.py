"""Open sessions and the events that they hold, as rows of tables that point at each other by number.

A chain is a list through the rows: its first row stands in a table of heads, the next in each row, -1 ends it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from dedup_cache.arrays import AnyArray, Int32, Int64
from dedup_cache.compiled.kernel import part, piece
from stream.compiled.session_rows import HELD, NOTHING
from stream.records import NO_WATERMARK

WHEEL = 1 << 10
"""Chains of the timer."""
SESSION = np.dtype(
    [
        ("key", np.int64),
        ("cell", np.int64),
        ("start_ms", np.int64),
        ("last_ms", np.int64),
        ("first_offset", np.int64),
        ("watermark_before_ms", np.int64),
        ("due_ms", np.int64),
        ("first_event", np.int32),
        ("last_event", np.int32),
        ("num_events", np.int32),
        ("key_next", np.int32),
        ("older", np.int32),
        ("younger", np.int32),
        ("timer_next", np.int32),
        ("is_open", np.int32),
    ]
)
"""88 bytes. `due_ms` is where it stands in the timer, never later than its close."""
FACTS = np.dtype(
    [
        (name, np.int64)
        for name in (
            "watermark_ms",
            "max_event_time_ms",
            "open_sessions",
            "open_events",
            "free_sessions",
            "oldest",
            "youngest",
            "soon",
            "tick",
            "turn",
            "closed",
            "closed_events",
            "dropped",
        )
    ]
)
"""`soon`, `tick`: see the timer. The last four count what one call has put out."""


class Rules(NamedTuple):
    """What decides, in milliseconds; `most` events a session."""

    gap_ms: int
    disorder_ms: int
    span_ms: int
    most: int
    tick_ms: int


class Table(NamedTuple):
    """The open sessions of one partition."""

    sessions: Any
    """SESSION[capacity]"""
    held: Any
    """HELD[slots]"""
    by_key: Int32
    """Heads of the chains of sessions; a power of two."""
    by_id: Int32
    """Heads of the chains of events by key and id; a power of two."""
    wheel: Int32
    soon: Int32
    """int32[capacity]"""
    free: Int32
    """int32[capacity]: the sessions that are not used, as many as `free_sessions` says."""
    work: Int32
    spare: Int32
    """int32[slots]"""
    facts: Any
    """FACTS[1]"""


class Out(NamedTuple):
    """What one call does, as many of each as the facts say. See `stream.sessions.Placement`."""

    closed: Int32
    lengths: Int32
    turns: Int64
    dropped: Int32
    reasons: Int32
    dropped_turns: Int64


def empty_table(*, watermark_ms: int, tick: int) -> Table:
    """No session, no event, no room."""
    facts = np.zeros(1, FACTS)
    facts["watermark_ms"], facts["max_event_time_ms"], facts["tick"] = watermark_ms, NO_WATERMARK, tick
    facts["oldest"] = facts["youngest"] = NOTHING
    return Table(
        sessions=np.empty(0, SESSION),
        held=np.empty(0, HELD),
        by_key=heads(1),
        by_id=heads(1),
        wheel=heads(WHEEL),
        soon=np.empty(0, np.int32),
        free=np.empty(0, np.int32),
        work=np.empty(0, np.int32),
        spare=np.empty(0, np.int32),
        facts=facts,
    )


def heads(count: int) -> Int32:
    """Heads of empty chains, a power of two and at least `count`."""
    return np.full(1 << (count - 1).bit_length() if count else 1, NOTHING, np.int32)


def make_out(*, slots: int, sessions: int) -> Out:
    """Room for everything that a table of this size can put out."""

    def empty(size: int, dtype: DTypeLike = np.int32) -> AnyArray:
        return np.empty(size, dtype)

    return Out(
        closed=empty(slots),
        lengths=empty(sessions),
        turns=empty(sessions, np.int64),
        dropped=empty(slots),
        reasons=empty(slots),
        dropped_turns=empty(slots, np.int64),
    )


@part
def _head_of_key(table: Table, key: int) -> Any:
    mixed = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    return np.int64(mixed >> np.uint64(32)) & (table.by_key.shape[0] - 1)


@part
def _head_of_id(table: Table, key: int, event_id: int) -> Any:
    mixed = (np.uint64(event_id) ^ (np.uint64(key) * np.uint64(0xC2B2AE3D27D4EB4F))) * np.uint64(0x9E3779B97F4A7C15)
    return np.int64(mixed >> np.uint64(32)) & (table.by_id.shape[0] - 1)


@part
def first_of_key(table: Table, key: int) -> Any:
    """The first session of the chain in which those of the key stand."""
    return table.by_key[_head_of_key(table, key)]


@part
def link_session(table: Table, s: int) -> None:
    """Put session s into the chain of its key."""
    head = _head_of_key(table, table.sessions[s].key)
    table.sessions[s].key_next = table.by_key[head]
    table.by_key[head] = s


@piece
def unlink_session(table: Table, s: int) -> None:
    """Take session s out of the chain of its key and out of the order of age: it is closed, or part of another."""
    head = _head_of_key(table, table.sessions[s].key)
    here = table.by_key[head]
    if here == s:
        table.by_key[head] = table.sessions[s].key_next
    else:
        while table.sessions[here].key_next != s:
            here = table.sessions[here].key_next
        table.sessions[here].key_next = table.sessions[s].key_next
    older, younger = table.sessions[s].older, table.sessions[s].younger
    if older >= 0:
        table.sessions[older].younger = younger
    else:
        table.facts[0].oldest = younger
    if younger >= 0:
        table.sessions[younger].older = older
    else:
        table.facts[0].youngest = older
    table.sessions[s].is_open = 0
    table.facts[0].open_sessions -= 1


@part
def append_youngest(table: Table, s: int) -> None:
    """Session s has the greatest first offset of all."""
    youngest = table.facts[0].youngest
    table.sessions[s].older = youngest
    table.sessions[s].younger = NOTHING
    if youngest >= 0:
        table.sessions[youngest].younger = s
    else:
        table.facts[0].oldest = s
    table.facts[0].youngest = s


@piece
def has_id(table: Table, s: int, event_id: int) -> bool:
    """Whether session s holds an event of this id."""
    held = table.held
    slot = table.by_id[_head_of_id(table, table.sessions[s].key, event_id)]
    while slot >= 0:
        if held[slot].event_id == event_id and held[slot].session == s:
            return True
        slot = held[slot].id_next
    return False


@piece
def link_event(table: Table, s: int, slot: int) -> None:
    """Let session s hold the event; it becomes its last."""
    held, session = table.held, table.sessions[s]
    head = _head_of_id(table, session.key, held[slot].event_id)
    held[slot].id_next = table.by_id[head]
    table.by_id[head] = slot
    held[slot].session = s
    held[slot].next = NOTHING
    if session.num_events == 0:
        session.first_event = slot
    else:
        held[session.last_event].next = slot
    session.last_event = slot
    session.num_events += 1
    table.facts[0].open_events += 1


@piece
def unlink_id(table: Table, s: int, slot: int) -> None:
    """Session s holds the event no more; the chain of its events is for the caller to mend."""
    held = table.held
    head = _head_of_id(table, table.sessions[s].key, held[slot].event_id)
    here = table.by_id[head]
    if here == slot:
        table.by_id[head] = held[slot].id_next
    else:
        while held[here].id_next != slot:
            here = held[here].id_next
        held[here].id_next = held[slot].id_next
    held[slot].session = NOTHING
    table.facts[0].open_events -= 1
