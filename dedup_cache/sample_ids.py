"""Sample ids: one 64-bit number per impression, made from its place in the log and leading back to it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dedup_cache.arrays import AnyInt, Int64, UInt64
from dedup_cache.errors import RowError

OFFSET_BITS = np.uint64(48)
MAX_PARTITION = 2**15
MIX_1, UNMIX_1 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(pow(0xBF58476D1CE4E5B9, -1, 2**64))
MIX_2, UNMIX_2 = np.uint64(0x94D049BB133111EB), np.uint64(pow(0x94D049BB133111EB, -1, 2**64))


class SamplePosition(NamedTuple):
    """Where samples stand in the log: partition int64[B], offset int64[B]."""

    partition: Int64
    offset: Int64


def sample_id(partition: int, offsets: AnyInt) -> UInt64:
    """Return uint64[B]: the finaliser of splitmix64 over (partition << 48 | offset), which is a bijection.

    The highest bit of the partition stays free for samples that correct an earlier one. RowError for a partition
    outside [0, 2^15) or an offset outside [0, 2^48).
    """
    if not 0 <= partition < MAX_PARTITION:
        raise RowError(f"sample id: partition {partition} is outside [0, {MAX_PARTITION})")
    if offsets.size and (int(offsets.min()) < 0 or int(offsets.max()) >= 2**48):
        raise RowError("sample id: an offset outside [0, 2^48)")
    x = offsets.astype(np.uint64) | (np.uint64(partition) << OFFSET_BITS)
    x = (x ^ (x >> np.uint64(30))) * MIX_1
    x = (x ^ (x >> np.uint64(27))) * MIX_2
    ids: UInt64 = x ^ (x >> np.uint64(31))
    return ids


def sample_position(ids: UInt64) -> SamplePosition:
    """Return the partition and offset that `sample_id` was given."""
    x = _unshift(ids, 31) * UNMIX_2
    x = _unshift(x, 27) * UNMIX_1
    x = _unshift(x, 30)
    return SamplePosition((x >> OFFSET_BITS).astype(np.int64), (x & np.uint64(2**48 - 1)).astype(np.int64))


def _unshift(x: UInt64, shift: int) -> UInt64:
    """Invert x ^ (x >> shift) for shifts above 21."""
    unshifted: UInt64 = x ^ (x >> np.uint64(shift)) ^ (x >> np.uint64(2 * shift))
    return unshifted
