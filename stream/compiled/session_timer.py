"""Which sessions close when the watermark moves, without a look at the others.

Sessions that close far ahead stand in a wheel: one chain per tick of time, WHEEL ticks round. When the watermark enters
a tick, its chain goes into a small heap, ordered by (due, first offset). A session that was extended moves on when its
turn comes. (Varghese and Lauck, "Hashed and hierarchical timing wheels", 1987.)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dedup_cache.compiled.kernel import part, piece
from stream.compiled.session_rows import NOTHING
from stream.compiled.session_table import WHEEL, Rules, Table


def tick_ms(longest_ms: int) -> int:
    """A tick with which a wheel reaches `longest_ms` ahead."""
    return max(1, -(-(longest_ms + 1) // (WHEEL - 2)))


@part
def _earlier(table: Table, one: int, other: int) -> bool:
    a, b = table.sessions[one], table.sessions[other]
    if a.due_ms != b.due_ms:
        return bool(a.due_ms < b.due_ms)
    return bool(a.first_offset < b.first_offset)


@piece
def _push(table: Table, s: int) -> None:
    soon = table.soon
    at = np.int64(table.facts[0].soon)
    table.facts[0].soon = at + 1
    while at > 0:
        above = (at - 1) >> 1
        if not _earlier(table, s, soon[above]):
            break
        soon[at] = soon[above]
        at = above
    soon[at] = s


@piece
def _pop(table: Table) -> None:
    """Take the first one away."""
    soon = table.soon
    size = table.facts[0].soon - 1
    table.facts[0].soon = size
    moved, at = soon[size], np.int64(0)
    while True:
        below = 2 * at + 1
        if below >= size:
            break
        if below + 1 < size and _earlier(table, soon[below + 1], soon[below]):
            below += 1
        if not _earlier(table, soon[below], moved):
            break
        soon[at] = soon[below]
        at = below
    soon[at] = moved


@piece
def wait(table: Table, rules: Rules, s: int) -> None:
    """Put session s where its close, as it is known now, will be found."""
    due_ms = table.sessions[s].last_ms + rules.gap_ms
    table.sessions[s].due_ms = due_ms
    tick = due_ms // rules.tick_ms
    if 0 < tick - table.facts[0].tick < WHEEL:
        place = tick & (WHEEL - 1)
        table.sessions[s].timer_next = table.wheel[place]
        table.wheel[place] = s
    else:
        _push(table, s)


@piece
def turn_wheel(table: Table, rules: Rules) -> None:
    """Everything that may be due at the watermark goes into the heap."""
    tick = table.facts[0].watermark_ms // rules.tick_ms
    before = table.facts[0].tick
    if tick <= before:
        return
    table.facts[0].tick = tick
    for step in range(1, min(tick - before, WHEEL) + 1):
        place = (before + step) & (WHEEL - 1)
        s = table.wheel[place]
        table.wheel[place] = NOTHING
        while s >= 0:
            following = table.sessions[s].timer_next
            _push(table, s)
            s = following


@part
def _give_back(table: Table, s: int) -> None:
    free = table.facts[0].free_sessions
    table.free[free] = s
    table.facts[0].free_sessions = free + 1


@piece
def next_due(table: Table, rules: Rules) -> Any:
    """The session that closes next, now free to be used again by the next one; -1 where the watermark reaches none."""
    facts = table.facts[0]
    while facts.soon > 0:
        s = table.soon[0]
        session = table.sessions[s]
        if session.due_ms > facts.watermark_ms:
            return NOTHING
        _pop(table)
        if session.is_open == 0:
            _give_back(table, s)
        elif session.last_ms + rules.gap_ms > session.due_ms:
            wait(table, rules, s)
        else:
            _give_back(table, s)
            return s
    return NOTHING


@part
def earliest_ms(table: Table) -> int:
    """A watermark below which nothing closes, if anything is open."""
    facts = table.facts[0]
    earliest = 2**62
    if facts.soon > 0:
        earliest = table.sessions[table.soon[0]].due_ms
    for step in range(1, WHEEL):
        s = table.wheel[(facts.tick + step) & (WHEEL - 1)]
        if s >= 0:
            while s >= 0:
                earliest = min(earliest, table.sessions[s].due_ms)
                s = table.sessions[s].timer_next
            break
    return earliest
