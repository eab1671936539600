"""Ids for distinct rows from the shared index; large rows go by reference, their values once over `values`.

Losing the index costs bytes, never samples: without an answer every row stands inline.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from dedup_cache import (
    BatchSchema,
    EvictionPolicyError,
    GroupSchema,
    Held,
    Pool,
    Slicing,
    StoreUnavailable,
    ValueKey,
    distinct,
    encode_rows,
)
from dedup_cache.arrays import Bool, Int64, UInt64
from dedup_cache.assign import Assignment, IndexStore
from dedup_cache.jagged import Rows

NO_GENERATION = ""


class ShippedValue(NamedTuple):
    """One row that travels on `values` under its id."""

    generation: str
    group: str
    row_id: int
    fingerprint: tuple[int, int]
    blob: bytes

    @property
    def place(self) -> tuple[str, str, int]:
        """What it is the value of."""
        return (self.generation, self.group, self.row_id)

    @property
    def key(self) -> bytes:
        """Key of its record."""
        return ValueKey(self.generation, self.group, self.row_id).encode()


class References(NamedTuple):
    """What a group of a batch says of its U rows: ids int64[U] (-1: none), inline bool[U]."""

    ids: Int64
    inline: Bool


@dataclass(frozen=True, slots=True)
class Indexed:
    """Ids of the rows that many batches are made of, all of one generation, and the values that are not known yet."""

    generation: str = NO_GENERATION
    ids: dict[str, Int64] = field(default_factory=dict)
    """By group, where any row has one: int64[R], -1 where it has none."""
    unknown: dict[str, dict[int, ShippedValue]] = field(default_factory=dict)
    """By group and id."""

    def references(self, group: str, chosen: Int64) -> References | None:
        """Of the rows `chosen` int64[U]; None where all of them stand inline."""
        if group not in self.ids:
            return None
        ids = self.ids[group][chosen]
        inline = ids < 0
        return None if inline.all() else References(ids, inline)


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
        self._shipping: dict[tuple[str, str, int], ShippedValue] = {}
        self._errors = 0
        self.last_error = ""
        """Why the store gave no answer, the last time."""

    def salt(self, group: str) -> bytes:
        """What the fingerprints of a group begin with: another schema gives other fingerprints."""
        return self._salts[group]

    def index(self, held: dict[str, Held]) -> Indexed:
        """Ids for the rows that are worth one. Without an answer of the store: none, everything inline."""
        large = {name: self._large(group, name=name) for name, group in held.items()}
        large = {name: rows for name, rows in large.items() if rows.size}
        found = {name: distinct(held[name].fingerprints[rows]) for name, rows in large.items()}
        prints = {name: held[name].fingerprints[rows[found[name].first]] for name, rows in large.items()}
        assignments = self._assign(prints) if prints else None
        if assignments is None:
            return Indexed()
        ids, unknown = {}, {}
        for name, assignment in assignments.items():
            ids[name] = np.full(held[name].pool.num_rows, -1, np.int64)
            ids[name][large[name]] = assignment.ids[found[name].inverse]
            rows = large[name][found[name].first]
            unknown[name] = self._unknown(held[name].pool, rows, prints[name], name=name, of=assignment)
        return Indexed(next(iter(assignments.values())).generation, ids, unknown)

    def values(self, indexed: Indexed, ids: dict[str, Int64]) -> list[ShippedValue]:
        """What a batch that names these rows has to ship: not known, and not in the open transaction."""
        return [
            value
            for name, named in ids.items()
            for row_id in named.tolist()
            if (value := indexed.unknown[name].get(row_id)) is not None and value.place not in self._shipping
        ]

    def ship(self, values: list[ShippedValue]) -> None:
        """These go into the open transaction."""
        self._shipping.update((value.place, value) for value in values)

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

    def _large(self, held: Held, *, name: str) -> Int64:
        """The numbers of the rows that go by reference."""
        sizes = _encoded_bytes(held.pool.row_ids(), self._schemas[name])
        return np.flatnonzero((sizes > self._policy.inline_bytes) & (sizes <= self._policy.max_value_bytes))

    def _assign(self, wanted: dict[str, UInt64]) -> dict[str, Assignment] | None:
        """By group, ids for fingerprints, all of one generation; None without them."""
        try:
            return self._store.assign_groups(wanted)
        except (StoreUnavailable, EvictionPolicyError) as error:
            self._note(error)
            return None

    def _unknown(
        self, pool: Pool, rows: Int64, prints: UInt64, *, name: str, of: Assignment
    ) -> dict[int, ShippedValue]:
        """Those of the `rows` whose values nobody has, by id."""
        missing = np.flatnonzero(~of.known)
        if not missing.size:
            return {}
        schema = self._schemas[name]
        blobs = encode_rows(pool.take(rows[missing], slicing=(Slicing.NEVER,) * len(schema.lists)), schema)
        of_rows = zip(of.ids[missing].tolist(), prints[missing].tolist(), blobs, strict=True)
        return {row_id: ShippedValue(of.generation, name, row_id, (low, high), b) for row_id, (low, high), b in of_rows}

    def _note(self, error: Exception) -> None:
        self._errors += 1
        self.last_error = str(error)


def row_bytes(rows: Rows, group: GroupSchema) -> Int64:
    """int64[U]: bytes of each row by itself, encoded (see `dedup_cache.rows_codec`)."""
    ids = np.zeros(rows.num_rows, np.int64)
    for column in rows.lists.values():
        ids += column.lengths
    return _encoded_bytes(ids, group)


def most_row_bytes(rows: Rows, group: GroupSchema) -> int:
    """No row is larger, encoded."""
    longest = np.array([sum(int(column.lengths.max(initial=0)) for column in rows.lists.values())])
    return int(_encoded_bytes(longest, group)[0])


def _encoded_bytes(row_ids: Int64, group: GroupSchema) -> Int64:
    return 16 + 4 * (len(group.dense) + len(group.lists)) + 8 * row_ids
