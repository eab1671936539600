"""The table of fingerprints, one fingerprint after the other. `table.FingerprintTable` has the plain form."""

from __future__ import annotations

from typing import Any

import numpy as np

from dedup_cache.arrays import Int64, UInt64
from dedup_cache.compiled.kernel import kernel

EMPTY = -1


@kernel
def find(low: UInt64, high: UInt64, values: Int64, prints: UInt64, found: Int64) -> None:
    """The value of each of uint64[U, 2], EMPTY where there is none; at least one slot is free."""
    mask = np.uint64(low.shape[0] - 1)
    for i in range(prints.shape[0]):
        at = prints[i, 0] & mask
        while values[at] != EMPTY and (low[at] != prints[i, 0] or high[at] != prints[i, 1]):
            at = (at + np.uint64(1)) & mask
        found[i] = values[at]


@kernel
def put(low: UInt64, high: UInt64, values: Int64, prints: UInt64, given: Int64) -> int:
    """Set the value of each of uint64[U, 2], for which there are slots; returns how many were not there."""
    mask = np.uint64(low.shape[0] - 1)
    count = 0
    for i in range(prints.shape[0]):
        at = prints[i, 0] & mask
        while values[at] != EMPTY and (low[at] != prints[i, 0] or high[at] != prints[i, 1]):
            at = (at + np.uint64(1)) & mask
        if values[at] == EMPTY:
            low[at], high[at] = prints[i, 0], prints[i, 1]
            count += 1
        values[at] = given[i]
    return count


def samples() -> list[tuple[Any, tuple[object, ...]]]:
    """See `rows.samples`."""
    low, values, prints = np.zeros(2, np.uint64), np.full(2, EMPTY, np.int64), np.zeros((1, 2), np.uint64)
    return [(kernel, (low, low.copy(), values, prints, np.zeros(1, np.int64))) for kernel in (find, put)]
