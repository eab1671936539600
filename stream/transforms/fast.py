"""The compiled forms of operations on id lists (`stream.compiled.id_lists`), which give what the plain ones give.

Each returns None where the kernels are not loaded yet, or not made for these arrays: then the plain form does it.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from dedup_cache import Jagged, RowError, compiled
from dedup_cache.arrays import AnyArray, Int32, Int64, UInt64
from dedup_cache.jagged import MAX_IDS

_PLACES = {"intersection": 0, "union": 1, "difference": 2}


def hash_ids(column: Jagged, *, state: UInt64, size: int) -> Jagged | None:
    """SigridHash; slices stay slices."""
    kernels = _kernels(column)
    if kernels is None:
        return None
    made = np.empty_like(column.values)
    kernels.hash_ids(column.values, state[0], np.uint64(size), made)
    return Jagged(made, column.starts, column.lengths)


def hash_windows(column: Jagged, *, n: int, state: UInt64) -> Jagged | None:
    """NGram; lists that share ids become slices of their own."""
    kernels = _kernels(column)
    if kernels is None:
        return None
    made, starts, lengths = _room(_total(column)), np.empty_like(column.starts), np.empty_like(column.lengths)
    total = kernels.hash_windows(*_arrays(column), n, state[0], made, starts, lengths)
    return _lists(made, starts, lengths, total=total)


def hash_places(column: Jagged) -> Jagged | None:
    """Enumerate's pairs."""
    kernels = _kernels(column)
    if kernels is None:
        return None
    seeds = np.empty(int(column.lengths.max(initial=0)), np.uint64)
    made, starts = _room(_total(column)), np.empty_like(column.starts)
    total = kernels.hash_places(*_arrays(column), seeds, made, starts)
    return _lists(made, starts, column.lengths, total=total)


def trim(column: Jagged) -> Jagged | None:
    """`Jagged.trim`."""
    kernels = _kernels(column)
    if kernels is None:
        return None
    size = column.values.shape[0]
    made, starts = np.empty(size, np.int64), np.empty_like(column.starts)
    total = kernels.trim(*_arrays(column), np.zeros(size + 1, np.int32), made, starts)
    return column if total == size else _lists(made, starts, column.lengths, total=total)


def hash_pairs(first: Jagged, second: Jagged, *, max_pairs: int, state: UInt64) -> Jagged | None:
    """Cartesian."""
    kernels = _kernels(first, second)
    if kernels is None:
        return None
    most = np.minimum(first.lengths * second.lengths.astype(np.int64), max_pairs).sum()
    made, starts, lengths = _room(int(most)), np.empty_like(first.starts), np.empty_like(first.lengths)
    total = kernels.hash_pairs(*_arrays(first), *_arrays(second), max_pairs, state[0], made, starts, lengths)
    return _lists(made, starts, lengths, total=total)


def choose_ids(
    first: Jagged, second: Jagged, *, operation: Literal["intersection", "union", "difference"]
) -> Jagged | None:
    """IdListTransform."""
    kernels = _kernels(first, second)
    if kernels is None:
        return None
    made = _room(_total(first) + (_total(second) if operation == "union" else 0))
    starts, lengths = np.empty_like(first.starts), np.empty_like(first.lengths)
    arguments = (_PLACES[operation], *_table(first, second), made, starts, lengths)
    total = kernels.choose_ids(*_arrays(first), *_arrays(second), *arguments)
    return _lists(made, starts, lengths, total=total)


def compare_ids(first: Jagged, second: Jagged, *, overlap_only: bool) -> AnyArray | None:
    """float64[5, U]: over common ids the sums of min(n, m), max(n, m) and n * m, then the sums of n * n and m * m.

    With `overlap_only` the first of them alone is to be read.
    """
    kernels = _kernels(first, second)
    if kernels is None:
        return None
    keys, marks = _table(first, second)
    found = np.empty((first.num_rows, 5))
    counts = np.empty((keys.shape[0], 2), np.int64)
    _check(kernels.compare_ids(*_arrays(first), *_arrays(second), keys, marks, counts, overlap_only, found))
    return found.T


def _kernels(*columns: Jagged) -> Any:
    """The module of kernels, which imports numba only where it is loaded anyway. They look at no bounds."""
    for column in columns[1:]:
        if column.num_rows != columns[0].num_rows:
            raise RowError(f"columns of {columns[0].num_rows} and {column.num_rows} rows")
    if not compiled.ready():
        return None
    for column in columns:
        if not _fits(column):
            return None
    from stream.compiled import id_lists

    return id_lists


def _fits(column: Jagged) -> bool:
    """Whether the kernels are compiled for arrays of these types and layouts."""
    values, starts, lengths = _arrays(column)
    typed = values.dtype == np.int64 and starts.dtype == np.int32 and lengths.dtype == np.int32
    return bool(typed and values.flags.carray and starts.flags.carray and lengths.flags.carray)


def _arrays(column: Jagged) -> tuple[Int64, Int32, Int32]:
    return column.values, column.starts, column.lengths


def _total(column: Jagged) -> int:
    return int(column.lengths.sum(dtype=np.int64))


def _room(ids: int) -> Int64:
    if ids > MAX_IDS:
        raise RowError(f"values: {ids} ids, more than the {MAX_IDS} of one column")
    return np.empty(ids, np.int64)


def _table(first: Jagged, second: Jagged) -> tuple[Int64, Int64]:
    """Keys and marks of a hash table for the longest row."""
    longest = int(first.lengths.max(initial=0)) + int(second.lengths.max(initial=0))
    size = 1 << max(2 * longest - 1, 1).bit_length()
    return np.empty(size, np.int64), np.zeros(size, np.int64)


def _check(count: int) -> None:
    if count < 0:
        raise RowError("a slice does not lie in its values")


def _lists(made: Int64, starts: Int32, lengths: Int32, *, total: int) -> Jagged:
    _check(total)
    return Jagged(made if total == made.shape[0] else made[:total].copy(), starts, lengths)
