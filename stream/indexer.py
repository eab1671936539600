"""Ids for distinct rows from the shared index; large rows go by reference, their values once over `values`.

Losing the index costs bytes, never samples: without an answer every row stands inline.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from dedup_cache import (
    BatchSchema,
    Deduplicated,
    EvictionPolicyError,
    Group,
    GroupSchema,
    StoreUnavailable,
    ValueKey,
    check_bits,
    encode_rows,
    refer,
)
from dedup_cache.arrays import Bool, Int64, UInt64
from dedup_cache.assign import Assignment, IndexStore
from dedup_cache.jagged import Rows

logger = logging.getLogger("stream.indexer")

ASSIGN_ATTEMPTS = 2
NO_GENERATION = ""


@dataclass(frozen=True, slots=True)
class ShippedValue:
    """One row that travels on `values` under its id."""

    generation: str
    group: str
    row_id: int
    fingerprint: tuple[int, int]
    blob: bytes

    @property
    def key(self) -> bytes:
        """Key of its record."""
        return ValueKey(self.generation, self.group, self.row_id).encode()


@dataclass(frozen=True, slots=True)
class Indexed:
    """The groups of one batch with their ids, all of one generation, and the values that have yet to be shipped."""

    groups: dict[str, Group]
    values: list[ShippedValue]
    generation: str


@dataclass(frozen=True, slots=True)
class ReferencePolicy:
    """Rows above `inline_bytes` go by reference, unless their value is above `max_value_bytes`."""

    inline_bytes: int
    max_value_bytes: int


class Indexer:
    """Gives the rows of batches their ids. One per worker: what one transaction ships, it ships once."""

    def __init__(self, schema: BatchSchema, *, store: IndexStore, policy: ReferencePolicy) -> None:
        self._store = store
        self._policy = policy
        self._schemas = {group.name: group for group in schema.groups}
        self._salts = {group.name: schema.group_salt(group) for group in schema.groups}
        self._shipping: dict[bytes, ShippedValue] = {}
        self._errors = 0

    def salt(self, group: str) -> bytes:
        """What the fingerprints of a group begin with: another schema gives other fingerprints."""
        return self._salts[group]

    def index(self, distinct: dict[str, Deduplicated]) -> Indexed:
        """Ids for the rows that are worth one. Without an answer of the store: none, everything inline."""
        large = {name: self._large(d.group.rows, name=name) for name, d in distinct.items()}
        wanted = {name: d.fingerprints[large[name]] for name, d in distinct.items() if large[name].any()}
        groups = {name: d.group for name, d in distinct.items()}
        assignments = self._assign(wanted) if wanted else None
        if assignments is None:
            return Indexed(groups, [], NO_GENERATION)
        values: list[ShippedValue] = []
        for name, assignment in assignments.items():
            group, prints = distinct[name]
            ids = np.full(group.rows.num_rows, -1, np.int64)
            ids[large[name]] = assignment.ids
            groups[name] = refer(group, ids=ids, checks=check_bits(prints), inline=~large[name])
            unknown = np.flatnonzero(~assignment.known)
            values += self._values(distinct[name], np.flatnonzero(large[name]), unknown, name=name, of=assignment)
        return Indexed(groups, values, next(iter(assignments.values())).generation)

    def ship(self, values: list[ShippedValue]) -> None:
        """These go into the open transaction."""
        self._shipping.update((value.key, value) for value in values)

    def aborted(self) -> None:
        """The transaction is gone, and with it what it shipped."""
        self._shipping.clear()

    def committed(self) -> None:
        """What the transaction shipped is known from now on, to every worker."""
        shipped, self._shipping = list(self._shipping.values()), {}
        for generation, group in sorted({(value.generation, value.group) for value in shipped}):
            members = [value for value in shipped if (value.generation, value.group) == (generation, group)]
            ids = np.array([value.row_id for value in members], np.int64)
            prints = np.array([value.fingerprint for value in members], np.uint64)
            try:
                self._store.mark_known(group, ids, prints, [value.blob for value in members], generation=generation)
            except (StoreUnavailable, EvictionPolicyError) as error:
                self._note(error)

    def take_errors(self) -> int:
        """How often the store gave no answer since the last call."""
        errors, self._errors = self._errors, 0
        return errors

    def _large(self, rows: Rows, *, name: str) -> Bool:
        """bool[U]: the rows that go by reference."""
        sizes = row_bytes(rows, self._schemas[name])
        return (sizes > self._policy.inline_bytes) & (sizes <= self._policy.max_value_bytes)

    def _assign(self, wanted: dict[str, UInt64]) -> dict[str, Assignment] | None:
        """By group, ids for fingerprints, all of one generation; None without them."""
        try:
            for _ in range(ASSIGN_ATTEMPTS):
                assigned = {name: self._store.assign(name, prints) for name, prints in wanted.items()}
                if len({assignment.generation for assignment in assigned.values()}) <= 1:
                    return assigned
        except (StoreUnavailable, EvictionPolicyError) as error:
            self._note(error)
        return None

    def _values(
        self, deduplicated: Deduplicated, large: Int64, unknown: Int64, *, name: str, of: Assignment
    ) -> list[ShippedValue]:
        """Those of the large rows that are `unknown` (places among the large ones)."""
        if not unknown.size:
            return []
        rows, ids = large[unknown], of.ids[unknown].tolist()
        blobs = encode_rows(deduplicated.group.rows.take(rows), self._schemas[name])
        prints = deduplicated.fingerprints[rows].tolist()
        made = (
            ShippedValue(of.generation, name, row_id, (low, high), blob)
            for row_id, (low, high), blob in zip(ids, prints, blobs, strict=True)
        )
        return [value for value in made if value.key not in self._shipping]

    def _note(self, error: Exception) -> None:
        self._errors += 1
        if self._errors == 1:
            logger.warning("values stand inline", extra={"reason": str(error)})


def row_bytes(rows: Rows, group: GroupSchema) -> Int64:
    """int64[U]: bytes of each row by itself, encoded (see `dedup_cache.rows_codec`)."""
    ids = np.zeros(rows.num_rows, np.int64)
    for column in rows.lists.values():
        ids += column.lengths
    return 16 + 4 * (len(group.dense) + len(group.lists)) + 8 * ids
