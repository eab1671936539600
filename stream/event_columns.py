"""Records into events, block by block: the quick way for records of which a compiled scanner is sure.

Letters in shapes: E records of a block, M of them events, I of these impressions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dedup_cache import Jagged
from dedup_cache.arrays import AnyArray, Bool, Float32, Int64
from dedup_cache.jagged import gather
from stream.columns import ImpressionColumns
from stream.config import EventsConfig, FeatureConfig, LabelConfig
from stream.event_block import EVENT, IMPRESSION, EventBlock, objects
from stream.event_schema import EventSchema, feature_path
from stream.json_columns import JsonBlock, JsonColumns
from stream.records import RecordBlock


class Read(NamedTuple):
    """The events among the records that are certain, and the places int64[...] of the others in the block."""

    events: EventBlock
    unsure: Int64


class EventColumns:
    """Reads blocks of JSON records as `Decoder` does, and leaves it every record that may not be an event."""

    def __init__(
        self,
        events: EventsConfig,
        schema: EventSchema,
        *,
        features: Sequence[FeatureConfig],
        labels: Sequence[LabelConfig],
        max_ahead_ms: int,
    ) -> None:
        self._config = events
        self._max_ahead_ms = max_ahead_ms
        read = [feature for feature in features if feature.source is None]
        self._features = _FeatureColumns(read, labels)
        self._required = [feature_path(f) for f in read if f.required]
        names = (*events.impressions, *events.engagements)
        self._kinds = np.array([IMPRESSION] * len(events.impressions) + [k + 1 for k in range(len(events.engagements))])
        self._json = JsonColumns(schema.types, choices={events.fields.type: names})
        self._target = events.fields.impression_id if events.fields.event_id is not None else None

    def read(self, block: RecordBlock) -> Read:
        """Split a block into events and records to look at."""
        fields, found = self._config.fields, self._json.read(block.values)
        kinds = self._kinds[np.clip(found.choice(fields.type), 0, len(self._kinds) - 1)]
        times_ms = self._times_ms(found)
        certain = self._certain(found, block, kinds=kinds, times_ms=times_ms)
        places = np.flatnonzero(certain)
        chosen = slice(None) if places.size == certain.size else places  # mostly all: nothing is copied then
        rows = np.zeros(places.shape[0], EVENT)
        rows["offset"] = block.offsets[chosen]
        rows["append_ms"] = block.append_times_ms[chosen]
        rows["time_ms"] = times_ms[chosen]
        rows["kind"] = kinds[chosen]
        self._identify(found, places, rows)
        events = EventBlock(
            rows=rows,
            keys=found.hashes(fields.key, places),
            record_keys=objects(block.keys)[chosen],
            values=objects(block.values)[chosen],
            impressions=self._features.read(found, places[rows["kind"] == IMPRESSION]),
        )
        return Read(events, np.flatnonzero(~certain))

    def _times_ms(self, found: JsonBlock) -> Int64:
        """int64[E]; anything where there is none."""
        path = self._config.fields.time
        if self._config.time_unit == "ms":
            return found.integers(path)
        present = found.present(path) & found.sure
        times_ms: Int64 = np.rint(np.where(present, found.floats(path), 0.0) * 1000).astype(np.int64)
        return times_ms

    def _certain(self, found: JsonBlock, block: RecordBlock, *, kinds: Int64, times_ms: Int64) -> Bool:
        """bool[E]: the records that are events beyond doubt."""
        fields = self._config.fields
        certain = found.sure & (found.sizes <= self._config.max_bytes)
        for path in (fields.key, fields.time, fields.type, fields.event_id):
            if path is not None:
                certain &= found.present(path)
        named = found.present(self._target) if self._target is not None else False
        certain &= found.present(fields.item) | ((kinds != IMPRESSION) & named)
        for path in self._required:
            certain &= found.present(path) | (kinds != IMPRESSION)
        certain &= times_ms - block.append_times_ms <= self._max_ahead_ms
        return certain

    def _identify(self, found: JsonBlock, places: Int64, rows: AnyArray) -> None:
        """Fill in event ids, items and targets."""
        fields = self._config.fields
        has_item = found.present(fields.item)[places]
        rows["has_item"] = has_item
        with_item = places[has_item]
        items = found.hashes(fields.item, with_item)
        rows["item"][has_item] = items
        number = found.is_integer(fields.item)[with_item]
        rows["item_id"][has_item] = np.where(number, found.integers(fields.item)[with_item], items)
        rows["event_id"] = rows["offset"] if fields.event_id is None else found.hashes(fields.event_id, places)
        if self._target is not None:
            has_target = found.present(self._target)[places]
            rows["has_target"] = has_target
            rows["target"][has_target] = found.hashes(self._target, places[has_target])


class _FeatureColumns:
    """What `ImpressionReader` reads, out of columns."""

    def __init__(self, features: Sequence[FeatureConfig], labels: Sequence[LabelConfig]) -> None:
        self._dense = [feature for feature in features if feature.is_dense]
        self._single = [feature for feature in features if feature.type in ("int", "string")]
        self._lists = [feature for feature in features if feature.type in ("list[int]", "list[string]")]
        self._labels = labels

    def read(self, found: JsonBlock, places: Int64) -> ImpressionColumns:
        """The columns of the I impressions at int64[I] places."""
        count = places.shape[0]
        dense = [self._numbers(found, places, feature) for feature in self._dense]
        ids = np.zeros((count, len(self._single)), np.int64)
        has_id = np.ones((count, len(self._single)), np.bool_)
        for k, feature in enumerate(self._single):
            path = feature_path(feature)
            has_id[:, k] = present = found.present(path)[places]
            known = places[present]
            ids[present, k] = found.hashes(path, known) if feature.type == "string" else found.integers(path)[known]
        scores = np.full((count, len(self._labels)), np.nan, np.float32)
        for i, label in enumerate(self._labels):
            if label.score_field is not None:
                present = found.present(label.score_field)[places]
                scores[present, i] = found.floats(label.score_field)[places[present]]
        return ImpressionColumns(
            dense=np.concatenate([np.empty((count, 0), np.float32), *dense], axis=1),
            ids=ids,
            has_id=has_id,
            lists=tuple(self._list(found, places, feature) for feature in self._lists),
            scores=scores,
        )

    def _numbers(self, found: JsonBlock, places: Int64, feature: FeatureConfig) -> Float32:
        """float32[I, columns of the feature]"""
        path, width = feature_path(feature), len(feature.dense_columns)
        numbers = np.full((places.shape[0], width), feature.default, np.float64)
        present = found.present(path)[places]
        known = places[present]
        if feature.type == "float":
            numbers[present, 0] = found.floats(path)[known]
        else:
            numbers[present] = found.float_elements(found.list_starts(path)[known][:, None] + np.arange(width))
        return numbers.astype(np.float32)

    def _list(self, found: JsonBlock, places: Int64, feature: FeatureConfig) -> Jagged:
        path = feature_path(feature)
        present = found.present(path)[places]
        whole = np.where(present, found.lengths(path)[places], 0)
        lengths = np.minimum(whole, feature.max_length)
        starts = np.where(present, found.list_starts(path)[places], 0) + whole - lengths
        elements = gather(found.elements, starts, lengths.astype(np.int32))
        return Jagged.from_lengths(found.hashes_of(elements) if feature.type == "list[string]" else elements, lengths)
