"""Rows of events that sessions hold: in, out, and in order."""

from __future__ import annotations

from typing import Any

import numpy as np

from dedup_cache.arrays import Int64
from dedup_cache.compiled.kernel import kernel, part, piece

NOTHING = -1
HELD = np.dtype(
    [
        ("offset", np.int64),
        ("append_ms", np.int64),
        ("time_ms", np.int64),
        ("event_id", np.int64),
        ("item", np.int64),
        ("item_id", np.int64),
        ("target", np.int64),
        ("session", np.int32),
        ("next", np.int32),
        ("id_next", np.int32),
        ("kind", np.int16),
        ("has_item", np.bool_),
        ("has_target", np.bool_),
    ]
)
"""72 bytes: what `stream.event_block.EVENT` has, and the event's place among others."""


@piece
def take_row(held: Any, slot: int, row: Any) -> None:
    """Put an EVENT into a slot; no session holds it yet."""
    held[slot].offset = row.offset
    held[slot].append_ms = row.append_ms
    held[slot].time_ms = row.time_ms
    held[slot].event_id = row.event_id
    held[slot].item = row.item
    held[slot].item_id = row.item_id
    held[slot].target = row.target
    held[slot].kind = row.kind
    held[slot].has_item = row.has_item
    held[slot].has_target = row.has_target
    held[slot].session = NOTHING


@kernel
def take_rows(held: Any, slots: Int64, rows: Any) -> None:
    """EVENT[N] of the events at int64[N] slots."""
    for i in range(slots.shape[0]):
        event, row = held[slots[i]], rows[i]
        row.offset = event.offset
        row.append_ms = event.append_ms
        row.time_ms = event.time_ms
        row.event_id = event.event_id
        row.item = event.item
        row.item_id = event.item_id
        row.target = event.target
        row.kind = event.kind
        row.has_item = event.has_item
        row.has_target = event.has_target


@part
def _before(held: Any, one: int, other: int, by_time: bool) -> bool:
    if by_time and held[one].time_ms != held[other].time_ms:
        return bool(held[one].time_ms < held[other].time_ms)
    return bool(held[one].offset < held[other].offset)


@piece
def sort_events(held: Any, slots: Any, spare: Any, first: int, count: int, by_time: bool) -> None:
    """Sort slots[first : first + count] by (time, offset), or by offset alone: merges of ever longer runs."""
    width = 1
    for i in range(first + 1, first + count):
        if _before(held, slots[i], slots[i - 1], by_time):
            width = 0
            break
    if width:
        return
    width = 1
    while width < count:
        for low in range(first, first + count, 2 * width):
            middle, high = min(low + width, first + count), min(low + 2 * width, first + count)
            a, b = low, middle
            for to in range(low, high):
                if b >= high or (a < middle and not _before(held, slots[b], slots[a], by_time)):
                    spare[to] = slots[a]
                    a += 1
                else:
                    spare[to] = slots[b]
                    b += 1
        for i in range(first, first + count):
            slots[i] = spare[i]
        width *= 2
