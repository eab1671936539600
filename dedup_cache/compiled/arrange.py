"""The lists of rows that are taken from a pool. `Pool.take` has the plain form as well."""

from __future__ import annotations

from typing import Any

import numpy as np

from dedup_cache.arrays import AnyArray, Bool, Int32, Int64
from dedup_cache.compiled.kernel import kernel, part

NEVER, AUTO, ALWAYS = 0, 1, 2
_MAX_CANDIDATES = 4


@part
def _share(starts: AnyArray, lengths: Int32, begins: Int32) -> int:
    """Rows that overlap the ones before them in the pool share their ids; returns how many ids there are."""
    end, low, high = 0, 0, -1
    for u in range(starts.shape[0]):
        begin, length = starts[u], lengths[u]
        if length == 0:
            begins[u] = end
            continue
        if high < 0 or begin < low or begin > high:
            low = high = begin
        begins[u] = end - (high - begin)
        if begin + length > high:
            end += begin + length - high
            high = begin + length
    return end


@part
def _one_behind_the_other(lengths: Int32, begins: Int32) -> int:
    end = 0
    for u in range(lengths.shape[0]):
        begins[u] = end
        end += lengths[u]
    return end


@part
def _first_match(values: Int64, u: int, u_length: int, v: int, v_length: int) -> int:
    """The first place of u from which on u and v agree as far as both go; -1 without one."""
    tried = 0
    for place in range(u_length):
        if values[u + place] != values[v]:
            continue
        shared = min(u_length - place, v_length)
        same = 1
        while same < shared and values[u + place + same] == values[v + same]:
            same += 1
        if same == shared:
            return place
        tried += 1
        if tried == _MAX_CANDIDATES:
            return -1
    return -1


@part
def _link(values: Int64, starts: AnyArray, lengths: Int32, shifts: Int64, heads: Int64) -> None:
    """By row, how far it begins behind the one before it, and whether it begins a chain; empty rows are left out."""
    before = -1
    place = far = near = 0
    for v in range(starts.shape[0]):
        if lengths[v] == 0:
            continue
        linked = False
        shift = 0
        if before >= 0:
            shift = _first_match(values, starts[before], lengths[before], starts[v], lengths[v])
            linked = shift >= 0
            if not linked:
                shift = -_first_match(values, starts[v], lengths[v], starts[before], lengths[before])
                linked = shift <= 0
        if not linked:
            shifts[v], heads[v] = 0, 1
            place, far, near = 0, lengths[v], 0
        else:
            begin, end = place + shift, place + shift + lengths[v]
            behind = end <= place + lengths[before] or place + lengths[before] == far
            ahead = begin >= place or place == near
            shifts[v], heads[v] = shift, 0 if behind and ahead else 1
            place, far, near = begin, max(far, end), min(near, begin)
        before = v


@part
def _chain(lengths: Int32, shifts: Int64, heads: Int64, begins: Int32) -> int:
    """Chains one behind the other, each as long as its rows reach; returns how many ids that takes."""
    size = 0
    first = 0
    rows = lengths.shape[0]
    while first < rows:
        if lengths[first] == 0:
            begins[first] = 0
            first += 1
            continue
        place = low = 0
        high = lengths[first]
        last = first + 1
        while last < rows and (lengths[last] == 0 or heads[last] == 0):
            if lengths[last]:
                place += shifts[last]
                low, high = min(low, place), max(high, place + lengths[last])
            last += 1
        place = 0
        for u in range(first, last):
            if lengths[u] == 0:
                begins[u] = 0
                continue
            if u > first:
                place += shifts[u]
            begins[u] = size + place - low
        size += high - low
        first = last
    return size


@kernel
def arrange(
    pool: tuple[Int64, Int64, Int32],
    chosen: Int64,
    inline: Bool,
    slicing: Int64,
    placed: Int32,
    ends: Int64,
    scratch: Int64,
) -> bool:
    """Where rows `chosen` int64[U] of a pool (its values, starts, lengths) go, list by list.

    Filled: `placed` int32[2, K, U], where row u of list k begins among that list's ids, and how many it has, 0 where it
    is not `inline`; where the ids of list k end if all lists stand one behind the other (`ends` int64[K]).
    `scratch` is int64[3, U]. False where a slice does not lie in the pool.
    """
    values, starts, lengths = pool
    begins, sizes, sources = placed[0], placed[1], scratch[0]
    end = 0
    for k in range(starts.shape[0]):
        total = 0
        for u in range(chosen.shape[0]):
            row = chosen[u]
            begin, length = starts[k, row], lengths[k, row]
            if begin < 0 or length < 0 or begin + length > values.shape[0]:
                return False
            sources[u], sizes[k, u] = begin, length if inline[u] else 0
            total += sizes[k, u]
        rows = chosen.shape[0]
        if slicing[k] == NEVER:
            size = _one_behind_the_other(sizes[k], begins[k])
        else:
            size = _share(sources, sizes[k], begins[k])
        if size == total and rows > 1 and (slicing[k] == ALWAYS or (slicing[k] == AUTO and size > rows)):
            _link(values, sources, sizes[k], scratch[1], scratch[2])
            size = _chain(sizes[k], scratch[1], scratch[2], begins[k])
            saved = total - size
            if saved < 1 or (slicing[k] == AUTO and 2 * saved < rows):
                size = _share(sources, sizes[k], begins[k])
        end += size
        ends[k] = end
    return True


@kernel
def copy_rows(values: Int64, starts: Int64, chosen: Int64, placed: Int32, ends: Int64, copied: Int64) -> None:
    """Bring the ids to where `arrange` said."""
    begins, sizes = placed[0], placed[1]
    base = 0
    for k in range(begins.shape[0]):
        for u in range(chosen.shape[0]):
            source, target = starts[k, chosen[u]], base + begins[k, u]
            for p in range(sizes[k, u]):
                copied[target + p] = values[source + p]
        base = ends[k]


def samples() -> list[tuple[Any, tuple[object, ...]]]:
    """See `rows.samples`."""
    one, places, row = np.zeros(1, np.int64), np.zeros((1, 1), np.int64), np.zeros((1, 1), np.int32)
    inline, placed, scratch = np.ones(1, np.bool_), np.zeros((2, 1, 1), np.int32), np.zeros((3, 1), np.int64)
    return [
        (arrange, ((one, places, row), one, inline, one, placed, one, scratch)),
        (copy_rows, (one, places, one, placed, one, one)),
    ]
