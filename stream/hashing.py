"""64-bit identities of keys, event ids, items and string features."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import xxhash

from dedup_cache.arrays import Int64


def hash_strings(texts: Sequence[str]) -> Int64:
    """xxh3_64 (seed 0) of each text's UTF-8 bytes, as int64[n]: the id of a string feature."""
    return _digests(map(str.encode, texts), len(texts))


MOST_REMEMBERED = 256
"""Characters; longer texts hardly come again, and `max_entries` of them bound no memory."""


class StringHashes:
    """`hash_strings` for strings that come again and again: remembers them, which is measured twice as fast."""

    def __init__(self, *, max_entries: int = 100_000) -> None:
        self._max_entries = max_entries
        self._known = _Known()

    def of(self, texts: Iterable[str], *, count: int) -> Int64:
        """The hashes of `count` texts, int64[count]."""
        if len(self._known) > self._max_entries:
            self._known.clear()
        return np.fromiter(map(self._known.__getitem__, texts), np.uint64, count).view(np.int64)


class _Known(dict[str, int]):
    def __missing__(self, text: str) -> int:
        digest = xxhash.xxh3_64_intdigest(text.encode())
        if len(text) <= MOST_REMEMBERED:
            self[text] = digest
        return digest


def hash_ids(ids: Sequence[int | str]) -> Int64:
    """The same for keys, event ids and items, int64[n]; an integer counts as its decimal text, so 5 equals "5"."""
    return _digests(map(str.encode, map(str, ids)), len(ids))


def _digests(texts: Iterable[bytes], count: int) -> Int64:
    return np.fromiter(map(xxhash.xxh3_64_intdigest, texts), np.uint64, count).view(np.int64)
