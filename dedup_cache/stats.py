"""How much deduplication saves in a batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dedup_cache.batch import Batch, group_arrays, sample_arrays
from dedup_cache.ikjt import Group


@dataclass(frozen=True, slots=True)
class GroupStats:
    """Rows and ids of one group: `_in` counts what a plain batch would hold, the others what this one holds."""

    rows_in: int
    rows_distinct: int
    ids_in: int
    ids_stored: int


@dataclass(frozen=True, slots=True)
class BatchStats:
    """Sums over the groups, and uncompressed bytes of all arrays, plain and deduplicated.

    The plain form is one row per sample, lists as values (8 bytes an id) and lengths (4 bytes a row), without inverse.
    Rows that stand by reference count as empty: their ids are not in the batch.
    """

    rows_in: int
    rows_distinct: int
    ids_in: int
    ids_stored: int
    bytes_plain: int
    bytes_dedup: int
    groups: dict[str, GroupStats]


def batch_stats(batch: Batch) -> BatchStats:
    """Count rows, ids and bytes of a batch; O(B) per list."""
    groups = {name: _group_stats(group) for name, group in batch.groups.items()}
    sample_bytes = sum(array.nbytes for array in sample_arrays(batch).values())
    dedup = sum(array.nbytes for group in batch.groups.values() for array in group_arrays(group).values())
    plain = sum(_plain_bytes(group, groups[name]) for name, group in batch.groups.items())
    return BatchStats(
        rows_in=sum(group.rows_in for group in groups.values()),
        rows_distinct=sum(group.rows_distinct for group in groups.values()),
        ids_in=sum(group.ids_in for group in groups.values()),
        ids_stored=sum(group.ids_stored for group in groups.values()),
        bytes_plain=sample_bytes + plain,
        bytes_dedup=sample_bytes + dedup,
        groups=groups,
    )


def _group_stats(group: Group) -> GroupStats:
    lists = group.rows.lists.values()
    row_ids = np.zeros(group.rows.num_rows, np.int64)
    for column in lists:
        row_ids += column.lengths
    return GroupStats(
        rows_in=group.num_samples,
        rows_distinct=group.rows.num_rows,
        ids_in=int(row_ids[group.inverse].sum()),
        ids_stored=sum(column.values.shape[0] for column in lists),
    )


def _plain_bytes(group: Group, stats: GroupStats) -> int:
    per_sample = 4 * int(group.rows.dense.shape[1]) + 4 * len(group.rows.lists)
    return stats.rows_in * per_sample + 8 * stats.ids_in
