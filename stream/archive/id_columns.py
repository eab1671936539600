"""Ids as Parquet holds them in the fewest bytes: as they are, byte by byte apart, or by number in a sorted dictionary.

Ids of a wide space that are mostly rare are what a file of samples consists of. As whole numbers each costs its own
bytes wherever it repeats farther apart than zstd sees; by number it costs its distance from the next greater id once,
as differences (DELTA_BINARY_PACKED), and its number, whose high bytes stand together (BYTE_STREAM_SPLIT), wherever it
stands. Parquet's own dictionaries hold the ids as they come, each at its full width.

Letters in shapes: N ids, K distinct ids.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dedup_cache.arrays import AnyArray, Int32, Int64
from stream.archive.parquet import ZSTD_LEVEL, Encoding

DELTA_BLOCK = 32
"""Differences that share one width."""
_CODEC = pa.Codec("zstd", compression_level=ZSTD_LEVEL)


@dataclass(frozen=True, slots=True)
class StoredIds:
    """N ids in the form that takes least."""

    values: AnyArray
    """int64[N]: the ids; or int32[N]: their numbers in `dictionary`."""
    encoding: Encoding
    dictionary: Int64 | None = None
    """int64[K], ascending."""


def smallest(values: Int64) -> StoredIds:
    """The form of int64[N] ids that compresses best, by trial."""
    dictionary, places = np.unique(values, return_inverse=True)
    numbers: Int32 = places.astype(np.int32)
    costs = {
        Encoding.PLAIN: len(_CODEC.compress(values.tobytes())),
        Encoding.SPLIT: _split_bytes(values),
        Encoding.DELTA: _split_bytes(numbers) + _delta_bytes(dictionary),
    }
    best = min(costs, key=lambda form: costs[form])
    if best is Encoding.DELTA:
        return StoredIds(numbers, Encoding.SPLIT, dictionary)
    return StoredIds(values, best)


def _split_bytes(values: AnyArray) -> int:
    """Compressed, first bytes of all, then second bytes, ..."""
    apart = values.view(np.uint8).reshape(values.size, values.itemsize).T
    return len(_CODEC.compress(np.ascontiguousarray(apart).tobytes()))


def _delta_bytes(ascending: Int64) -> int:
    """As differences in blocks, each as wide as its widest; zstd finds nothing in them."""
    steps = np.diff(ascending.view(np.uint64), prepend=np.uint64(0))
    widths = np.ceil(np.log2(steps.astype(np.float64) + 1))
    firsts = np.arange(0, widths.size, DELTA_BLOCK)
    return round(float(np.maximum.reduceat(widths, firsts).sum()) * DELTA_BLOCK / 8) + firsts.size if widths.size else 0
