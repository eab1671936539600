"""Index assignment: every distinct value of a group gets one id, for ever within a generation.

Letters in shapes: U fingerprints of one call.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import xxhash

from dedup_cache.arrays import Bool, Int64, UInt32, UInt64
from dedup_cache.errors import ReferenceMismatch
from dedup_cache.fingerprint import check_bits
from dedup_cache.ikjt import distinct
from dedup_cache.table import FingerprintTable


class Assignment(NamedTuple):
    """ids int64[U]; known bool[U]: the value was shipped by a committed transaction; the generation of the ids.

    Ids of different generations never mean the same value: a batch holds references of one generation only.
    """

    ids: Int64
    known: Bool
    generation: str


@dataclass(slots=True)
class Waits:
    """What asking a store has cost so far."""

    calls: int = 0
    waited_ms: int = 0
    """From the beginning of a call to its answer or failure."""
    refused: int = 0
    """Calls that were not made: the store is silent, or so slow that waiting for it costs too much of the time."""


class IndexStore(Protocol):
    """What hands out ids. Ids are numbers from 0, unique over all groups of a generation, never changed or reused."""

    @property
    def waits(self) -> Waits:
        """What asking has cost so far."""

    @property
    def generation(self) -> str:
        """The generation of the last answer; empty before the first one."""

    def assign(self, group: str, fingerprints: UInt64) -> Assignment:
        """Return the ids of uint64[U, 2]; new ones go to fingerprints not seen yet, in order of first appearance.

        Raises StoreUnavailable; the caller then goes on with values inline.
        """

    def assign_groups(self, wanted: Mapping[str, UInt64]) -> dict[str, Assignment]:
        """`assign` for several groups at once, all ids of one generation; of none, it only asks for the generation."""

    def mark_known(
        self,
        group: str,
        ids: Int64,
        fingerprints: UInt64,
        blobs: Sequence[bytes],
        *,
        generation: str | None = None,
    ) -> None:
        """Store values whose transaction has committed, under the ids that `assign` gave for them.

        `generation` is that of the assignment (None: the current one). What belongs to another generation than the
        store's is ignored. Raises StoreUnavailable.
        """

    def fetch(self, group: str, ids: Int64, checks: UInt32, *, generation: str | None = None) -> list[bytes | None]:
        """Return the stored values of a generation (None: the current one), None for one that is not there.

        Raises ReferenceMismatch where a value has another check than its reference, and StoreUnavailable.
        """


class MemoryStore:
    """The store of a single process, and the oracle of the tests: the contract of IndexStore in its plain form."""

    def __init__(self, generation: str | None = None) -> None:
        self._generation = secrets.token_hex(16) if generation is None else generation
        self._table = FingerprintTable()
        self._next = 0
        self._values: dict[tuple[str, int], tuple[int, bytes]] = {}
        self.waits = Waits()

    @property
    def generation(self) -> str:
        """The one generation of this store."""
        return self._generation

    def assign(self, group: str, fingerprints: UInt64) -> Assignment:
        """See IndexStore."""
        keys = group_keys(group, fingerprints)
        entries = self._table.find(keys)
        missing = np.flatnonzero(entries < 0)
        if missing.size:
            first, inverse = distinct(keys[missing])
            fresh = 2 * (self._next + np.arange(first.size, dtype=np.int64))
            self._table.put(keys[missing][first], fresh)
            self._next += first.size
            entries[missing] = fresh[inverse]
        return unpack(entries, self._generation)

    def assign_groups(self, wanted: Mapping[str, UInt64]) -> dict[str, Assignment]:
        """See IndexStore."""
        return {group: self.assign(group, prints) for group, prints in wanted.items()}

    def mark_known(
        self,
        group: str,
        ids: Int64,
        fingerprints: UInt64,
        blobs: Sequence[bytes],
        *,
        generation: str | None = None,
    ) -> None:
        """See IndexStore."""
        if generation not in {None, self._generation}:
            return
        keys = group_keys(group, fingerprints)
        entries = self._table.find(keys)
        assigned = np.flatnonzero((entries >= 0) & (entries >> 1 == ids))
        self._table.put(keys[assigned], entries[assigned] | 1)
        checks = check_bits(fingerprints)
        for row in assigned.tolist():
            self._values[group, int(ids[row])] = (int(checks[row]), blobs[row])

    def fetch(self, group: str, ids: Int64, checks: UInt32, *, generation: str | None = None) -> list[bytes | None]:
        """See IndexStore."""
        if generation not in {None, self._generation}:
            return [None] * len(ids)
        return [self._value(group, row_id, check) for row_id, check in zip(ids.tolist(), checks.tolist(), strict=True)]

    def _value(self, group: str, row_id: int, check: int) -> bytes | None:
        stored, blob = self._values.get((group, row_id), (check, None))
        if stored != check:
            raise mismatch(self._generation, group, row_id)
        return blob


def group_keys(group: str, fingerprints: UInt64) -> UInt64:
    """Return uint64[U, 2]: fingerprints told apart by group, so that one table serves all groups."""
    digest = xxhash.xxh3_128_intdigest(group.encode())
    return fingerprints ^ np.array([digest & (2**64 - 1), digest >> 64], np.uint64)


def unpack(entries: Int64, generation: str) -> Assignment:
    """Read entries, which hold 2 * id + known."""
    return Assignment(entries >> 1, (entries & 1).astype(np.bool_), generation)


def mismatch(generation: str, group: str, row_id: int) -> ReferenceMismatch:
    """Name the reference that leads to another value."""
    return ReferenceMismatch(
        f"generation {generation!r}, group '{group}', id {row_id}: the stored value is not the one that was referred to"
    )
