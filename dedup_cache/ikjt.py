"""IKJT: the distinct rows of a feature group and one inverse from sample to row (RecD, arXiv 2211.05239, O3).

Letters in shapes: B samples, U distinct rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dedup_cache import compiled
from dedup_cache.arrays import AnyInt, Bool, Int32, Int64, UInt32, UInt64
from dedup_cache.errors import RowError
from dedup_cache.fingerprint import fingerprints
from dedup_cache.jagged import Jagged, Rows


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """One feature group of a batch.

    `rows` holds the U distinct rows, `inverse` int32[B] the row of every sample. Rows may stand by reference:
    `ids` int64[U] (-1: none) and `checks` uint32[U] name them in the batch's generation, and `inline` bool[U] says
    whether row u stands in `rows`; where it does not, `rows` has an empty row there. None: every row is inline.
    """

    rows: Rows
    inverse: Int32
    ids: Int64 | None = None
    checks: UInt32 | None = None
    inline: Bool | None = None

    @property
    def num_samples(self) -> int:
        """Number of samples B."""
        return int(self.inverse.shape[0])

    def missing(self) -> Int64:
        """Return the numbers of the rows that are named by reference only."""
        return np.empty(0, np.int64) if self.inline is None else np.flatnonzero(~self.inline)


class Deduplicated(NamedTuple):
    """A group, and the fingerprints uint64[U, 2] of its distinct rows."""

    group: Group
    fingerprints: UInt64


class Distinct(NamedTuple):
    """`first` int64[U]: where each distinct key stands first; `inverse` int32[B]: the distinct key of each."""

    first: Int64
    inverse: Int32


def deduplicate(rows: Rows, *, salt: bytes) -> Deduplicated:
    """Distinct rows over the whole batch, in order of first appearance; slices of shared values stay slices."""
    prints = fingerprints(rows, salt=salt)
    first, inverse = distinct(prints)
    if first.size == rows.num_rows:
        return Deduplicated(Group(rows, inverse), prints)
    return Deduplicated(Group(rows.select(first), inverse), prints[first])


def distinct(prints: UInt64) -> Distinct:
    """Find the distinct fingerprints among uint64[B, 2], in order of first appearance."""
    if compiled.ready() and prints.dtype == np.uint64 and prints.flags.carray:
        from dedup_cache.compiled.distinct import find_distinct

        size = prints.shape[0]
        first, inverse = np.empty(size, np.int64), np.empty(size, np.int32)
        count = find_distinct(prints, np.empty(1 << (2 * size).bit_length(), np.int32), first, inverse)
        return Distinct(first[:count], inverse)
    low, high = prints[:, 0], prints[:, 1]
    order = np.argsort(low)
    changed_low, changed_high = _changes(low[order]), _changes(high[order])
    if bool((changed_high & ~changed_low).any()):
        order = np.lexsort((high, low))
        changed_low, changed_high = _changes(low[order]), _changes(high[order])
    run_starts = np.flatnonzero(changed_low | changed_high)
    firsts = np.minimum.reduceat(order, run_starts) if run_starts.size else np.empty(0, np.int64)
    ranks = np.argsort(firsts)
    places = np.empty(ranks.size, np.int32)
    places[ranks] = np.arange(ranks.size, dtype=np.int32)
    inverse = np.empty(order.size, np.int32)
    inverse[order] = np.repeat(places, np.diff(np.append(run_starts, order.size)))
    return Distinct(firsts[ranks], inverse)


def expand(group: Group) -> Rows:
    """Plain rows, one per sample. RowError where rows are still named by reference."""
    if group.missing().size:
        raise RowError(f"rows: {group.missing().size} rows stand by reference; resolve them first")
    return group.rows.take(group.inverse)


def refer(group: Group, *, ids: Int64, checks: UInt32, inline: Bool) -> Group:
    """Name rows by (id, check), and take out those that are not `inline`; each array is [U]."""
    if inline.all():
        return Group(group.rows, group.inverse, ids, checks, inline)
    dense = np.where(inline[:, None], group.rows.dense, np.float32(0))
    lists = {name: _blank(column, inline) for name, column in group.rows.lists.items()}
    return Group(Rows(dense, lists), group.inverse, ids, checks, inline)


def resolve(group: Group, fetched: Rows, indices: AnyInt) -> Group:
    """Put `fetched` rows in at row numbers `indices`, which become inline; the other rows stay as they are."""
    if fetched.num_rows != indices.shape[0]:
        raise RowError(f"rows: {fetched.num_rows} rows fetched for {indices.shape[0]} places")
    if group.inline is None or bool(group.inline[indices].any()):
        raise RowError("rows: a fetched row already stands inline")
    places = np.arange(group.rows.num_rows)
    places[indices] = group.rows.num_rows + np.arange(indices.shape[0])
    inline = group.inline.copy()
    inline[indices] = True
    return Group(Rows.concat([group.rows, fetched]).select(places), group.inverse, group.ids, group.checks, inline)


def _blank(column: Jagged, inline: Bool) -> Jagged:
    starts, lengths = (np.where(inline, part, 0).astype(np.int32) for part in (column.starts, column.lengths))
    return Jagged(column.values, starts, lengths).trim()


def _changes(ordered: UInt64) -> Bool:
    changed = np.ones(ordered.size, np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=changed[1:])
    return changed
