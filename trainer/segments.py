"""Which segment a sample belongs to: of a new or a known item, brought by a late event or one on time.

Both are known before the sample is trained. Letters in shapes: B samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dedup_cache import Batch
from stream.config import Config
from stream.transforms import in_batch
from trainer.ikjt import hash_ids

ITEM_BUCKETS = 1 << 20
"""Items are counted by hash: two that meet in a bucket count as one."""
USER_BUCKETS = 1 << 12
SEGMENTS: Mapping[str, tuple[int, ...]] = {
    "new_items": (0, 1),
    "known_items": (2, 3),
    "on_time": (0, 2),
    "late": (1, 3),
}
"""The cells that a segment consists of. Cell = 2 * (the item is known) + (the event was late)."""
NUM_CELLS = 4


@dataclass(frozen=True)
class Marks:
    """Of each sample: buckets of its item and its user (int64[B], None where no feature has them), bool[B] late."""

    items: np.ndarray | None
    users: np.ndarray | None
    late: np.ndarray


@dataclass(frozen=True)
class Marker:
    """Finds the item and the user of samples; `item`, `user` are (group, feature) or None."""

    item: tuple[str, str] | None
    user: tuple[str, str] | None
    late_after_ms: int

    @staticmethod
    def of(config: Config) -> Marker:
        """By the features that read the events' item and key."""
        fields = config.events.fields
        return Marker(
            item=_feature_of(config, fields.item),
            user=_feature_of(config, fields.key),
            late_after_ms=config.trainer.evaluation.late_after_ms,
        )

    def mark(self, batch: Batch) -> Marks:
        """`batch` has its rows inline."""
        return Marks(
            items=_buckets(batch, self.item, buckets=ITEM_BUCKETS),
            users=_buckets(batch, self.user, buckets=USER_BUCKETS),
            late=batch.append_times_ms - batch.event_times_ms > self.late_after_ms,
        )


class KnownItems:
    """How often each item was trained, up to `enough`: below that it is new."""

    def __init__(self, *, enough: int) -> None:
        """`enough` 255 at most."""
        self._enough = enough
        self.counts = np.zeros(ITEM_BUCKETS, np.uint8)

    def cells(self, marks: Marks | None, *, num_samples: int) -> np.ndarray:
        """Cell int64[B] of each sample, going by what was trained before; then the samples count as trained."""
        if marks is None:
            return np.full(num_samples, NUM_CELLS - 2)
        known = np.ones(num_samples, bool)
        if marks.items is not None:
            known = self.counts[marks.items] >= self._enough
            items, times = np.unique(marks.items[~known], return_counts=True)
            self.counts[items] = np.minimum(self.counts[items] + times, self._enough)
        cells: np.ndarray = 2 * known + marks.late
        return cells


def _feature_of(config: Config, field: str) -> tuple[str, str] | None:
    """Group and name of the id feature that reads this field of the events."""
    held = {feature.name for feature in in_batch(config.features, config.derived) if not feature.is_dense}
    for feature in config.features:
        if feature.source is None and (feature.field or feature.name) == field and feature.name in held:
            return feature.group, feature.name
    return None


def _buckets(batch: Batch, feature: tuple[str, str] | None, *, buckets: int) -> np.ndarray | None:
    """The bucket of each sample's first id; of one without an id bucket 0."""
    if feature is None or not batch.num_samples:
        return None
    group = batch.groups[feature[0]]
    column = group.rows.lists[feature[1]]
    has_one = column.lengths > 0
    rows = np.zeros(len(column.lengths), np.int64)
    rows[has_one] = hash_ids(column.values[column.starts[has_one]], rows=buckets)
    found: np.ndarray = rows[group.inverse]
    return found
