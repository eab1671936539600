"""What must hold inside a feature group before anyone indexes with it."""

from __future__ import annotations

import numpy as np

from dedup_cache.errors import BatchError
from dedup_cache.ikjt import Group
from dedup_cache.jagged import Jagged


def check_group(group: Group, field: str) -> None:
    """Raise BatchError, naming the array, unless every number in the group leads somewhere that exists."""
    num_rows = group.rows.num_rows
    if num_rows > group.num_samples:
        raise BatchError(f"{field}/dense", f"{num_rows} distinct rows for {group.num_samples} samples")
    if group.inverse.size and (int(group.inverse.min()) < 0 or int(group.inverse.max()) >= num_rows):
        raise BatchError(f"{field}/inverse", f"a row number outside [0, {num_rows})")
    for name, column in group.rows.lists.items():
        _check_column(column, f"{field}/list/{name}")
    _check_references(group, field)


def _check_column(column: Jagged, field: str) -> None:
    if not column.lengths.size:
        return
    if int(column.lengths.min()) < 0:
        raise BatchError(f"{field}/lengths", "a negative length")
    if int(column.starts.min()) < 0:
        raise BatchError(f"{field}/starts", "a negative start")
    last = int((column.starts.astype(np.int64) + column.lengths).max())
    if last > column.values.shape[0]:
        raise BatchError(f"{field}/starts", f"a row ends at {last}, beyond the {column.values.shape[0]} values")


def _check_references(group: Group, field: str) -> None:
    if group.ids is None or group.inline is None:
        return
    if group.ids.size and int(group.ids.min()) < -1:
        raise BatchError(f"{field}/ids", "an id below -1")
    absent = ~group.inline
    if bool((group.ids[absent] < 0).any()):
        raise BatchError(f"{field}/ids", "a row that is not inline has no id")
    for name, column in group.rows.lists.items():
        if bool(column.lengths[absent].any()):
            raise BatchError(f"{field}/list/{name}/lengths", "a row that is not inline holds ids")
