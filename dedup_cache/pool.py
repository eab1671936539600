"""The rows of many samples in one piece, from which the distinct rows of each batch are taken.

Letters in shapes: R rows of the pool, U rows taken, D dense columns, K list features, N ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from dedup_cache import compiled
from dedup_cache.arrays import AnyArray, AnyInt, Bool, Float32, Int32, Int64, UInt64
from dedup_cache.errors import RowError
from dedup_cache.fingerprint import fingerprints
from dedup_cache.ikjt import distinct
from dedup_cache.jagged import Jagged, Rows
from dedup_cache.schema import Slicing
from dedup_cache.slices import sliced

_SLICING = {Slicing.NEVER: 0, Slicing.AUTO: 1, Slicing.ALWAYS: 2}


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """Rows of one feature group: list k of row r is `values[starts[k, r] : starts[k, r] + lengths[k, r]]`.

    dense float32[R, D], values int64[N], starts int64[K, R], lengths int32[K, R]; slices may overlap.
    """

    names: tuple[str, ...]
    dense: Float32
    values: Int64
    starts: Int64
    lengths: Int32

    @staticmethod
    def of(parts: Sequence[Rows]) -> Pool:
        """The rows of all parts, in order."""
        names = tuple(parts[0].lists)
        columns = [part.lists[name] for name in names for part in parts]
        dense = np.concatenate([part.dense for part in parts])
        num_rows = dense.shape[0]
        if not columns:
            none = np.empty((0, num_rows), np.int64)
            return Pool(names, dense, np.empty(0, np.int64), none, none.astype(np.int32))
        sizes = np.array([column.values.shape[0] for column in columns])
        starts = np.concatenate([column.starts for column in columns]).astype(np.int64)
        starts += np.repeat(np.cumsum(sizes) - sizes, [column.num_rows for column in columns])
        shape = (len(names), num_rows)
        lengths = np.concatenate([column.lengths for column in columns]).reshape(shape)
        return Pool(names, dense, np.concatenate([c.values for c in columns]), starts.reshape(shape), lengths)

    @property
    def num_rows(self) -> int:
        """Number of rows R."""
        return int(self.dense.shape[0])

    def fingerprints(self, *, salt: bytes) -> UInt64:
        """uint64[R, 2], see `fingerprint`."""
        return fingerprints(Rows(self.dense, self._columns(self.starts, self.lengths)), salt=salt)

    def row_ids(self) -> Int64:
        """int64[R]: how many ids each row has in all its lists."""
        count: Int64 = self.lengths.sum(axis=0, dtype=np.int64)
        return count

    def take(self, chosen: Int64, *, slicing: Sequence[Slicing], inline: Bool | None = None) -> Rows:
        """Rows `chosen` int64[U], each once; where not `inline` bool[U], an empty one stands.

        A list whose rows overlap in the pool stays slices: of neighbours that overlap each id is copied once. Any other
        is made into slices as `slicing` says, see `slices`. IndexError where a slice does not lie in the pool; RowError
        where `chosen` does not, or where `slicing` or `inline` is not as long as it has to be.
        """
        self._check(chosen, slicing, inline)
        dense = self.dense[chosen]
        if inline is not None:
            dense[~inline] = 0
        if compiled.ready():
            return Rows(dense, self._arranged(chosen, slicing, inline))
        return Rows(dense, self._plainly(chosen, slicing, inline))

    def _check(self, chosen: Int64, slicing: Sequence[Slicing], inline: Bool | None) -> None:
        """The kernels look at no bounds."""
        if len(slicing) != len(self.names):
            raise RowError(f"slicing: {len(slicing)} of them for {len(self.names)} lists")
        if chosen.size and not 0 <= int(chosen.min()) <= int(chosen.max()) < self.num_rows:
            raise RowError(f"chosen: rows {chosen.min()} to {chosen.max()} of a pool of {self.num_rows}")
        if inline is not None and inline.shape != chosen.shape:
            raise RowError(f"inline: {inline.shape[0]} flags for {chosen.shape[0]} rows")

    def _arranged(self, chosen: Int64, slicing: Sequence[Slicing], inline: Bool | None) -> dict[str, Jagged]:
        from dedup_cache.compiled import arrange as kernels

        num_lists, num_rows = len(self.names), chosen.shape[0]
        placed, ends = np.empty((2, num_lists, num_rows), np.int32), np.zeros(num_lists, np.int64)
        wanted = np.array([_SLICING[one] for one in slicing], np.int64)
        there = np.ones(num_rows, np.bool_) if inline is None else inline
        pool, scratch = (self.values, self.starts, self.lengths), np.empty((3, num_rows), np.int64)
        if not kernels.arrange(pool, chosen, there, wanted, placed, ends, scratch):
            raise IndexError("a slice does not lie in its values")
        bounds = [0, *ends.tolist()]
        copied = np.empty(bounds[-1], np.int64)
        kernels.copy_rows(self.values, self.starts, chosen, placed, ends, copied)
        return {
            name: Jagged(copied[first:last], placed[0, k], placed[1, k])
            for k, (name, (first, last)) in enumerate(zip(self.names, pairwise(bounds), strict=True))
        }

    def _plainly(self, chosen: Int64, slicing: Sequence[Slicing], inline: Bool | None) -> dict[str, Jagged]:
        lengths = self.lengths[:, chosen] if inline is None else np.where(inline, self.lengths[:, chosen], 0)
        columns = self._columns(self.starts[:, chosen], lengths.astype(np.int32))
        return sliced({name: _share(column) for name, column in columns.items()}, slicing)

    def _columns(self, starts: AnyArray, lengths: Int32) -> dict[str, Jagged]:
        return {name: Jagged(self.values, starts[k], lengths[k]) for k, name in enumerate(self.names)}


def _share(column: Jagged) -> Jagged:
    """The rows without the ids between them; one that begins among the ids copied last begins there again."""
    begins, pieces, end, low, high = [], [np.empty(0, np.int64)], 0, 0, -1
    for begin, length in zip(column.starts.tolist(), column.lengths.tolist(), strict=True):
        if not length:
            begins.append(end)
            continue
        if high < 0 or not low <= begin <= high:
            low = high = begin
        begins.append(end - (high - begin))
        if begin + length > high:
            pieces.append(column.values[high : begin + length])
            end += begin + length - high
            high = begin + length
    return Jagged(np.concatenate(pieces), np.array(begins, np.int32), column.lengths)


class Picked(NamedTuple):
    """The distinct rows among some samples, in order of first appearance: `chosen` int64[U], `inverse` int32[B]."""

    chosen: Int64
    inverse: Int32


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """What one group holds for S samples: fingerprints uint64[R, 2] of the pool's rows, and each sample's row."""

    pool: Pool
    fingerprints: UInt64
    row_of_sample: AnyInt | None = None
    """int[S]; None: a row a sample, in order."""

    def pick(self, first: int, last: int) -> Picked:
        """The distinct rows of samples [first, last)."""
        if self.row_of_sample is None:
            found = distinct(self.fingerprints[first:last])
            return Picked(found.first + first, found.inverse)
        rows = self.row_of_sample[first:last].astype(np.int64)
        found = distinct(self.fingerprints[rows])
        return Picked(rows[found.first], found.inverse)
