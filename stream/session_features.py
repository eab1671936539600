"""Features computed from a sample's own session: only events strictly earlier than the impression count.

So all candidates of one request, which share a time, share a row. List features are overlapping slices of one union
array of ids (RecD's partial IKJT, arXiv 2211.05239). Letters in shapes: N events, S samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dedup_cache import Jagged
from dedup_cache.arrays import Bool, Float32, Int64
from stream.config import FeatureConfig
from stream.events import IMPRESSION
from stream.labels import ClosedEvents


class SessionFeatures:
    """Session features of the impressions among closed events.

    - `session.items`: item ids of earlier impressions, oldest first; an integer item is its own id, so it can share a
      table with an integer item feature, a string its hash.
    - `session.engaged_items`: item ids of earlier engagements; one that carries no item has its impression's.
    - `session.impressions`, `session.engagements`: how many were earlier.
    - `session.ms_since_last_event`, `session.ms_since_start`: 0 where nothing was earlier.
    """

    def __init__(self, events: ClosedEvents, *, matched: Int64) -> None:
        self._events = events
        self._matched = matched
        is_impression = events.rows["kind"] == IMPRESSION
        self._is_impression = is_impression
        self._samples = np.flatnonzero(is_impression)
        self._first = events.session_first[self._samples]
        self._now = events.tie_first[self._samples]
        self._dense_sources: dict[str, Callable[[], Float32]] = {
            "session.impressions": lambda: self._count(is_impression),
            "session.engagements": lambda: self._count(~is_impression),
            "session.ms_since_last_event": lambda: self._since(np.maximum(self._now - 1, self._first)),
            "session.ms_since_start": lambda: self._since(self._first),
        }

    def dense(self, features: Sequence[FeatureConfig]) -> dict[str, Float32]:
        """float32[S] by feature name."""
        return {f.name: self._dense_sources[f.source]() for f in features if f.source in self._dense_sources}

    def lists(self, features: Sequence[FeatureConfig]) -> dict[str, Jagged]:
        """One column of S rows by feature name; at most `max_length` ids, the latest."""
        columns = {}
        for feature in features:
            if feature.source == "session.items":
                rows = self._events.rows
                columns[feature.name] = self._slices(self._is_impression, rows["item_id"], feature.max_length)
            elif feature.source == "session.engaged_items":
                columns[feature.name] = self._slices(*self._engaged(), feature.max_length)
        return columns

    def _engaged(self) -> tuple[Bool, Int64]:
        """(is an engagement whose item is known, the item's id), both [N]."""
        rows = self._events.rows
        item_ids = np.where(rows["has_item"], rows["item_id"], rows["item_id"][self._matched])
        known = ~self._is_impression & (rows["has_item"] | (self._matched >= 0))
        return known, item_ids

    def _count(self, counted: Bool) -> Float32:
        before = _before(counted)
        return (before[self._now] - before[self._first]).astype(np.float32)

    def _since(self, event: Int64) -> Float32:
        times = self._events.rows["time_ms"]
        elapsed = times[self._samples] - times[event]
        return np.where(self._now > self._first, elapsed, 0).astype(np.float32)

    def _slices(self, members: Bool, item_ids: Int64, max_length: int) -> Jagged:
        before = _before(members)
        ends = before[self._now]
        starts = np.maximum(before[self._first], ends - max_length)
        return Jagged(item_ids[members], starts.astype(np.int32), (ends - starts).astype(np.int32))


def _before(members: Bool) -> Int64:
    """int64[N + 1]: how many members stand before each place."""
    return np.concatenate([[0], np.cumsum(members, dtype=np.int64)])
