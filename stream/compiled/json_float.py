"""Decimal numbers to the nearest double, ties to even, as Python's `float` does.

Clinger's fast path where both parts are exact, else Eisel and Lemire's product with a 128-bit power of five (Lemire,
"Number parsing at a gigabyte per second", arXiv 2101.11408). NaN stands for what neither is certain of: results that
are subnormal or too large, and rare ones that lie too close to the middle of two doubles.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dedup_cache.arrays import UInt64
from dedup_cache.compiled.kernel import part

LEAST, GREATEST = -342, 308
_EXACT = np.array([10.0**i for i in range(23)])
_MOST_EXACT = np.uint64(2**53)
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
_UNSURE_BITS = np.uint64(0x1FF)


def _powers_of_five() -> UInt64:
    """uint64[powers, 2]: the leading 128 bits of 5^q, high half first; from -27 to -1 rounded up, else down."""
    rows = []
    for q in range(LEAST, GREATEST + 1):
        if q >= 0:
            power = 5**q << 128
        else:
            divisor = 5**-q
            power = (1 << (divisor.bit_length() + 255)) // divisor
        excess = power.bit_length() - 128
        leading = (power >> excess) + (-27 <= q < 0)
        rows.append((leading >> 64, leading & (2**64 - 1)))
    return np.array(rows, np.uint64)


_FIVES = _powers_of_five()


@part
def _product(x: np.uint64, y: np.uint64) -> tuple[Any, Any]:
    """(high, low) of 128 bits."""
    x_low, x_high, y_low, y_high = x & _LOW, x >> _32, y & _LOW, y >> _32
    cross = x_high * y_low + ((x_low * y_low) >> _32)
    middle = x_low * y_high + (cross & _LOW)
    return x_high * y_high + (cross >> _32) + (middle >> _32), x * y


@part
def _leading_zeros(x: np.uint64) -> int:
    zeros = 0
    for step in (32, 16, 8, 4, 2, 1):
        if x >> np.uint64(64 - step) == np.uint64(0):
            x <<= np.uint64(step)
            zeros += step
    return zeros


@part
def nearest(digits: np.uint64, power: int) -> float:
    """digits * 10^power, or NaN."""
    if digits == np.uint64(0):
        return 0.0
    if digits <= _MOST_EXACT and -22 <= power <= 22:
        whole = float(np.int64(digits))
        return float(whole * _EXACT[power] if power >= 0 else whole / _EXACT[-power])
    if power < LEAST or power > GREATEST:
        return math.nan
    zeros = _leading_zeros(digits)
    shifted = digits << np.uint64(zeros)
    high, low = _product(shifted, _FIVES[power - LEAST, 0])
    if high & _UNSURE_BITS == _UNSURE_BITS:
        more, _ = _product(shifted, _FIVES[power - LEAST, 1])
        low += more
        if more > low:
            high += np.uint64(1)
    if low == _ALL and not -27 <= power <= 55:
        return math.nan
    upper = np.int64(high >> np.uint64(63))
    cut = np.uint64(upper + 9)
    mantissa = high >> cut
    exponent = ((217706 * power) >> 16) + 63 + upper - zeros + 1023
    if exponent <= 0 or exponent >= 2046:
        return math.nan
    halfway = low <= np.uint64(1) and -4 <= power <= 23 and mantissa & np.uint64(3) == np.uint64(1)
    if halfway and mantissa << cut == high:
        mantissa &= ~np.uint64(1)
    mantissa = (mantissa + (mantissa & np.uint64(1))) >> np.uint64(1)
    return math.ldexp(float(np.int64(mantissa)), exponent - 1075)  # type: ignore[arg-type]
