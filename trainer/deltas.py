"""Deltas: what a version changes in the one before it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from trainer.manifest import Manifest, TableEntry, VersionError
from trainer.version_files import Tensors


@dataclass(frozen=True)
class RowUpdate:
    """New weights float32[n, columns] of the rows `ids` (int64[n]) of one table, from column `col` on."""

    table: str
    ids: np.ndarray
    col: int
    weights: np.ndarray


@dataclass(frozen=True)
class Delta:
    """A verified delta. All dense weights, and the touched rows of the tables."""

    manifest: Manifest
    dense: dict[str, np.ndarray]
    updates: tuple[RowUpdate, ...]

    def apply_to(self, tables: Mapping[str, np.ndarray]) -> None:
        """Write the touched rows into float32[rows, dim] tables, in place.

        VersionError, before anything is written, where a table is missing or has another shape.
        """
        for table in self.manifest.tables:
            found = tables[table.name].shape if table.name in tables else None
            if found != (table.rows, table.dim):
                what = f"version {self.manifest.version}: table {table.name}"
                raise VersionError(f"{what} is {[table.rows, table.dim]}, the base has {list(found or ())}")
        for update in self.updates:
            tables[update.table][update.ids, update.col : update.col + update.weights.shape[1]] = update.weights


def row_updates(tables: Iterable[TableEntry], tensors: Tensors) -> tuple[RowUpdate, ...]:
    """The updates that a delta's files hold; KeyError for what is not there, VersionError for what does not fit."""
    return tuple(
        _checked(
            RowUpdate(table.name, tensors[shard.file][shard.ids], shard.col, tensors[shard.file][shard.tensor]),
            table=table,
        )
        for table in tables
        for shard in table.shards
    )


def _checked(update: RowUpdate, *, table: TableEntry) -> RowUpdate:
    ids, weights = update.ids, update.weights
    if ids.dtype != np.int64 or weights.dtype != np.float32 or weights.ndim != 2 or ids.shape != weights.shape[:1]:
        raise VersionError(f"table {table.name}: expected int64[n] ids and float32[n, columns] weights")
    if len(ids) and not (ids.min() >= 0 and ids.max() < table.rows and update.col + weights.shape[1] <= table.dim):
        raise VersionError(f"table {table.name}: a touched row lies outside of its {table.rows} x {table.dim}")
    return update
