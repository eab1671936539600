"""A worker's own memory of assignments, so that only fingerprints it has not seen go over the wire."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dedup_cache.arrays import Int64, UInt32, UInt64
from dedup_cache.assign import Assignment, IndexStore, group_keys, unpack
from dedup_cache.table import FingerprintTable


class NearCache:
    """An IndexStore in front of another one.

    An id never changes within a generation, so an entry is valid for ever and forgetting one is harmless. The memory is
    two tables of at most `max_entries / 2`: when the young one is full it becomes the old one, and what is found in the
    old one moves to the young one. One thread at a time.
    """

    def __init__(self, store: IndexStore, *, max_entries: int = 1 << 21) -> None:
        self._store = store
        self._half = max(1, max_entries // 2)
        self._generation = ""
        self._young, self._old = FingerprintTable(), FingerprintTable()
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    @property
    def generation(self) -> str:
        """The generation of all remembered ids; empty before the first answer."""
        return self._generation

    def assign(self, group: str, fingerprints: UInt64) -> Assignment:
        """See IndexStore; asks the store only for what is not remembered."""
        keys = group_keys(group, fingerprints)
        entries = self._find(keys)
        missing = np.flatnonzero(entries < 0)
        if missing.size:
            answer = self._store.assign(group, fingerprints[missing])
            if answer.generation != self._generation:
                remembered = missing.size < entries.size
                self._begin(answer.generation)
                if remembered:
                    return self.assign(group, fingerprints)
            entries[missing] = 2 * answer.ids + answer.known
            self._remember(keys[missing], entries[missing])
        self.misses += missing.size
        self.hits += entries.size - missing.size
        return unpack(entries, self._generation)

    def mark_known(
        self,
        group: str,
        ids: Int64,
        fingerprints: UInt64,
        blobs: Sequence[bytes],
        *,
        generation: str | None = None,
    ) -> None:
        """See IndexStore; remembered here even if the store is unavailable, for the transaction has committed."""
        if generation in {None, self._generation}:
            self._remember(group_keys(group, fingerprints), 2 * ids + 1)
        self._store.mark_known(group, ids, fingerprints, blobs, generation=generation or self._generation or None)

    def fetch(self, group: str, ids: Int64, checks: UInt32, *, generation: str | None = None) -> list[bytes | None]:
        """See IndexStore; values are not kept here."""
        return self._store.fetch(group, ids, checks, generation=generation or self._generation or None)

    def _begin(self, generation: str) -> None:
        self._generation = generation
        self._young, self._old = FingerprintTable(), FingerprintTable()

    def _find(self, keys: UInt64) -> Int64:
        entries = self._young.find(keys)
        unseen = np.flatnonzero(entries < 0)
        if unseen.size and len(self._old):
            older = self._old.find(keys[unseen])
            entries[unseen] = older
            self._remember(keys[unseen[older >= 0]], older[older >= 0])
        return entries

    def _remember(self, keys: UInt64, entries: Int64) -> None:
        for first in range(0, entries.size, self._half):
            part = slice(first, first + self._half)
            if len(self._young) + entries[part].size > self._half:
                self._old, self._young = self._young, FingerprintTable()
            self._young.put(keys[part], entries[part])
