"""The parts of events that have any length, one event after the other in one stretch of memory.

An event is a header (its slot, its size in words), the length of every part in bytes, and from the next whole word on
the parts; a length of -1 is a part that is None. Parts of whole words come first. What was released stays until the log
is pushed together. Letters in shapes: N events.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from dedup_cache.arrays import Int32, Int64, UInt8
from dedup_cache.compiled.kernel import kernel, part

RELEASED = -1


class Log(NamedTuple):
    """The same memory as bytes, int32 and int64."""

    data: UInt8
    ints: Int32
    words: Int64


def make_log(num_words: int) -> Log:
    """Room for so many words of eight bytes."""
    words = np.empty(num_words, np.int64)
    return Log(words.view(np.uint8), words.view(np.int32), words)


@part
def header_words(parts: int) -> int:
    """Words of an event before its parts."""
    return 1 + (parts + 1) // 2


@part
def _copy(source: UInt8, first: int, target: UInt8, to: int, count: int) -> None:
    for k in range(count):
        target[np.uint64(to) + np.uint64(k)] = source[np.uint64(first) + np.uint64(k)]


@kernel
def begin_events(log: Log, at: Int64, slots: Int32, sizes: Int64, head: int, parts: int, cursors: Int64) -> None:
    """Write headers at word `head` and behind it; `cursors` int64[N] are then the places (bytes) of the first parts."""
    for i in range(slots.shape[0]):
        at[slots[i]] = head
        log.ints[2 * head] = slots[i]
        log.ints[2 * head + 1] = sizes[i]
        cursors[i] = 8 * (head + header_words(parts))
        head += sizes[i]


@kernel
def write_part(
    log: Log, at: Int64, slots: Int32, number: int, data: UInt8, starts: Int64, lengths: Int64, cursors: Int64
) -> None:
    """Part `number` of N events: data[starts : starts + lengths]. The cursors go on to the next part."""
    for i in range(slots.shape[0]):
        log.ints[2 * at[slots[i]] + 2 + number] = lengths[i]
        count = max(lengths[i], 0)
        _copy(data, starts[i], log.data, cursors[i], count)
        cursors[i] += count


@kernel
def write_words(
    log: Log, at: Int64, slots: Int32, number: int, data: Int64, starts: Int64, lengths: Int64, cursors: Int64
) -> None:
    """The same for a part of whole words, int64 data; `starts` and `lengths` in words."""
    for i in range(slots.shape[0]):
        log.ints[2 * at[slots[i]] + 2 + number] = 8 * lengths[i]
        to = cursors[i] >> 3
        for k in range(lengths[i]):
            log.words[np.uint64(to) + np.uint64(k)] = data[np.uint64(starts[i]) + np.uint64(k)]
        cursors[i] += 8 * lengths[i]


@kernel
def find_part(log: Log, at: Int64, slots: Int32, number: int, parts: int, places: Int64, lengths: Int64) -> None:
    """Where part `number` of N events lies: in the bytes of the log, and how long (or -1)."""
    for i in range(slots.shape[0]):
        first = 2 * at[slots[i]] + 2
        place = 8 * (at[slots[i]] + header_words(parts))
        for before in range(number):
            place += max(np.int64(log.ints[first + before]), 0)
        places[i] = place
        lengths[i] = log.ints[first + number]


@kernel
def next_part(log: Log, at: Int64, slots: Int32, number: int, places: Int64, lengths: Int64) -> None:
    """From part `number` - 1 to part `number`."""
    for i in range(slots.shape[0]):
        places[i] += max(lengths[i], 0)
        lengths[i] = log.ints[2 * at[slots[i]] + 2 + number]


@kernel
def read_part(log: Log, places: Int64, lengths: Int64, copied: UInt8) -> None:
    """The bytes of a part of N events, one behind the other."""
    to = 0
    for i in range(places.shape[0]):
        count = max(lengths[i], 0)
        _copy(log.data, places[i], copied, to, count)
        to += count


@kernel
def read_words(log: Log, places: Int64, lengths: Int64, copied: Int64) -> None:
    """The same of a part of whole words; places and lengths are in bytes all the same."""
    to = 0
    for i in range(places.shape[0]):
        first, count = places[i] >> 3, lengths[i] >> 3
        for k in range(count):
            copied[np.uint64(to) + np.uint64(k)] = log.words[np.uint64(first) + np.uint64(k)]
        to += max(count, 0)


@kernel
def release_events(log: Log, at: Int64, slots: Int32) -> int:
    """Forget N events; returns how many words they leave behind."""
    words = 0
    for i in range(slots.shape[0]):
        words += log.ints[2 * at[slots[i]] + 1]
        at[slots[i]] = RELEASED
    return words


@kernel
def push_together(log: Log, head: int, at: Int64, into: Log) -> int:
    """Move what is held to the beginning of `into`, which may be the log itself; returns the new head."""
    here = to = 0
    while here < head:
        slot, size = log.ints[2 * here], int(log.ints[2 * here + 1])
        if at[slot] == here:
            at[slot] = to
            for k in range(size):
                into.words[to + k] = log.words[here + k]
            to += size
        here += size
    return to


def samples() -> list[tuple[Any, tuple[object, ...]]]:
    """Every kernel with small arguments."""
    log, at, slots, one = make_log(4), np.full(1, RELEASED, np.int64), np.zeros(1, np.int32), np.ones(1, np.int64)
    data, zero = np.zeros(1, np.uint8), np.zeros(1, np.int64)
    return [
        (begin_events, (log, at, slots, 2 * one, 0, 1, zero.copy())),
        (write_part, (log, at, slots, 0, data, zero, zero, 16 * one)),
        (write_words, (log, at, slots, 0, zero, zero, zero, 16 * one)),
        (find_part, (log, at, slots, 0, 1, zero.copy(), zero.copy())),
        (next_part, (log, at, slots, 0, zero.copy(), zero.copy())),
        (read_part, (log, zero, zero, data)),
        (read_words, (log, zero, zero, zero.copy())),
        (push_together, (log, 2, at, log)),
        (release_events, (log, at, slots)),
    ]
