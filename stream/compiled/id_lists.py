"""Kernels of the transforms over id lists. Every one has a plain form in `stream.transforms`, which says what it does.

Lists are slices as in `dedup_cache.Jagged`: int64 values, int32 starts and lengths. Kernels return -1 where a slice
does not lie in its values. Sets of a row's ids are hash tables in the caller's `keys` and `marks`, both a power of two
long and at least twice the row's ids; marks grow from row to row, so that a table is never cleared.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dedup_cache.arrays import AnyArray, Int32, Int64
from dedup_cache.compiled.kernel import kernel, part

INTERSECTION, UNION, DIFFERENCE = 0, 1, 2
FEW = 48
"""Up to so many ids in each list, comparing each with all is faster than a table."""
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY_1, _MULTIPLY_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_27, _30, _31, _32 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(32)
_LOW = np.uint64(2**32 - 1)


@part
def _mix(x: np.uint64) -> np.uint64:
    x = (x ^ (x >> _30)) * _MULTIPLY_1
    x = (x ^ (x >> _27)) * _MULTIPLY_2
    return x ^ (x >> _31)


@part
def _combine(state: np.uint64, value: int) -> np.uint64:
    mixed: np.uint64 = _mix((state + _GAMMA) * _GAMMA + np.uint64(value))
    return mixed


@part
def _lies_in(values: Int64, starts: Int32, lengths: Int32, u: int) -> bool:
    inside: bool = starts[u] >= 0 and lengths[u] >= 0 and starts[u] + lengths[u] <= values.shape[0]
    return inside


@kernel
def hash_ids(values: Int64, state: np.uint64, size: np.uint64, made: Int64) -> None:
    """int64[N]: each id hashed into [0, size)."""
    for i in range(values.shape[0]):
        h = _combine(state, values[i])
        made[i] = np.int64(((h >> _32) * size + (((h & _LOW) * size) >> _32)) >> _32)


@kernel
def hash_windows(
    values: Int64,
    starts: Int32,
    lengths: Int32,
    n: int,
    state: np.uint64,
    made: Int64,
    made_starts: Int32,
    made_lengths: Int32,
) -> int:
    """Each window of `n` ids of each list as one id, compact; returns how many."""
    at = 0
    for u in range(starts.shape[0]):
        if not _lies_in(values, starts, lengths, u):
            return -1
        count = max(lengths[u] - n + 1, 0)
        made_starts[u], made_lengths[u] = at, count
        hashed = made[at : at + count]
        for i in range(count):
            hashed[i] = np.int64(state)
        for p in range(n):
            ids = values[starts[u] + p : starts[u] + p + count]
            for i in range(count):
                hashed[i] = np.int64(_combine(np.uint64(hashed[i]), ids[i]))
        at += count
    return at


@kernel
def hash_places(values: Int64, starts: Int32, lengths: Int32, seeds: AnyArray, made: Int64, made_starts: Int32) -> int:
    """Place and id of each id as one, compact; returns how many. `seeds` is uint64[longest list], to work in."""
    for p in range(seeds.shape[0]):
        seeds[p] = _mix(np.uint64(p) + _GAMMA)
    at = 0
    for u in range(starts.shape[0]):
        if not _lies_in(values, starts, lengths, u):
            return -1
        count = lengths[u]
        made_starts[u] = at
        ids, hashed = values[starts[u] : starts[u] + count], made[at : at + count]
        for p in range(count):
            hashed[p] = np.int64(_combine(seeds[p], ids[p]))
        at += count
    return at


@kernel
def trim(values: Int64, starts: Int32, lengths: Int32, marks: Int32, made: Int64, made_starts: Int32) -> int:
    """The ids that a list uses, and where the lists start among them; returns how many. `marks` is N + 1 zeros."""
    for u in range(starts.shape[0]):
        if not _lies_in(values, starts, lengths, u):
            return -1
        if lengths[u] > 0:
            marks[starts[u]] += 1
            marks[starts[u] + lengths[u]] -= 1
    at = uses = 0
    for i in range(values.shape[0]):
        uses += marks[i]
        marks[i] = at
        if uses > 0:
            made[at] = values[i]
            at += 1
    for u in range(starts.shape[0]):
        made_starts[u] = marks[starts[u]] if lengths[u] > 0 else 0
    return at


@kernel
def hash_pairs(
    values_a: Int64,
    starts_a: Int32,
    lengths_a: Int32,
    values_b: Int64,
    starts_b: Int32,
    lengths_b: Int32,
    most: int,
    state: np.uint64,
    made: Int64,
    made_starts: Int32,
    counts: Int32,
) -> int:
    """The first `most` pairs of each row's product, as ids; returns how many, and `counts` by row."""
    at = 0
    for u in range(starts_a.shape[0]):
        if not _lies_in(values_a, starts_a, lengths_a, u) or not _lies_in(values_b, starts_b, lengths_b, u):
            return -1
        width = int(lengths_b[u])
        end = at + min(int(lengths_a[u]) * width, most)
        made_starts[u], counts[u] = at, end - at
        p = 0
        while at < end:
            h = _combine(state, values_a[starts_a[u] + p])
            for q in range(min(width, end - at)):
                made[at] = np.int64(_combine(h, values_b[starts_b[u] + q]))
                at += 1
            p += 1
    return at


@part
def _slot(keys: Int64, marks: Int64, value: int, empty: int) -> int:
    """Where the value stands, or would; slots whose mark is at most `empty` are free."""
    last = keys.shape[0] - 1
    spread = (np.uint64(value) ^ (np.uint64(value) >> _32)) * _GAMMA
    at: int = np.int64(spread >> _32) & last
    while marks[at] > empty and keys[at] != value:
        at = (at + 1) & last
    return at


@part
def _count(ids: Int64, value: int) -> int:
    """How often the value stands in the list; without an early end, so that several are compared at once."""
    count = 0
    for p in range(ids.shape[0]):
        count += ids[p] == value
    return count


@part
def _choose_few(first: Int64, second: Int64, operation: int, made: Int64) -> int:
    """What `choose_ids` makes of two short lists, by comparing each id with all."""
    at = 0
    for p in range(first.shape[0]):
        value = first[p]
        if operation != UNION and (_count(second, value) > 0) != (operation == INTERSECTION):
            continue
        if _count(made[:at], value) == 0:
            made[at] = value
            at += 1
    if operation == UNION:
        for q in range(second.shape[0]):
            if _count(made[:at], second[q]) == 0:
                made[at] = second[q]
                at += 1
    return at


@part
def _choose_many(
    first: Int64, second: Int64, operation: int, keys: Int64, marks: Int64, empty: int, made: Int64
) -> int:
    """The same of long lists, by a table."""
    at, other, done = 0, empty + 1, empty + 2
    if operation != UNION:
        for q in range(second.shape[0]):
            slot = _slot(keys, marks, second[q], empty)
            keys[slot], marks[slot] = second[q], other
    for p in range(first.shape[0]):
        slot = _slot(keys, marks, first[p], empty)
        if marks[slot] == other if operation == INTERSECTION else marks[slot] <= empty:
            made[at] = first[p]
            at += 1
            keys[slot], marks[slot] = first[p], done
    if operation == UNION:
        for q in range(second.shape[0]):
            slot = _slot(keys, marks, second[q], empty)
            if marks[slot] <= empty:
                made[at] = second[q]
                at += 1
                keys[slot], marks[slot] = second[q], done
    return at


@kernel
def choose_ids(
    values_a: Int64,
    starts_a: Int32,
    lengths_a: Int32,
    values_b: Int64,
    starts_b: Int32,
    lengths_b: Int32,
    operation: int,
    keys: Int64,
    marks: Int64,
    made: Int64,
    made_starts: Int32,
    counts: Int32,
) -> int:
    """Union, intersection or difference of both lists, each id once; returns how many ids, and `counts` by row."""
    at = 0
    for u in range(starts_a.shape[0]):
        if not _lies_in(values_a, starts_a, lengths_a, u) or not _lies_in(values_b, starts_b, lengths_b, u):
            return -1
        first = values_a[starts_a[u] : starts_a[u] + lengths_a[u]]
        second = values_b[starts_b[u] : starts_b[u] + lengths_b[u]]
        if first.shape[0] <= FEW and second.shape[0] <= FEW:
            count = _choose_few(first, second, operation, made[at:])
        else:
            count = _choose_many(first, second, operation, keys, marks, 2 * u, made[at:])
        made_starts[u], counts[u] = at, count
        at += count
    return at


@part
def _compare_few(first: Int64, second: Int64, overlap_only: bool, found: AnyArray) -> None:
    """What `compare_ids` finds in two short lists, by comparing each id with all."""
    least = most = dot = squares_a = squares_b = 0
    for p in range(first.shape[0]):
        m = _count(second, first[p])
        if m > 0:
            rank = _count(first[:p], first[p])
            least += rank < m
            if not overlap_only:
                most += max(_count(first, first[p]), m) if rank == 0 else 0
                dot += m
    if not overlap_only:
        for p in range(first.shape[0]):
            squares_a += _count(first, first[p])
        for q in range(second.shape[0]):
            squares_b += _count(second, second[q])
    found[0], found[1], found[2], found[3], found[4] = least, most, dot, squares_a, squares_b


@part
def _compare_many(
    first: Int64, second: Int64, keys: Int64, marks: Int64, counts: Int64, empty: int, found: AnyArray
) -> None:
    """The same in long lists, by a table."""
    least = most = dot = squares_a = squares_b = 0
    for p in range(first.shape[0]):
        slot = _slot(keys, marks, first[p], empty)
        if marks[slot] <= empty:
            keys[slot], marks[slot] = first[p], empty + 1
            counts[slot, 0] = counts[slot, 1] = 0
        squares_a += 2 * counts[slot, 0] + 1
        counts[slot, 0] += 1
    for q in range(second.shape[0]):
        slot = _slot(keys, marks, second[q], empty)
        if marks[slot] <= empty:
            keys[slot], marks[slot] = second[q], empty + 1
            counts[slot, 0] = counts[slot, 1] = 0
        n, m = counts[slot, 0], counts[slot, 1]
        counts[slot, 1] += 1
        squares_b += 2 * m + 1
        dot += n
        least += m < n
        # The greater of both grows from nothing to n at the first m, and by one from m = n on.
        most += 0 if n == 0 else n if m == 0 else m >= n
    found[0], found[1], found[2], found[3], found[4] = least, most, dot, squares_a, squares_b


@kernel
def compare_ids(
    values_a: Int64,
    starts_a: Int32,
    lengths_a: Int32,
    values_b: Int64,
    starts_b: Int32,
    lengths_b: Int32,
    keys: Int64,
    marks: Int64,
    counts: Int64,
    overlap_only: bool,
    found: AnyArray,
) -> int:
    """How often ids stand in both lists, float64[U, 5]; returns the rows. `counts` is int64[table, 2].

    Sums over the common ids of min(n, m), max(n, m) and n * m, then over those of each list of n * n and m * m; the
    first of them is sure where only that is asked for.
    """
    for u in range(starts_a.shape[0]):
        if not _lies_in(values_a, starts_a, lengths_a, u) or not _lies_in(values_b, starts_b, lengths_b, u):
            return -1
        first = values_a[starts_a[u] : starts_a[u] + lengths_a[u]]
        second = values_b[starts_b[u] : starts_b[u] + lengths_b[u]]
        if first.shape[0] <= FEW and second.shape[0] <= FEW:
            _compare_few(first, second, overlap_only, found[u])
        else:
            _compare_many(first, second, keys, marks, counts, u, found[u])
    return len(starts_a)


def samples() -> list[tuple[Any, tuple[object, ...]]]:
    """Every kernel with small arguments."""
    values, row, one = np.zeros(2, np.int64), np.zeros(1, np.int32), np.uint64(1)
    lists, table, rows = (values, row, row), (values.copy(), values.copy()), (row.copy(), row.copy())
    made = values.copy()
    return [
        (hash_ids, (values, one, one, made)),
        (hash_windows, (*lists, 2, one, made, *rows)),
        (hash_places, (*lists, np.zeros(1, np.uint64), made, rows[0])),
        (trim, (*lists, np.zeros(3, np.int32), made, rows[0])),
        (hash_pairs, (*lists, *lists, 1, one, made, *rows)),
        (choose_ids, (*lists, *lists, UNION, *table, made, *rows)),
        (compare_ids, (*lists, *lists, *table, np.zeros((2, 2), np.int64), True, np.zeros((1, 5)))),
    ]
