"""Kernels over rows of jagged columns. Every one has a plain form in numpy, which says what it does."""

from __future__ import annotations

from typing import Any

import numpy as np

from dedup_cache.arrays import AnyArray, Int32, Int64, UInt32, UInt64
from dedup_cache.compiled.kernel import kernel, part

_M1 = np.uint64(0x9E3779B97F4A7C15)
_M2 = np.uint64(0xD6E8FEB86659FD93)
_M3 = np.uint64(0xC2B2AE3D27D4EB4F)
_M4 = np.uint64(0xA0761D6478BD642F)
_M5 = np.uint64(0xE7037ED1A0B428DB)
_M6 = np.uint64(0x8EBC6AF09C88C6E3)
_FMIX_1 = np.uint64(0xFF51AFD7ED558CCD)
_FMIX_2 = np.uint64(0xC4CEB9FE1A85EC53)
_INT32, _INT64 = np.dtype(np.int32), np.dtype(np.int64)
_29, _32, _33 = np.uint64(29), np.uint64(32), np.uint64(33)


def fits(values: AnyArray, starts: AnyArray, lengths: AnyArray) -> bool:
    """Whether the kernels are compiled for arrays of these types and layouts."""
    return (
        values.dtype == _INT64
        and lengths.dtype == _INT32
        and starts.dtype in (_INT32, _INT64)
        and values.flags.carray
        and starts.flags.carray
        and lengths.flags.carray
    )


@part
def _mix(x: np.uint64) -> np.uint64:
    x = (x ^ (x >> _33)) * _FMIX_1
    x = (x ^ (x >> _33)) * _FMIX_2
    return x ^ (x >> _33)


@part
def _absorb(prints: UInt64, u: int, y: np.uint64, z: np.uint64, count: int, low: np.uint64, high: np.uint64) -> None:
    n = np.uint64(count)
    a = _mix(prints[u, 0] * _M5 + y + n * _M2 + low)
    prints[u, 0] = a
    prints[u, 1] = _mix(prints[u, 1] * _M6 + z + (n + a) * _M1 + high)


@kernel
def absorb_lists(
    prints: UInt64, values: Int64, starts: AnyArray, lengths: Int32, low: np.uint64, high: np.uint64
) -> None:
    """Continue uint64[U, 2] fingerprints by a list column; see `fingerprint` for the construction."""
    y = z = np.uint64(0)
    for u in range(starts.shape[0]):
        if u == 0 or starts[u] != starts[u - 1] or lengths[u] != lengths[u - 1]:
            y = z = np.uint64(0)
            for p in range(lengths[u]):
                x = np.uint64(values[starts[u] + p]) * _M1 + np.uint64(p) * _M2 + low
                x = (x ^ (x >> _32)) * _M3
                x ^= x >> _29
                y += x
                x *= _M4
                z += x ^ (x >> _32)
        _absorb(prints, u, y, z, lengths[u], low, high)


@kernel
def absorb_dense(prints: UInt64, bits: UInt32, low: np.uint64, high: np.uint64) -> None:
    """The same by the bit patterns uint32[U, D] of the dense columns."""
    for u in range(bits.shape[0]):
        y = z = np.uint64(0)
        for p in range(bits.shape[1]):
            x = np.uint64(bits[u, p]) * _M1 + np.uint64(p) * _M2 + low
            x = (x ^ (x >> _32)) * _M3
            x ^= x >> _29
            y += x
            x *= _M4
            z += x ^ (x >> _32)
        _absorb(prints, u, y, z, bits.shape[1], low, high)


@kernel
def copy_slices(values: Int64, starts: AnyArray, lengths: AnyArray, copied: Int64) -> bool:
    """Copy slices one behind the other; False where one does not lie in `values`."""
    at = 0
    for u in range(starts.shape[0]):
        if starts[u] < 0 or lengths[u] < 0 or starts[u] + lengths[u] > values.shape[0]:
            return False
        for p in range(lengths[u]):
            copied[at + p] = values[starts[u] + p]
        at += lengths[u]
    return True


@kernel
def put_slices(words: UInt32, places: Int64, starts: Int64, lengths: Int64, target: UInt32) -> None:
    """Copy words[starts : starts + lengths] to target[places : places + lengths], slice by slice."""
    for u in range(places.shape[0]):
        for p in range(lengths[u]):
            target[np.uint64(places[u]) + np.uint64(p)] = words[np.uint64(starts[u]) + np.uint64(p)]


@kernel
def lie_in_a_row(starts: Int32, lengths: Int32, size: int) -> bool:
    """Whether the slices follow one another and cover `size` values."""
    at = 0
    for u in range(starts.shape[0]):
        if starts[u] != at:
            return False
        at += lengths[u]
    return at == size


def samples() -> list[tuple[Any, tuple[object, ...]]]:
    """Every kernel with small arguments, for each form in which it is called."""
    one, prints, key = np.ones(1, np.int32), np.zeros((1, 2), np.uint64), np.uint64(1)
    values = np.zeros(2, np.int64)
    made: list[tuple[Any, tuple[object, ...]]] = [(absorb_dense, (prints, np.zeros((1, 1), np.uint32), key, key))]
    made.append((lie_in_a_row, (one, one, 2)))
    words, place = np.zeros(2, np.uint32), np.zeros(1, np.int64)
    made.append((put_slices, (words, place, place, place + 1, words.copy())))
    for starts in (one, one.astype(np.int64)):
        made.append((absorb_lists, (prints, values, starts, one, key, key)))
        made.append((copy_slices, (values, starts, one, np.zeros(1, np.int64))))
    return made
