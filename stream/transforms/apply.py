"""Transforms on the distinct rows of a group: what RecD calls O4 (arXiv 2211.05239), the same in stream and server.

Letters in shapes: U distinct rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dedup_cache import Deduplicated, Group, Rows, deduplicate, distinct, fingerprints
from dedup_cache.arrays import AnyArray
from dedup_cache.jagged import Jagged
from stream.transforms.operation import Column, Ids, Operation
from stream.transforms.plan import DerivedFeature, GivenFeature, Planned, plan

TRANSFORMS_VERSION = 1
"""Raised when an operation gives other results for the same input: part of every fingerprint and schema digest."""
ID_BYTES, COLUMN_BYTES, ROW_BYTES = 8, 4, 16


@dataclass(frozen=True, slots=True)
class _Step:
    """One feature: made of its inputs, or of the column of its own name, by operations one after the other."""

    name: str
    inputs: tuple[str, ...]
    operations: tuple[Operation, ...]

    @staticmethod
    def of(feature: Planned) -> _Step:
        """Resolve what the config says."""
        operations = tuple(transform.operation for transform in feature.transforms)
        return _Step(feature.name, feature.inputs or (feature.name,), operations)


@dataclass(frozen=True, slots=True)
class _GroupPlan:
    """How the features of one group are made, in order, and where those given stand in the dense matrix."""

    dense_places: dict[str, slice]
    merges: bool
    """Whether different rows may well become equal."""
    early: tuple[_Step, ...]
    """What makes rows different, and all that this is made of."""
    late: tuple[_Step, ...]
    """The others, which follow from it."""
    deciding: tuple[str, ...]
    """Of the early features, those that batches hold."""
    in_batch: tuple[str, ...]


class Transforms:
    """The transforms of a configuration, by group. Pure: each row of the result follows from its own row alone."""

    def __init__(self, features: Sequence[GivenFeature], derived: Sequence[DerivedFeature] = ()) -> None:
        planned = plan(features, derived)
        changed = {feature.group for feature in planned if feature.transforms or feature.inputs or not feature.in_batch}
        self._groups = {name: _group_plan([f for f in planned if f.group == name]) for name in changed}
        self._most_bytes = {name: _most_bytes([f for f in planned if f.group == name]) for name in changed}

    def changes(self, group: str) -> bool:
        """Whether the group has any."""
        return group in self._groups

    def rows(self, given: Rows, *, group: str) -> Rows:
        """The rows as batches hold them, of rows as events and sessions give them; U rows of U."""
        if group not in self._groups:
            return given
        group_plan = self._groups[group]
        columns = _given(given, group_plan)
        _run(group_plan.early + group_plan.late, columns)
        return _rows(group_plan.in_batch, columns, num_rows=given.num_rows)

    def distinct(self, given: Rows, *, group: str, salt: bytes) -> Deduplicated:
        """Distinct rows, transformed. `salt` must change with the transforms, as `batch_schema` sees to.

        Where the group's transforms are of a kind that makes rows equal (shortened lists, buckets), those become one;
        the fingerprints are then those of the features that make rows different, as transformed, and elsewhere those
        of the rows as given.
        """
        return self.of_distinct(deduplicate(given, salt=salt), group=group, salt=salt)

    def of_distinct(self, first: Deduplicated, *, group: str, salt: bytes) -> Deduplicated:
        """What `distinct` does after the rows as given have been deduplicated."""
        if group not in self._groups:
            return first
        if self._groups[group].merges:
            return self._merged(first, group=group, salt=salt)
        return Deduplicated(Group(self.rows(first.group.rows, group=group), first.group.inverse), first.fingerprints)

    def _merged(self, first: Deduplicated, *, group: str, salt: bytes) -> Deduplicated:
        """One row of those that become equal.

        In this order: what makes rows different is made, its fingerprints tell which rows are equal, and features
        that follow from it are made of what is left.
        """
        group_plan = self._groups[group]
        given, inverse = first.group.rows, first.group.inverse
        columns = _given(given, group_plan)
        _run(group_plan.early, columns)
        prints = fingerprints(_rows(group_plan.deciding, columns, num_rows=given.num_rows), salt=salt)
        merged = distinct(prints)
        if merged.first.size < given.num_rows:
            columns = {name: _select(column, merged.first) for name, column in columns.items()}
            prints, inverse = prints[merged.first], merged.inverse[inverse]
        _run(group_plan.late, columns)
        made = _rows(group_plan.in_batch, columns, num_rows=merged.first.size)
        return Deduplicated(Group(made, inverse), prints)

    def most_bytes(self, group: str) -> int | None:
        """No row of the result is larger, encoded; None for a group without transforms."""
        return self._most_bytes.get(group)


def _group_plan(features: Sequence[Planned]) -> _GroupPlan:
    places: dict[str, slice] = {}
    width = 0
    for feature in features:
        if feature.given is not None and not isinstance(feature.given, Ids):
            places[feature.name] = slice(width, width + feature.given.width)
            width += feature.given.width
    own = [feature for feature in features if feature.given is not None]
    merges = any(not f.in_batch or any(t.operation.merges for t in f.transforms) for f in own)
    hidden = _readers({feature.name for feature in own if not feature.in_batch}, features)
    deciding = tuple(f.name for f in features if f.in_batch and (f.given is not None or f.name in hidden))
    early = _sources(deciding, features)
    return _GroupPlan(
        places,
        merges,
        tuple(_Step.of(f) for f in features if f.name in early),
        tuple(_Step.of(f) for f in features if f.name not in early),
        deciding,
        tuple(f.name for f in features if f.in_batch),
    )


def _most_bytes(features: Sequence[Planned]) -> int:
    return ROW_BYTES + sum(
        COLUMN_BYTES + ID_BYTES * f.kind.max_length if isinstance(f.kind, Ids) else COLUMN_BYTES * f.kind.width
        for f in features
        if f.in_batch
    )


def _readers(names: set[str], features: Sequence[Planned]) -> set[str]:
    """These and all that is made of them."""
    for feature in features:
        if not names.isdisjoint(feature.inputs):
            names = names | {feature.name}
    return names


def _sources(names: Sequence[str], features: Sequence[Planned]) -> set[str]:
    """These, all that they are made of, and all that is given."""
    wanted = set(names)
    for feature in reversed(features):
        if feature.name in wanted or feature.given is not None:
            wanted |= {feature.name, *feature.inputs}
    return wanted


def _run(steps: Sequence[_Step], columns: dict[str, Column]) -> None:
    """Make one column after the other."""
    for step in steps:
        inputs = [columns[name] for name in step.inputs]
        for operation in step.operations:
            inputs = [operation.run(*inputs)]
        columns[step.name] = inputs[0]


def _given(rows: Rows, group_plan: _GroupPlan) -> dict[str, Column]:
    dense: dict[str, Column] = {name: rows.dense[:, place] for name, place in group_plan.dense_places.items()}
    return dense | rows.lists


def _rows(names: Sequence[str], columns: dict[str, Column], *, num_rows: int) -> Rows:
    dense = [np.empty((num_rows, 0), np.float32)]
    lists = {}
    for name in names:
        column = columns[name]
        if isinstance(column, Jagged):
            lists[name] = column
        else:
            dense.append(column)
    return Rows(np.concatenate(dense, axis=1), lists)


def _select(column: Column, places: AnyArray) -> Column:
    return column.select(places) if isinstance(column, Jagged) else column[places]
