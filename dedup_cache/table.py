"""A hash table from 128-bit fingerprints to numbers, looked up and filled a column at a time."""

from __future__ import annotations

import numpy as np

from dedup_cache import compiled
from dedup_cache.arrays import Int64, UInt64

EMPTY = -1
MIN_SLOTS = 1 << 10


class FingerprintTable:
    """Open addressing with linear probing, at most half full; 24 bytes a slot.

    Fingerprints are well mixed already, so their low bits are the slot. Values are int64 of at least 0.
    """

    def __init__(self) -> None:
        self._clear(MIN_SLOTS)

    def __len__(self) -> int:
        return self._count

    def find(self, prints: UInt64) -> Int64:
        """Return int64[U]: the value of each fingerprint, -1 where there is none."""
        if compiled.ready() and prints.dtype == np.uint64 and prints.flags.carray:
            from dedup_cache.compiled.table import find

            values = np.empty(prints.shape[0], np.int64)
            find(self._low, self._high, self._values, prints, values)
            return values
        low, high = np.ascontiguousarray(prints.T)
        found = np.full(low.size, EMPTY, np.int64)
        pending = np.arange(low.size)
        slots = (low & self._mask).view(np.int64)
        while pending.size:
            values = self._values[slots]
            same = (self._low[slots] == low[pending]) & (self._high[slots] == high[pending]) & (values != EMPTY)
            found[pending[same]] = values[same]
            further = ~same & (values != EMPTY)
            pending = pending[further]
            slots = self._next(slots[further])
        return found

    def put(self, prints: UInt64, values: Int64) -> None:
        """Set the value of each fingerprint; of several equal ones in a call, one of their values stays."""
        while 2 * (self._count + values.size) > self._values.size:
            self._grow()
        if compiled.ready() and values.dtype == np.int64 and values.flags.carray and prints.flags.carray:
            from dedup_cache.compiled.table import put

            self._count += put(self._low, self._high, self._values, prints, values)
            return
        low, high = np.ascontiguousarray(prints.T)
        pending = np.arange(low.size)
        slots = (low & self._mask).view(np.int64)
        while pending.size:
            free = self._values[slots] == EMPTY
            self._values[slots[free]] = EMPTY - 1 - pending[free]
            won = self._values[slots] == EMPTY - 1 - pending
            self._low[slots[won]], self._high[slots[won]] = low[pending[won]], high[pending[won]]
            self._count += int(np.count_nonzero(won))
            same = (self._low[slots] == low[pending]) & (self._high[slots] == high[pending])
            self._values[slots[same]] = values[pending[same]]
            further = ~same
            pending = pending[further]
            slots = self._next(slots[further])

    def _next(self, slots: Int64) -> Int64:
        following: Int64 = (slots + 1) & np.int64(self._mask)
        return following

    def _clear(self, num_slots: int) -> None:
        self._low = np.zeros(num_slots, np.uint64)
        self._high = np.zeros(num_slots, np.uint64)
        self._values = np.full(num_slots, EMPTY, np.int64)
        self._mask = np.uint64(num_slots - 1)
        self._count = 0

    def _grow(self) -> None:
        used = self._values != EMPTY
        keys, values = np.stack([self._low[used], self._high[used]], axis=1), self._values[used]
        self._clear(2 * self._values.size)
        if values.size:
            self.put(keys, values)
