"""A worker's own memory of assignments, so that only fingerprints it has not seen go over the wire."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from dedup_cache.arrays import Int64, UInt32, UInt64
from dedup_cache.assign import Assignment, IndexStore, Waits, group_keys, unpack
from dedup_cache.clock import monotonic_ms
from dedup_cache.table import FingerprintTable

CONFIRM_MS = 60_000
"""A generation that is over is named no longer than this by a worker that remembers all it needs."""


class NearCache:
    """An IndexStore in front of another one.

    An id never changes within a generation, so forgetting an entry is harmless; that the generation still goes on is
    confirmed every minute. The memory is two tables of at most `max_entries / 2`: when the young one is full it becomes
    the old one, and what is found in the old one moves to the young one. One thread at a time.
    """

    def __init__(
        self, store: IndexStore, *, max_entries: int = 1 << 21, clock_ms: Callable[[], int] = monotonic_ms
    ) -> None:
        self._store = store
        self._clock_ms = clock_ms
        self._confirm_at_ms = clock_ms()
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

    @property
    def waits(self) -> Waits:
        """Of the store behind."""
        return self._store.waits

    def assign(self, group: str, fingerprints: UInt64) -> Assignment:
        """See IndexStore; asks the store only for what is not remembered."""
        return self.assign_groups({group: fingerprints})[group]

    def assign_groups(self, wanted: Mapping[str, UInt64]) -> dict[str, Assignment]:
        """See IndexStore; asks the store at most twice, whatever the number of groups."""
        keys = {group: group_keys(group, prints) for group, prints in wanted.items()}
        self._confirm()
        entries = {group: self._find(part) for group, part in keys.items()}
        missing = {group: np.flatnonzero(found < 0) for group, found in entries.items()}
        asked = {group: wanted[group][places] for group, places in missing.items() if places.size}
        if asked:
            answers = self._store.assign_groups(asked)
            if self._is_new(next(iter(answers.values())).generation) and any(
                missing[group].size < found.size for group, found in entries.items()
            ):
                return self.assign_groups(wanted)
            for group, answer in answers.items():
                entries[group][missing[group]] = 2 * answer.ids + answer.known
                self._remember(keys[group][missing[group]], entries[group][missing[group]])
        unseen = sum(places.size for places in missing.values())
        self.misses += unseen
        self.hits += sum(found.size for found in entries.values()) - unseen
        return {group: unpack(found, self._generation) for group, found in entries.items()}

    def _confirm(self) -> None:
        """Ask whether the generation goes on, when nothing was asked for a while."""
        if self._generation and self._clock_ms() >= self._confirm_at_ms:
            self._store.assign_groups({})
            self._is_new(self._store.generation)

    def _is_new(self, generation: str) -> bool:
        """Whether the store answers in another generation than that of what is remembered, which is then forgotten."""
        self._confirm_at_ms = self._clock_ms() + CONFIRM_MS
        if generation == self._generation:
            return False
        self._begin(generation)
        return True

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
