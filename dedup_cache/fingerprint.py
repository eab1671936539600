"""128-bit fingerprints of rows, computed on columns.

Construction; all arithmetic modulo 2^64, `mix` is the finaliser of MurmurHash3 (fmix64):

1. A part is a list feature, or the dense matrix read as the 32-bit patterns of its columns. Its key is
   xxh3-128(salt, 0, name), as two 64-bit halves k0, k1. -0.0 is read as 0.0 and every NaN as one NaN.
2. Element v at place p of its row: x = v * M1 + p * M2 + k0;  x ^= x >> 32;  y = x * M3;  y ^= y >> 29;
   z = y * M4;  z ^= z >> 32.
3. The part's sums over the row, Y and Z, and its length n:
   a <- mix(a * M5 + Y + n * M2 + k0);  b <- mix(b * M6 + Z + (n + a) * M1 + k1).
4. The fingerprint is (a, b) after all parts, dense first, then the lists in order.

Values and lengths both enter, so ([1], [2]) and ([1, 2], []) differ. The function is a fast hash against accidents,
not against an adversary who knows the salt.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import xxhash

from dedup_cache import compiled
from dedup_cache.arrays import AnyInt, Float32, UInt32, UInt64
from dedup_cache.jagged import Jagged, Rows, gather

M1 = np.uint64(0x9E3779B97F4A7C15)
M2 = np.uint64(0xD6E8FEB86659FD93)
M3 = np.uint64(0xC2B2AE3D27D4EB4F)
M4 = np.uint64(0xA0761D6478BD642F)
M5 = np.uint64(0xE7037ED1A0B428DB)
M6 = np.uint64(0x8EBC6AF09C88C6E3)
FMIX_1 = np.uint64(0xFF51AFD7ED558CCD)
FMIX_2 = np.uint64(0xC4CEB9FE1A85EC53)
SHIFT_29, SHIFT_32, SHIFT_33 = np.uint64(29), np.uint64(32), np.uint64(33)
RUN_IDS = 1 << 14
CANONICAL_NAN = np.uint32(0x7FC00000)


@dataclass(frozen=True, slots=True)
class _Key:
    low: np.uint64
    high: np.uint64


def fingerprints(rows: Rows, *, salt: bytes) -> UInt64:
    """Return uint64[U, 2], a 128-bit hash of every row over all its columns; see the module for the construction."""
    if compiled.ready() and (prints := _compiled(rows, salt=salt)) is not None:
        return prints
    a = np.zeros(rows.num_rows, np.uint64)
    b = np.zeros(rows.num_rows, np.uint64)
    width = rows.dense.shape[1]
    if width:
        sums = _sum_dense(rows.dense, _key(salt, ""))
        a, b = _absorb(a, b, sums, np.full(rows.num_rows, width, np.int32), _key(salt, ""))
    for name, column in rows.lists.items():
        key = _key(salt, name)
        a, b = _absorb(a, b, _sum_lists(column, key), column.lengths, key)
    return np.stack([a, b], axis=1)


def check_bits(prints: UInt64) -> UInt32:
    """Return uint32[U], the 32 bits of each fingerprint that travel with a reference."""
    return prints[:, 1].astype(np.uint32)


def _compiled(rows: Rows, *, salt: bytes) -> UInt64 | None:
    """The same by compiled loops; None where they are not made for these arrays."""
    from dedup_cache.compiled import rows as kernels

    if not all(kernels.fits(column.values, column.starts, column.lengths) for column in rows.lists.values()):
        return None
    prints = np.zeros((rows.num_rows, 2), np.uint64)
    if rows.dense.shape[1]:
        key = _key(salt, "")
        kernels.absorb_dense(prints, np.ascontiguousarray(_bits(rows.dense)), key.low, key.high)
    for name, column in rows.lists.items():
        key = _key(salt, name)
        kernels.absorb_lists(prints, column.values, column.starts, column.lengths, key.low, key.high)
    return prints


@lru_cache(maxsize=1 << 12)
def _key(salt: bytes, name: str) -> _Key:
    digest = xxhash.xxh3_128_intdigest(salt + b"\0" + name.encode())
    return _Key(np.uint64(digest & (2**64 - 1)), np.uint64(digest >> 64))


def _mix(x: UInt64) -> UInt64:
    """Step 3's fmix64, in place."""
    x ^= x >> SHIFT_33
    x *= FMIX_1
    x ^= x >> SHIFT_33
    x *= FMIX_2
    x ^= x >> SHIFT_33
    return x


def _first_lane(x: UInt64) -> UInt64:
    """Step 2, x to y, in place."""
    x ^= x >> SHIFT_32
    x *= M3
    x ^= x >> SHIFT_29
    return x


def _second_lane(y: UInt64) -> UInt64:
    """Step 2, y to z, in place."""
    y *= M4
    y ^= y >> SHIFT_32
    return y


def _absorb(a: UInt64, b: UInt64, sums: UInt64, lengths: AnyInt, key: _Key) -> tuple[UInt64, UInt64]:
    n = lengths.astype(np.uint64)
    a = _mix(a * M5 + sums[0] + n * M2 + key.low)
    return a, _mix(b * M6 + sums[1] + (n + a) * M1 + key.high)


def _bits(dense: Float32) -> UInt32:
    """uint32[U, D], with one zero and one NaN."""
    bits = (dense + np.float32(0)).view(np.uint32)
    bits[np.isnan(dense)] = CANONICAL_NAN
    return bits


def _sum_dense(dense: Float32, key: _Key) -> UInt64:
    x = _bits(dense).astype(np.uint64) * M1
    x += np.arange(dense.shape[1], dtype=np.uint64) * M2 + key.low
    y = _first_lane(x)
    sums_y = y.sum(axis=1, dtype=np.uint64)
    return np.stack([sums_y, _second_lane(y).sum(axis=1, dtype=np.uint64)])


def _sum_lists(column: Jagged, key: _Key) -> UInt64:
    """Return uint64[2, U]; the same slice twice or more in a row is read once."""
    if column.is_contiguous():
        return _sum_runs(column, key, copied=False)
    changed = np.ones(column.num_rows, np.bool_)
    changed[1:] = (np.diff(column.starts) != 0) | (np.diff(column.lengths) != 0)
    read = Jagged(column.values, column.starts[changed], column.lengths[changed])
    return _sum_runs(read, key, copied=True)[:, np.cumsum(changed) - 1]


def _sum_runs(column: Jagged, key: _Key, *, copied: bool) -> UInt64:
    """Return uint64[2, U]; rows are taken in runs of about RUN_IDS ids, so that the work stays in the CPU's cache."""
    sums = np.empty((2, column.num_rows), np.uint64)
    ends = np.cumsum(column.lengths, dtype=np.int64)
    total = int(ends[-1]) if ends.size else 0
    longest = int(column.lengths.max(initial=0))
    place_terms = np.arange(min(total, RUN_IDS + longest), dtype=np.uint64) * M2 + key.low
    cuts = np.searchsorted(ends, np.arange(RUN_IDS, total, RUN_IDS)) + 1
    first = 0
    for last in np.unique(np.append(cuts, column.num_rows)).tolist():
        run = Jagged(column.values, column.starts[first:last], column.lengths[first:last])
        sums[:, first:last] = _sum_run(run, place_terms, copied=copied)
        first = last
    return sums


def _sum_run(run: Jagged, place_terms: UInt64, *, copied: bool) -> UInt64:
    ends = np.cumsum(run.lengths, dtype=np.int64)
    begins = ends - run.lengths
    total = int(ends[-1]) if ends.size else 0
    if not total:
        return np.zeros((2, run.num_rows), np.uint64)
    first = int(run.starts[0])
    values = gather(run.values, run.starts, run.lengths) if copied else run.values[first : first + total]
    x = values.view(np.uint64) * M1
    x += place_terms[:total]
    x -= np.repeat(begins.view(np.uint64) * M2, run.lengths)
    sums = np.zeros((2, run.num_rows), np.uint64)
    filled = run.lengths > 0
    y = _first_lane(x)
    sums[0, filled] = np.add.reduceat(y, begins[filled])
    sums[1, filled] = np.add.reduceat(_second_lane(y), begins[filled])
    return sums
