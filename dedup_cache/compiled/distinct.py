"""Distinct fingerprints by one pass over a hash table. `ikjt.distinct` is the plain form."""

from __future__ import annotations

from typing import Any

import numpy as np

from dedup_cache.arrays import Int32, Int64, UInt64
from dedup_cache.compiled.kernel import kernel


@kernel
def find_distinct(prints: UInt64, slots: Int32, first: Int64, inverse: Int32) -> int:
    """The number of distinct rows of uint64[B, 2], in order of first appearance.

    `first` int64[B] and `inverse` int32[B] are filled, `slots` int32[2^k], 2^k > B, is scratch.
    """
    mask = np.uint64(slots.shape[0] - 1)
    slots[:] = -1
    count = 0
    for i in range(prints.shape[0]):
        at = prints[i, 0] & mask
        while slots[at] >= 0:
            row = first[slots[at]]
            if prints[row, 0] == prints[i, 0] and prints[row, 1] == prints[i, 1]:
                break
            at = (at + np.uint64(1)) & mask
        if slots[at] < 0:
            slots[at] = count
            first[count] = i
            count += 1
        inverse[i] = slots[at]
    return count


def samples() -> list[tuple[Any, tuple[object, ...]]]:
    """See `rows.samples`."""
    return [
        (
            find_distinct,
            (np.zeros((1, 2), np.uint64), np.zeros(2, np.int32), np.zeros(1, np.int64), np.zeros(1, np.int32)),
        )
    ]
