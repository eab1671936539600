"""64-bit mixing of ids, vectorised. Stable: a change of any of it makes trained tables worthless.

`mix` is the finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014), a bijection. All arithmetic is modulo 2^64.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from dedup_cache.arrays import Int64, UInt64

GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
MULTIPLY_1, MULTIPLY_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
SHIFT_27, SHIFT_30, SHIFT_31, SHIFT_32 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(32)
LOW_32 = np.uint64(2**32 - 1)


def mix(x: UInt64) -> UInt64:
    """uint64[N] to uint64[N], each bit of the input moves half of the output's."""
    x = (x ^ (x >> SHIFT_30)) * MULTIPLY_1
    x = (x ^ (x >> SHIFT_27)) * MULTIPLY_2
    return x ^ (x >> SHIFT_31)


def combine(state: UInt64, ids: Int64) -> UInt64:
    """One more id into a running hash: mix((state + G) * G + id), G the golden gamma; the order of ids matters."""
    return mix((state + GOLDEN_GAMMA) * GOLDEN_GAMMA + ids.view(np.uint64))


@lru_cache(maxsize=1 << 12)
def seed(salt: int) -> UInt64:
    """The running hash before the first id, uint64[1], not to be written to."""
    state: UInt64 = mix(np.array([salt & (2**64 - 1)], np.uint64) + GOLDEN_GAMMA)
    state.setflags(write=False)
    return state


def reduce(hashed: UInt64, size: int) -> Int64:
    """Into [0, size) by the high half of hash * size (Lemire, arXiv 1805.10941): no bias towards low results.

    `size` is at most 2^32. int64[N].
    """
    n = np.uint64(size)
    low = ((hashed & LOW_32) * n) >> SHIFT_32
    return (((hashed >> SHIFT_32) * n + low) >> SHIFT_32).view(np.int64)
