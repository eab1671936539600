"""Which rows of the tables training has touched since the last version: one byte a row, however long that is ago."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from trainer.ikjt import TrainBatch
from trainer.tables import Table

Rows = dict[str, np.ndarray]
"""By table, int64 ids, ascending."""


class TouchedRows:
    """One rank's marks: rows that its own batches read, whoever holds them.

    A fused sparse optimizer changes no row that no batch read, and neither does a dense one without decay or momentum.
    """

    def __init__(self, tables: Sequence[Table], *, device: torch.device) -> None:
        """Marks lie on `device`, beside the ids."""
        self._marks = {table.name: torch.zeros(table.rows, dtype=torch.bool, device=device) for table in tables}
        self._shapes = {table.name: (table.rows, table.dim) for table in tables}
        self._table_of = {feature: table.name for table in tables for feature in table.features}

    def mark(self, batch: TrainBatch) -> None:
        """A step is being taken with this batch."""
        for group in batch.groups.values():
            if group.ids is None:
                continue
            features: list[str] = group.ids.keys()
            for feature in features:
                self._marks[self._table_of[feature]].index_fill_(0, group.ids[feature].values(), value=True)

    def share_of(self, rows: Rows) -> float:
        """How much of all the tables' elements lie in these rows."""
        whole = sum(count * dim for count, dim in self._shapes.values())
        return sum(len(ids) * self._shapes[table][1] for table, ids in rows.items()) / max(1, whole)

    def take(self) -> Rows:
        """All marked rows; from now on none is."""
        taken = {}
        for table, marks in self._marks.items():
            # numpy looks at eight marks at a time; torch is faster on a GPU alone.
            found = np.flatnonzero(marks.numpy()) if marks.device.type == "cpu" else marks.nonzero()[:, 0].cpu().numpy()
            taken[table] = found.astype(np.int64, copy=False)
            marks[torch.from_numpy(taken[table]).to(marks.device)] = False
        return taken

    def give_back(self, rows: Mapping[str, np.ndarray]) -> None:
        """Mark again what was taken, but did not reach a version."""
        for table, ids in rows.items():
            marks = self._marks[table]
            marks[torch.from_numpy(ids).to(marks.device)] = True


def united(parts: Sequence[Rows]) -> Rows:
    """What any of the ranks has touched."""
    if len(parts) == 1:
        return parts[0]
    return {table: np.unique(np.concatenate([part[table] for part in parts])) for table in parts[0]}
