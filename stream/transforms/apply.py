"""Transforms on the distinct rows of a group: what RecD calls O4 (arXiv 2211.05239), the same in stream and server.

Letters in shapes: U distinct rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dedup_cache import Deduplicated, Group, Rows, deduplicate
from dedup_cache.jagged import Jagged
from stream.transforms.operation import Column, Ids
from stream.transforms.plan import DerivedFeature, GivenFeature, Planned, plan

TRANSFORMS_VERSION = 1
"""Raised when an operation gives other results for the same input: part of every fingerprint and schema digest."""
ID_BYTES, COLUMN_BYTES, ROW_BYTES = 8, 4, 16


@dataclass(frozen=True, slots=True)
class _GroupPlan:
    """The features of one group in the order of their computation, and where those given stand in the dense matrix."""

    features: tuple[Planned, ...]
    dense_places: dict[str, slice]
    merges: bool
    """Whether different rows may well become equal."""


class Transforms:
    """The transforms of a configuration, by group. Pure: each row of the result follows from its own row alone."""

    def __init__(self, features: Sequence[GivenFeature], derived: Sequence[DerivedFeature] = ()) -> None:
        planned = plan(features, derived)
        changed = {feature.group for feature in planned if feature.transforms or feature.inputs or not feature.in_batch}
        self._groups = {name: _group_plan([f for f in planned if f.group == name]) for name in changed}

    def changes(self, group: str) -> bool:
        """Whether the group has any."""
        return group in self._groups

    def rows(self, given: Rows, *, group: str) -> Rows:
        """The rows as batches hold them, of rows as events and sessions give them; U rows of U."""
        if group not in self._groups:
            return given
        group_plan = self._groups[group]
        columns: dict[str, Column] = {}
        for feature in group_plan.features:
            inputs = [columns[name] for name in feature.inputs] or [_given(feature.name, given, group_plan)]
            for transform in feature.transforms:
                inputs = [transform.operation.run(*inputs)]
            columns[feature.name] = inputs[0]
        kept = [(feature.name, columns[feature.name]) for feature in group_plan.features if feature.in_batch]
        dense = [column for _, column in kept if not isinstance(column, Jagged)]
        return Rows(
            np.concatenate([np.empty((given.num_rows, 0), np.float32), *dense], axis=1),
            {name: column for name, column in kept if isinstance(column, Jagged)},
        )

    def distinct(self, given: Rows, *, group: str, salt: bytes) -> Deduplicated:
        """Distinct rows, transformed. `salt` must change with the transforms, as `batch_schema` sees to.

        Where the group's transforms are of a kind that makes rows equal (shortened lists, buckets), those become one,
        and the fingerprints are those of the result; elsewhere they are those of the rows as given.
        """
        first = deduplicate(given, salt=salt)
        if group not in self._groups:
            return first
        made = self.rows(first.group.rows, group=group)
        if not self._groups[group].merges:
            return Deduplicated(Group(made, first.group.inverse), first.fingerprints)
        second = deduplicate(made, salt=salt)
        return Deduplicated(Group(second.group.rows, second.group.inverse[first.group.inverse]), second.fingerprints)

    def most_bytes(self, group: str) -> int | None:
        """No row of the result is larger, encoded; None for a group without transforms."""
        if group not in self._groups:
            return None
        kept = [feature for feature in self._groups[group].features if feature.in_batch]
        return ROW_BYTES + sum(
            COLUMN_BYTES + ID_BYTES * f.kind.max_length if isinstance(f.kind, Ids) else COLUMN_BYTES * f.kind.width
            for f in kept
        )


def _group_plan(features: Sequence[Planned]) -> _GroupPlan:
    places: dict[str, slice] = {}
    width = 0
    for feature in features:
        if feature.given is not None and not isinstance(feature.given, Ids):
            places[feature.name] = slice(width, width + feature.given.width)
            width += feature.given.width
    own = [feature for feature in features if feature.given is not None]
    merges = any(not f.in_batch or any(t.operation.merges for t in f.transforms) for f in own)
    return _GroupPlan(tuple(features), places, merges)


def _given(name: str, rows: Rows, group_plan: _GroupPlan) -> Column:
    place = group_plan.dense_places.get(name)
    return rows.lists[name] if place is None else rows.dense[:, place]
