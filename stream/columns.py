"""Feature columns of impressions, and the groups that samples are made of.

Letters in shapes: I impressions, S samples, D dense columns read from events, K id features, L labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import msgspec
import numpy as np
import xxhash

from dedup_cache import BatchSchema, GroupSchema, Jagged, Rows, Slicing
from dedup_cache.arrays import Bool, Float32, Int64
from stream.config import Config, FeatureConfig, LabelConfig
from stream.event_schema import feature_path
from stream.hashing import StringHashes
from stream.transforms import TRANSFORMS_VERSION, in_batch


@dataclass(frozen=True, slots=True, eq=False)
class ImpressionColumns:
    """What I impressions hold of the configured features that are read from events, in the order of the config."""

    dense: Float32
    """float32[I, D]"""
    ids: Int64
    """int64[I, K], the features of one id; 0 where it is missing."""
    has_id: Bool
    """bool[I, K]"""
    lists: tuple[Jagged, ...]
    """One column of I rows per list feature."""
    scores: Float32
    """float32[I, L], NaN where none was logged."""


def batch_schema(config: Config) -> BatchSchema:
    """Groups in order of first appearance, features after their transforms in config order, then those derived.

    The salt covers every feature's definition and the version of the operations' code, but not `slices`: the form in
    which a writer stores lists is no part of what they are.
    """
    slicing = {feature.name: Slicing(feature.slices) for feature in config.features}
    groups: dict[str, GroupSchema] = {}
    for feature in in_batch(config.features, config.derived):
        group = groups.get(feature.group, GroupSchema(feature.group))
        lists = () if feature.is_dense else (feature.name,)
        groups[feature.group] = GroupSchema(
            group.name,
            group.dense + feature.dense_columns,
            group.lists + lists,
            group.slicing + tuple(slicing.get(name, Slicing.AUTO) for name in lists),
        )
    given = [msgspec.structs.replace(feature, slices="auto") for feature in config.features]
    definitions = xxhash.xxh3_64_hexdigest(msgspec.json.encode([given, config.derived, TRANSFORMS_VERSION]))
    return BatchSchema(
        tuple(groups.values()), tuple(label.name for label in config.labels), f"{config.dedup.salt}/{definitions}"
    )


class EventColumns(Protocol):
    """Fields of decoded events by path, as `EventSchema` gives them; scoring requests have a form of their own."""

    def column(self, events: Sequence[msgspec.Struct], path: str) -> list[Any]:
        """The field at `path` of every event; None where it is missing."""
        ...


class ImpressionReader:
    """Takes feature columns out of decoded impressions.

    Strings become xxh3_64 hashes, integers stay themselves, lists keep their last `max_length` ids, a missing id
    feature is an empty list and a missing number the feature's default.
    """

    def __init__(
        self, schema: EventColumns, *, features: Sequence[FeatureConfig], labels: Sequence[LabelConfig]
    ) -> None:
        read = [feature for feature in features if feature.source is None]
        self._schema = schema
        self._dense = [feature for feature in read if feature.is_dense]
        self._single = [feature for feature in read if feature.type in ("int", "string")]
        self._lists = [feature for feature in read if feature.type in ("list[int]", "list[string]")]
        self._labels = labels
        self._hashes = StringHashes()

    def read(self, impressions: Sequence[msgspec.Struct]) -> ImpressionColumns:
        """The columns of I decoded impressions."""
        count = len(impressions)
        dense = [self._numbers(impressions, feature) for feature in self._dense]
        ids = np.zeros((count, len(self._single)), np.int64)
        has_id = np.ones((count, len(self._single)), np.bool_)
        for k, feature in enumerate(self._single):
            column = self._schema.column(impressions, feature_path(feature))
            if None in column:
                has_id[:, k] = [value is not None for value in column]
                column = [value for value in column if value is not None]
            ids[has_id[:, k], k] = self._identify(column, feature, count=len(column))
        return ImpressionColumns(
            dense=np.concatenate([np.empty((count, 0), np.float32), *dense], axis=1),
            ids=ids,
            has_id=has_id,
            lists=tuple(self._list(impressions, feature) for feature in self._lists),
            scores=self._scores(impressions),
        )

    def _numbers(self, impressions: Sequence[msgspec.Struct], feature: FeatureConfig) -> Float32:
        """float32[I, columns of the feature]"""
        width = len(feature.dense_columns)
        column: list[Any] = self._schema.column(impressions, feature_path(feature))
        if None in column:
            missing = feature.default if feature.type == "float" else [feature.default] * width
            column = [missing if value is None else value for value in column]
        return np.array(column, np.float64).reshape(len(column), width).astype(np.float32)

    def _list(self, impressions: Sequence[msgspec.Struct], feature: FeatureConfig) -> Jagged:
        column, longest = self._schema.column(impressions, feature_path(feature)), feature.max_length
        if None in column:
            column = [() if value is None else value for value in column]
        kept = [value if len(value) <= longest else value[-longest:] for value in column]
        lengths = np.fromiter(map(len, kept), np.int32, len(kept))
        ids = self._identify(chain.from_iterable(kept), feature, count=int(lengths.sum(dtype=np.int64)))
        return Jagged.from_lengths(ids, lengths)

    def _identify(self, values: Iterable[Any], feature: FeatureConfig, *, count: int) -> Int64:
        if feature.type in ("string", "list[string]"):
            return self._hashes.of(values, count=count)
        return np.fromiter(values, np.int64, count)

    def _scores(self, impressions: Sequence[msgspec.Struct]) -> Float32:
        scores = np.full((len(impressions), len(self._labels)), np.nan, np.float32)
        for i, label in enumerate(self._labels):
            if label.score_field is not None:
                scores[:, i] = np.array(self._schema.column(impressions, label.score_field), np.float64)
        return scores


class GroupAssembler:
    """Puts the columns of samples together, group by group."""

    def __init__(self, features: Sequence[FeatureConfig]) -> None:
        self._groups = _by_group(features)
        read = [feature for feature in features if feature.source is None]
        dense = [column for feature in read for column in feature.dense_columns]
        self._dense_at = {name: i for i, name in enumerate(dense)}
        single = [feature.name for feature in read if feature.type in ("int", "string")]
        self._single_at = {name: i for i, name in enumerate(single)}
        lists = [feature.name for feature in read if feature.type in ("list[int]", "list[string]")]
        self._list_at = {name: i for i, name in enumerate(lists)}

    def assemble(
        self, columns: ImpressionColumns, *, dense: dict[str, Float32], lists: dict[str, Jagged]
    ) -> dict[str, Rows]:
        """S rows per group, of columns read from the events and of session features, `dense` and `lists`, by name."""
        return {name: self._rows(members, columns, dense, lists) for name, members in self._groups.items()}

    def _rows(
        self,
        members: Sequence[FeatureConfig],
        columns: ImpressionColumns,
        dense: dict[str, Float32],
        lists: dict[str, Jagged],
    ) -> Rows:
        names = [column for feature in members for column in feature.dense_columns]
        matrix = np.empty((columns.dense.shape[0], len(names)), np.float32)
        for i, name in enumerate(names):
            matrix[:, i] = dense[name] if name in dense else columns.dense[:, self._dense_at[name]]
        jagged = {f.name: self._list(f.name, columns, lists) for f in members if not f.is_dense}
        return Rows(matrix, jagged)

    def _list(self, name: str, columns: ImpressionColumns, lists: dict[str, Jagged]) -> Jagged:
        if name in lists:
            return lists[name]
        if name in self._list_at:
            return columns.lists[self._list_at[name]]
        k = self._single_at[name]
        present = columns.has_id[:, k]
        return Jagged.from_lengths(columns.ids[present, k], present.astype(np.int32))


def _by_group(features: Sequence[FeatureConfig]) -> dict[str, list[FeatureConfig]]:
    groups: dict[str, list[FeatureConfig]] = {}
    for feature in features:
        groups.setdefault(feature.group, []).append(feature)
    return groups
