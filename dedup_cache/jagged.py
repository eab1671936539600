"""Jagged columns: the rows of one feature group, column by column.

Letters in shapes: U rows, N ids, D dense columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dedup_cache import compiled
from dedup_cache.arrays import AnyArray, AnyInt, Float32, Int32, Int64
from dedup_cache.errors import RowError

MAX_IDS = 2**31 - 1


@dataclass(frozen=True, slots=True, eq=False)
class Jagged:
    """One list feature: row i is `values[starts[i] : starts[i] + lengths[i]]`; slices may overlap.

    values int64[N], starts int32[U], lengths int32[U]. Overlapping slices are RecD's partial IKJT (arXiv 2211.05239).
    """

    values: Int64
    starts: Int32
    lengths: Int32

    @staticmethod
    def from_lengths(values: AnyInt, lengths: AnyInt) -> Jagged:
        """Rows one behind the other. RowError where the lengths do not add up to the values."""
        if lengths.size and int(lengths.min()) < 0:
            raise RowError("lengths: a negative length")
        ends = np.cumsum(lengths, dtype=np.int64)
        total = int(ends[-1]) if ends.size else 0
        if total != values.shape[0]:
            raise RowError(f"lengths: they add up to {total}, but there are {values.shape[0]} values")
        if total > MAX_IDS:
            raise RowError(f"values: {total} ids, more than the {MAX_IDS} of one column")
        return Jagged(
            np.ascontiguousarray(values, np.int64),
            (ends - lengths).astype(np.int32),
            np.ascontiguousarray(lengths, np.int32),
        )

    @staticmethod
    def from_rows(rows: Sequence[Sequence[int] | Int64]) -> Jagged:
        """Build from one sequence of ids a row; for tests and small inputs."""
        lengths = np.fromiter((len(row) for row in rows), np.int32, len(rows))
        parts = [np.asarray(row, np.int64) for row in rows]
        values = np.concatenate(parts) if parts else np.empty(0, np.int64)
        return Jagged.from_lengths(values, lengths)

    @property
    def num_rows(self) -> int:
        """Number of rows U."""
        return int(self.starts.shape[0])

    def rows(self) -> list[Int64]:
        """One array per row; a Python loop, for tests and display."""
        pairs = zip(self.starts.tolist(), self.lengths.tolist(), strict=True)
        return [self.values[start : start + length] for start, length in pairs]

    def take(self, indices: AnyArray) -> Jagged:
        """Rows `indices` (numbers or a mask) as a compact column: contiguous, nothing shared."""
        lengths = self.lengths[indices]
        return Jagged.from_lengths(gather(self.values, self.starts[indices], lengths), lengths)

    def select(self, indices: AnyArray) -> Jagged:
        """Rows `indices` as slices of the same values; ids that no row uses any more are dropped."""
        twice = indices.dtype != np.bool_ and not bool((indices[1:] > indices[:-1]).all())
        if not twice and self.is_contiguous():
            return self.take(indices)
        return Jagged(self.values, self.starts[indices], self.lengths[indices]).trim()

    def slice(self, start: int, stop: int) -> Jagged:
        """Rows [start, stop) as views, with the values that lie between the first and the last id they use."""
        starts, lengths = self.starts[start:stop], self.lengths[start:stop]
        if not starts.shape[0]:
            return Jagged(self.values[:0], starts, lengths)
        low = int(starts.min())
        return Jagged(self.values[low : int((starts + lengths).max())], starts - np.int32(low), lengths)

    def trim(self) -> Jagged:
        """The same rows and overlaps without the ids that no row uses; O(N + U)."""
        used = self._used()
        if bool(used.all()):
            return self
        places = np.cumsum(used, dtype=np.int32)
        firsts = np.where(self.lengths > 0, self.starts, 0)
        starts = np.where(self.lengths > 0, places[firsts] - 1, 0) if used.size else np.zeros_like(self.starts)
        return Jagged(self.values[used], starts.astype(np.int32), self.lengths)

    def compact(self) -> tuple[Int64, Int32]:
        """(values, lengths) with the rows one behind the other; a view where they already are."""
        if self.is_contiguous():
            return self.values, self.lengths
        return gather(self.values, self.starts, self.lengths), self.lengths

    def is_contiguous(self) -> bool:
        """Whether the rows lie one behind the other and cover all values."""
        if compiled.ready():
            from dedup_cache.compiled import rows

            if self.starts.dtype == np.int32 and rows.fits(self.values, self.starts, self.lengths):
                return bool(rows.lie_in_a_row(self.starts, self.lengths, self.values.shape[0]))
        ends = np.cumsum(self.lengths, dtype=np.int64)
        total = int(ends[-1]) if ends.size else 0
        return total == self.values.shape[0] and bool((ends - self.lengths == self.starts).all())

    def _used(self) -> AnyArray:
        size = self.values.shape[0]
        opened = np.bincount(self.starts[self.lengths > 0], minlength=size + 1)
        closed = np.bincount((self.starts + self.lengths)[self.lengths > 0], minlength=size + 1)
        return (np.cumsum(opened - closed) > 0)[:size]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows of one feature group: dense float32[U, D] and the list features in schema order."""

    dense: Float32
    lists: dict[str, Jagged]

    @property
    def num_rows(self) -> int:
        """Number of rows U."""
        return int(self.dense.shape[0])

    def take(self, indices: AnyArray) -> Rows:
        """Rows `indices`, every list compact."""
        return Rows(self.dense[indices], {name: column.take(indices) for name, column in self.lists.items()})

    def select(self, indices: AnyArray) -> Rows:
        """Rows `indices`, lists still slices of shared values."""
        return Rows(self.dense[indices], {name: column.select(indices) for name, column in self.lists.items()})

    def slice(self, start: int, stop: int) -> Rows:
        """Rows [start, stop) as views."""
        lists = {name: column.slice(start, stop) for name, column in self.lists.items()}
        return Rows(self.dense[start:stop], lists)

    @staticmethod
    def concat(parts: Sequence[Rows]) -> Rows:
        """The rows of all parts in order; slices stay slices. RowError where the parts differ in features."""
        if not parts:
            raise RowError("rows: nothing to concatenate")
        names = list(parts[0].lists)
        widths = {part.dense.shape[1] for part in parts}
        if len(widths) > 1 or any(list(part.lists) != names for part in parts):
            raise RowError("rows: parts of different feature groups")
        dense = np.concatenate([part.dense for part in parts])
        return Rows(dense, {name: concat_columns([part.lists[name] for part in parts]) for name in names})


def gather(values: Int64, starts: AnyInt, lengths: AnyInt) -> Int64:
    """Copy the slices one behind the other: int64[sum of lengths]. IndexError where one does not lie in `values`."""
    if compiled.ready():
        from dedup_cache.compiled import rows

        if rows.fits(values, starts, lengths):
            copied = np.empty(int(lengths.sum(dtype=np.int64)), np.int64)
            if not rows.copy_slices(values, starts, lengths, copied):
                raise IndexError("a slice does not lie in its values")
            return copied
    ends = np.cumsum(lengths, dtype=np.int64)
    total = int(ends[-1]) if ends.size else 0
    shifts = np.repeat(starts - (ends - lengths), lengths)
    return values[shifts + np.arange(total, dtype=np.int64)]


def concat_columns(columns: Sequence[Jagged]) -> Jagged:
    """The rows of all columns in order; slices stay slices. RowError where there are too many ids for one column."""
    sizes = np.cumsum([0, *(column.values.shape[0] for column in columns)])
    if int(sizes[-1]) > MAX_IDS:
        raise RowError(f"values: {sizes[-1]} ids, more than the {MAX_IDS} of one column")
    return Jagged(
        np.concatenate([column.values for column in columns]),
        np.concatenate([column.starts + np.int32(at) for column, at in zip(columns, sizes, strict=False)]),
        np.concatenate([column.lengths for column in columns]),
    )
