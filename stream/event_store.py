"""The events that open sessions hold, as columns in offset order, found by offset."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from dedup_cache import Jagged
from dedup_cache.arrays import AnyArray, Int64
from dedup_cache.jagged import gather
from stream.columns import ImpressionColumns
from stream.events import EVENT, IMPRESSION, EventBlock

SLACK = 4096
"""Released events that may stay before the store is compacted, beside as many as are held."""


class _Growing:
    """An array that doubles when it is full; `used` is a view, valid until the next append."""

    __slots__ = ("_array", "_size")

    def __init__(self, dtype: DTypeLike, width: int | None = None) -> None:
        self._array: AnyArray = np.empty((256,) if width is None else (256, width), dtype)
        self._size = 0

    @property
    def used(self) -> AnyArray:
        return self._array[: self._size]

    def append(self, more: AnyArray) -> None:
        end = self._size + more.shape[0]
        if end > self._array.shape[0]:
            grown = np.empty((max(end, 2 * self._array.shape[0]), *self._array.shape[1:]), self._array.dtype)
            grown[: self._size] = self.used
            self._array = grown
        self._array[self._size : end] = more
        self._size = end

    def keep(self, mask: AnyArray) -> None:
        self._array = self.used[mask]
        self._size = self._array.shape[0]


class _Lists:
    """A growing column of lists: rows may share values, as those of a snapshot do, and then stay so."""

    def __init__(self) -> None:
        self._values = _Growing(np.int64)
        self._starts = _Growing(np.int64)
        self._lengths = _Growing(np.int32)
        self._in_a_row = True
        """Whether the rows lie one behind the other and cover all values."""

    def append(self, column: Jagged) -> None:
        self._in_a_row &= column.is_contiguous()
        self._starts.append(self._values.used.shape[0] + column.starts.astype(np.int64))
        self._lengths.append(column.lengths)
        self._values.append(column.values)

    def take(self, places: AnyArray | slice) -> Jagged:
        """The rows at some places, nothing shared."""
        starts, lengths = self._starts.used[places], self._lengths.used[places]
        if isinstance(places, slice) and self._in_a_row:
            first = int(starts[0])
            return Jagged.from_lengths(self._values.used[first : first + int(lengths.sum(dtype=np.int64))], lengths)
        return Jagged.from_lengths(gather(self._values.used, starts, lengths), lengths)

    def keep(self, mask: AnyArray) -> None:
        """Forget the other rows, and the values that only they have."""
        self._starts.keep(mask)
        self._lengths.keep(mask)
        starts, lengths = self._starts.used, self._lengths.used
        size, filled = self._values.used.shape[0], lengths > 0
        opened = np.bincount(starts[filled], minlength=size + 1)
        closed = np.bincount((starts + lengths)[filled], minlength=size + 1)
        used = np.cumsum(opened - closed)[:size] > 0
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(used)])
        starts[:] = before[starts]
        self._values.keep(used)
        ends = np.cumsum(lengths, dtype=np.int64)
        total = int(ends[-1]) if ends.size else 0
        self._in_a_row = total == int(before[-1]) and bool((ends - lengths == starts).all())


class EventStore:
    """Holds events from their arrival until their session closes.

    Memory is at most about twice what the open sessions hold, plus what a block brings.
    """

    def __init__(self, empty: ImpressionColumns) -> None:
        self._rows = _Growing(EVENT)
        self._offsets = _Growing(np.int64)
        self._keys = _Growing(np.int64)
        self._record_keys = _Growing(object)
        self._values = _Growing(object)
        self._held = _Growing(np.bool_)
        self._impression_offsets = _Growing(np.int64)
        self._dense = _Growing(np.float32, empty.dense.shape[1])
        self._ids = _Growing(np.int64, empty.ids.shape[1])
        self._has_id = _Growing(np.bool_, empty.ids.shape[1])
        self._scores = _Growing(np.float32, empty.scores.shape[1])
        self._lists = [_Lists() for _ in empty.lists]
        self._released = 0

    def append(self, block: EventBlock) -> None:
        """Take in events whose offsets are above all that came before."""
        rows, impressions = block.rows, block.impressions
        self._rows.append(rows)
        self._offsets.append(rows["offset"])
        self._keys.append(block.keys)
        self._record_keys.append(block.record_keys)
        self._values.append(block.values)
        self._held.append(np.ones(rows.shape[0], np.bool_))
        self._impression_offsets.append(rows["offset"][rows["kind"] == IMPRESSION])
        self._dense.append(impressions.dense)
        self._ids.append(impressions.ids)
        self._has_id.append(impressions.has_id)
        self._scores.append(impressions.scores)
        for lists, column in zip(self._lists, impressions.lists, strict=True):
            lists.append(column)

    def rows(self, offsets: Int64) -> AnyArray:
        """EVENT[N] of the events at `offsets`."""
        return self._rows.used[self._places(offsets)]

    def impressions(self, offsets: Int64) -> ImpressionColumns:
        """The feature columns of the impressions at `offsets`, in their order."""
        return self._columns(np.searchsorted(self._impression_offsets.used, offsets))

    def _columns(self, at: AnyArray | slice) -> ImpressionColumns:
        return ImpressionColumns(
            dense=self._dense.used[at],
            ids=self._ids.used[at],
            has_id=self._has_id.used[at],
            lists=tuple(lists.take(at) for lists in self._lists),
            scores=self._scores.used[at],
        )

    def records(self, offsets: Int64) -> tuple[AnyArray, AnyArray]:
        """object[N], object[N]: the records' own keys and values, bytes or None."""
        places = self._places(offsets)
        return self._record_keys.used[places], self._values.used[places]

    def held(self) -> Int64:
        """The offsets of all events held, ascending."""
        offsets: Int64 = self._offsets.used[self._held.used]
        return offsets

    def block(self, offsets: Int64) -> EventBlock:
        """The events at ascending `offsets`, as they were appended."""
        at = _run(self._places(offsets))
        rows = self._rows.used[at]
        impressions = np.searchsorted(self._impression_offsets.used, rows["offset"][rows["kind"] == IMPRESSION])
        return EventBlock(
            rows=rows,
            keys=self._keys.used[at],
            record_keys=self._record_keys.used[at],
            values=self._values.used[at],
            impressions=self._columns(_run(impressions)),
        )

    def release(self, offsets: Int64) -> None:
        """Forget the events at `offsets`."""
        self._held.used[self._places(offsets)] = False
        self._released += offsets.shape[0]
        if self._released > SLACK and 2 * self._released > self._held.used.shape[0]:
            self._compact()

    def _places(self, offsets: Int64) -> Int64:
        return np.searchsorted(self._offsets.used, offsets)

    def _compact(self) -> None:
        held = self._held.used
        held_impressions = held[self._rows.used["kind"] == IMPRESSION]
        for column in (self._rows, self._offsets, self._keys, self._record_keys, self._values, self._held):
            column.keep(held)
        for lists in self._lists:
            lists.keep(held_impressions)
        for column in (self._impression_offsets, self._dense, self._ids, self._has_id, self._scores):
            column.keep(held_impressions)
        self._released = 0


def _run(places: Int64) -> Int64 | slice:
    """Ascending places, as a slice where they stand next to each other: nothing is copied then."""
    if places.size and int(places[-1]) - int(places[0]) + 1 == places.size:
        return slice(int(places[0]), int(places[-1]) + 1)
    return places
