"""xxh3_64 (seed 0) of many short texts at once, after the specification of xxHash (XXH3, inputs up to 64 bytes)."""

from __future__ import annotations

import numpy as np

from dedup_cache.arrays import AnyArray, Int64
from dedup_cache.compiled.kernel import kernel, part

SPAN_BITS = 16
"""A text is named by one number: its place << SPAN_BITS | its length."""
LONGEST = 64

_SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
    "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c3c2852bb91c300cb"
)
"""The beginning of the default secret."""
_WORDS = np.frombuffer(_SECRET, "<u8")
_FLIP_0 = _WORDS[7] ^ _WORDS[8]
_FLIP_3 = np.uint64(int.from_bytes(_SECRET[:4], "little") ^ int.from_bytes(_SECRET[4:8], "little"))
_FLIP_8 = _WORDS[1] ^ _WORDS[2]
_FLIP_16_LOW = _WORDS[3] ^ _WORDS[4]
_FLIP_16_HIGH = _WORDS[5] ^ _WORDS[6]
_PRIME_1 = np.uint64(0x9E3779B185EBCA87)
_PRIME_2 = np.uint64(0xC2B2AE3D27D4EB4F)
_PRIME_3 = np.uint64(0x165667B19E3779F9)
_PRIME_MX1 = np.uint64(0x165667919E3779F9)
_PRIME_MX2 = np.uint64(0x9FB21C651E98DF25)
_EVEN_8 = np.uint64(0x00FF00FF00FF00FF)
_EVEN_16 = np.uint64(0x0000FFFF0000FFFF)
_LOW = np.uint64(0xFFFFFFFF)


@part
def _read_4(data: AnyArray, at: int) -> np.uint64:
    """A little-endian number."""
    low = np.uint64(data[at]) | np.uint64(data[at + 1]) << np.uint64(8)
    return low | np.uint64(data[at + 2]) << np.uint64(16) | np.uint64(data[at + 3]) << np.uint64(24)


@part
def _read_8(data: AnyArray, at: int) -> np.uint64:
    return _read_4(data, at) | _read_4(data, at + 4) << np.uint64(32)


@part
def _fold(x: np.uint64, y: np.uint64) -> np.uint64:
    """The two halves of the 128-bit product, xored."""
    x_low, x_high, y_low, y_high = x & _LOW, x >> np.uint64(32), y & _LOW, y >> np.uint64(32)
    low, cross, high = x_low * y_low, x_high * y_low, x_high * y_high
    middle = x_low * y_high + (low >> np.uint64(32)) + (cross & _LOW)
    high += (cross >> np.uint64(32)) + (middle >> np.uint64(32))
    return (x * y) ^ high


@part
def _swap(x: np.uint64) -> np.uint64:
    """The bytes in reverse order."""
    x = ((x >> np.uint64(8)) & _EVEN_8) | ((x & _EVEN_8) << np.uint64(8))
    x = ((x >> np.uint64(16)) & _EVEN_16) | ((x & _EVEN_16) << np.uint64(16))
    return (x >> np.uint64(32)) | (x << np.uint64(32))


@part
def _rotate(x: np.uint64, bits: int) -> np.uint64:
    return (x << np.uint64(bits)) | (x >> np.uint64(64 - bits))


@part
def _avalanche_64(h: np.uint64) -> np.uint64:
    h = (h ^ (h >> np.uint64(33))) * _PRIME_2
    h = (h ^ (h >> np.uint64(29))) * _PRIME_3
    return h ^ (h >> np.uint64(32))


@part
def _avalanche_3(h: np.uint64) -> np.uint64:
    h = (h ^ (h >> np.uint64(37))) * _PRIME_MX1
    return h ^ (h >> np.uint64(32))


@part
def _up_to_3(text: AnyArray, at: int, size: int) -> np.uint64:
    first, middle, last = np.uint64(text[at]), np.uint64(text[at + (size >> 1)]), np.uint64(text[at + size - 1])
    combined = (first << np.uint64(16)) | (middle << np.uint64(24)) | last | np.uint64(size << 8)
    return _avalanche_64(combined ^ _FLIP_3)


@part
def _up_to_8(text: AnyArray, at: int, size: int) -> np.uint64:
    both = _read_4(text, at + size - 4) + (_read_4(text, at) << np.uint64(32))
    h = both ^ _FLIP_8
    h ^= _rotate(h, 49) ^ _rotate(h, 24)
    h *= _PRIME_MX2
    h ^= (h >> np.uint64(35)) + np.uint64(size)
    h *= _PRIME_MX2
    mixed: np.uint64 = h ^ (h >> np.uint64(28))
    return mixed


@part
def _up_to_16(text: AnyArray, at: int, size: int) -> np.uint64:
    low = _read_8(text, at) ^ _FLIP_16_LOW
    high = _read_8(text, at + size - 8) ^ _FLIP_16_HIGH
    mixed: np.uint64 = np.uint64(size) + _swap(low) + high + _fold(low, high)
    return _avalanche_3(mixed)


@part
def _mix(text: AnyArray, at: int, word: int) -> np.uint64:
    mixed: np.uint64 = _fold(_read_8(text, at) ^ _WORDS[word], _read_8(text, at + 8) ^ _WORDS[word + 1])
    return mixed


@part
def _up_to_64(text: AnyArray, at: int, size: int) -> np.uint64:
    total = np.uint64(size) * _PRIME_1 + _mix(text, at, 0) + _mix(text, at + size - 16, 2)
    if size > 32:
        total += _mix(text, at + 16, 4) + _mix(text, at + size - 32, 6)
    return _avalanche_3(total)


@kernel
def hash_spans(text: AnyArray, spans: Int64, hashes: AnyArray) -> None:
    """uint64[n]: the hash of each text, int64[n] spans of uint8 text; 0 where it is longer than LONGEST."""
    for i in range(spans.shape[0]):
        at, size = spans[i] >> SPAN_BITS, spans[i] & ((1 << SPAN_BITS) - 1)
        if size == 0:
            hashes[i] = _avalanche_64(_FLIP_0)
        elif size <= 3:
            hashes[i] = _up_to_3(text, at, size)
        elif size <= 8:
            hashes[i] = _up_to_8(text, at, size)
        elif size <= 16:
            hashes[i] = _up_to_16(text, at, size)
        elif size <= LONGEST:
            hashes[i] = _up_to_64(text, at, size)
