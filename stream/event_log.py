"""The features of held events, packed one event behind the other: what a session's close reads at once.

Records' own bytes are kept of engagements, which may leave unmatched, and not of impressions: those of the few that
leave after a merge of sessions are read again from the topic.

An event lies in a few neighbouring lines of memory, so what it costs does not depend on how many others are held.
Letters in shapes: N events, I of these impressions, L list features.
"""

from __future__ import annotations

import numpy as np

from dedup_cache import Jagged
from dedup_cache.arrays import AnyArray, Int32, Int64, UInt8
from stream.columns import ImpressionColumns
from stream.compiled.event_log import (
    RELEASED,
    begin_events,
    find_part,
    header_words,
    make_log,
    next_part,
    push_together,
    read_part,
    read_words,
    release_events,
    write_part,
    write_words,
)
from stream.event_block import IMPRESSION, EventBlock, objects

MIN_WORDS = 1 << 12
SPARSE = 8


class EventLog:
    """Events by slot, a number that the caller chooses. Memory is about twice what is held, and is given back."""

    def __init__(self, like: ImpressionColumns) -> None:
        self._fixed = [(one.dtype, one.shape[1]) for one in _matrices(like)]
        self._num_lists = len(like.lists)
        self._parts = self._num_lists + 3
        self._log = make_log(MIN_WORDS)
        self._head = 0
        self._held_words = 0
        self._last_words = 0
        self._at = np.full(0, RELEASED, np.int64)

    @property
    def num_bytes(self) -> int:
        """Memory that it keeps."""
        return int(self._log.words.nbytes + self._at.nbytes)

    def reserve_slots(self, count: int) -> None:
        """Slots up to `count` may come."""
        more = count - self._at.shape[0]
        self._at = np.concatenate([self._at, np.full(more, RELEASED, np.int64)])

    def append(self, slots: Int32, events: EventBlock) -> None:
        """Take in N events under free slots."""
        shown = events.rows["kind"] == IMPRESSION
        lists, parts = self._split_lists(events, shown), self._split_rest(events, shown)
        sizes = np.full(slots.shape[0], header_words(self._parts))
        for _, _, lengths in lists:
            sizes += lengths
        sizes += (sum(np.maximum(lengths, 0) for _, _, lengths in parts) + 7) >> 3
        total = int(sizes.sum())
        self._last_words = total
        self._make_room(total)
        cursors = np.empty(slots.shape[0], np.int64)
        begin_events(self._log, self._at, slots, sizes, self._head, self._parts, cursors)
        for number, (values, starts, lengths) in enumerate(lists):
            write_words(self._log, self._at, slots, number, values, starts, lengths, cursors)
        for number, (data, starts, lengths) in enumerate(parts, self._num_lists):
            write_part(self._log, self._at, slots, number, data, starts, lengths, cursors)
        self._head += total
        self._held_words += total

    def impressions(self, slots: Int32) -> ImpressionColumns:
        """The feature columns of the impressions at `slots`, in their order."""
        places, lengths = self._find(slots, 0)
        lists = []
        for number in range(self._num_lists):
            values = np.empty(int(np.maximum(lengths, 0).sum()) >> 3, np.int64)
            read_words(self._log, places, lengths, values)
            lists.append(Jagged.from_lengths(values, lengths >> 3))
            next_part(self._log, self._at, slots, number + 1, places, lengths)
        width = sum(dtype.itemsize * columns for dtype, columns in self._fixed)
        fixed = self._read(places, lengths).reshape(slots.shape[0], width)
        matrices, at = [], 0
        for dtype, columns in self._fixed:
            end = at + dtype.itemsize * columns
            matrices.append(
                np.ascontiguousarray(fixed[:, at:end]).reshape(-1).view(dtype).reshape(slots.shape[0], columns)
            )
            at = end
        dense, ids, has_id, scores = matrices
        return ImpressionColumns(dense=dense, ids=ids, has_id=has_id, lists=tuple(lists), scores=scores)

    def records(self, slots: Int32) -> tuple[AnyArray, AnyArray]:
        """object[N], object[N]: the records' own keys and values, bytes or None; None of impressions."""
        places, lengths = self._find(slots, self._num_lists + 1)
        keys = self._texts(places, lengths)
        next_part(self._log, self._at, slots, self._num_lists + 2, places, lengths)
        return keys, self._texts(places, lengths)

    def release(self, slots: Int32) -> None:
        """Forget the events at `slots`."""
        self._held_words -= release_events(self._log, self._at, slots)
        if self._log.words.shape[0] > SPARSE * max(MIN_WORDS, self._last_words, self._held_words):
            self._move(max(MIN_WORDS, 2 * self._held_words))

    def _split_lists(self, events: EventBlock, shown: AnyArray) -> list[tuple[Int64, Int64, Int64]]:
        """The parts of whole words: (int64 values, int64[N] starts, int64[N] lengths). Engagements have no features."""
        columns = (column.compact() for column in events.impressions.lists)
        return [_spread(values, lengths.astype(np.int64), shown) for values, lengths in columns]

    def _split_rest(self, events: EventBlock, shown: AnyArray) -> list[tuple[UInt8, Int64, Int64]]:
        """The other parts: (bytes, int64[N] starts, int64[N] lengths)."""
        fixed = np.concatenate([_bytes_of(matrix) for matrix in _matrices(events.impressions)], axis=1)
        return [
            _spread(fixed.reshape(-1), np.full(fixed.shape[0], fixed.shape[1]), shown),
            _texts_of(events.record_keys, ~shown),
            _texts_of(events.values, ~shown),
        ]

    def _find(self, slots: Int32, number: int) -> tuple[Int64, Int64]:
        places, lengths = np.empty((2, slots.shape[0]), np.int64)
        find_part(self._log, self._at, slots, number, self._parts, places, lengths)
        return places, lengths

    def _read(self, places: Int64, lengths: Int64) -> UInt8:
        copied = np.empty(int(np.maximum(lengths, 0).sum()), np.uint8)
        read_part(self._log, places, lengths, copied)
        return copied

    def _texts(self, starts: Int64, lengths: Int64) -> AnyArray:
        data = self._read(starts, lengths).tobytes()
        sizes = np.maximum(lengths, 0)
        ends = np.cumsum(sizes)
        places = zip((ends - sizes).tolist(), ends.tolist(), strict=True)
        texts = objects([data[begin:end] for begin, end in places])
        texts[lengths < 0] = None
        return texts

    def _make_room(self, words: int) -> None:
        size = self._log.words.shape[0]
        if self._head + words > size:
            wanted = max(MIN_WORDS, 2 * (self._held_words + words))
            self._move(size if wanted <= size <= 4 * wanted else wanted)

    def _move(self, size: int) -> None:
        into = self._log if size == self._log.words.shape[0] else make_log(size)
        self._head = push_together(self._log, self._head, self._at, into)
        self._log = into


def _matrices(columns: ImpressionColumns) -> tuple[AnyArray, ...]:
    return columns.dense, columns.ids, columns.has_id, columns.scores


def _bytes_of(matrix: AnyArray) -> UInt8:
    """uint8[I, bytes of a row]"""
    flat = np.ascontiguousarray(matrix).reshape(-1).view(np.uint8)
    return flat.reshape(matrix.shape[0], matrix.shape[1] * matrix.itemsize)


def _spread(data: AnyArray, lengths: Int64, shown: AnyArray) -> tuple[AnyArray, Int64, Int64]:
    """A part that impressions have, in a row, over all events."""
    spread = np.zeros(shown.shape[0], np.int64)
    spread[shown] = lengths
    return data, np.cumsum(spread) - spread, spread


def _texts_of(texts: AnyArray, wanted: AnyArray) -> tuple[UInt8, Int64, Int64]:
    """A part that the `wanted` events have, over all events; None of the others."""
    listed = texts[wanted].tolist()
    lengths = np.full(texts.shape[0], -1, np.int64)
    lengths[wanted] = [-1 if text is None else len(text) for text in listed]
    data = np.frombuffer(bytearray().join(text for text in listed if text is not None), np.uint8)
    sizes = np.maximum(lengths, 0)
    return data, np.cumsum(sizes) - sizes, lengths
