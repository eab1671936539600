"""From a request to the batch that the model reads, in the very form that training uses.

A group whose features no candidate touches is one row, however many candidates there are; what candidates do touch is
deduplicated. The transforms run on the distinct rows, by the stream's own code.

Letters in shapes: K candidates, U distinct rows of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from msgspec import UNSET

from dedup_cache import Jagged, Rows
from dedup_cache.arrays import Float32
from serving.errors import RequestError
from serving.requests import RequestSchema, ScoreRequest
from stream.columns import GroupAssembler, ImpressionReader
from stream.config import DerivedConfig, FeatureConfig, ModelConfig
from stream.hashing import hash_strings
from stream.transforms import Transforms
from trainer.ikjt import GroupTensors, TrainBatch, group_specs, to_group


class Encoded(NamedTuple):
    """A batch of K samples; `rows` were asked for (K a group), `distinct` of them are computed."""

    batch: TrainBatch
    rows: int
    distinct: int


class RequestEncoder:
    """Encodes requests for one model."""

    def __init__(
        self,
        features: Sequence[FeatureConfig],
        *,
        num_labels: int,
        model: ModelConfig,
        derived: Sequence[DerivedConfig] = (),
    ) -> None:
        self.schema = RequestSchema(features)
        self._num_labels = num_labels
        self._specs = group_specs(features, model, derived=derived)
        self._transforms = Transforms(features, derived)
        self._members = {name: [f for f in features if f.group == name] for name in self._specs}

    def encode(self, request: ScoreRequest) -> Encoded:
        """K must be above 0. RequestError where a required feature is missing."""
        count = len(request.candidates)
        groups = {name: self._group(request, members) for name, members in self._members.items()}
        labels = torch.zeros(count, self._num_labels)
        batch = TrainBatch(groups, labels, torch.ones(count), torch.full_like(labels, torch.nan))
        return Encoded(batch, count * len(groups), sum(int(group.dense.shape[0]) for group in groups.values()))

    def _group(self, request: ScoreRequest, members: Sequence[FeatureConfig]) -> GroupTensors:
        columns = _Columns(request, members=members, attributes=self.schema.attributes)
        rows = _rows(columns, members)
        name = members[0].group
        spec = self._specs[name]
        if columns.shared_only:
            made = self._transforms.rows(rows, group=name)
            return to_group(made, np.zeros(len(request.candidates), np.int32), spec=spec)
        group = self._transforms.distinct(rows, group=name, salt=b"").group
        return to_group(group.rows, group.inverse, spec=spec)


class _Columns:
    """The values of one group's features by name, in place of decoded events: one row, or one a candidate."""

    def __init__(self, request: ScoreRequest, *, members: Sequence[FeatureConfig], attributes: dict[str, str]) -> None:
        own = {f.name: list(map(attrgetter(attributes[f.name]), request.candidates)) for f in members}
        self.shared_only = all(value is UNSET for column in own.values() for value in column)
        self.rows = [request.shared] if self.shared_only else request.candidates
        self._values: dict[str, list[Any]] = {}
        for feature in members:
            shared = getattr(request.shared, attributes[feature.name])
            shared = None if shared is UNSET else shared
            column = [shared] if self.shared_only else [shared if v is UNSET else v for v in own[feature.name]]
            if feature.required and None in column:
                at = "features" if self.shared_only else f"candidates[{column.index(None)}]"
                raise RequestError(f"Feature {feature.name} is required, but missing - at $.{at}.{feature.name}")
            self._values[feature.name] = column

    def column(self, _events: Sequence[msgspec.Struct], path: str) -> list[Any]:
        """As `EventSchema.column`."""
        return self._values[path]


def _rows(columns: _Columns, members: Sequence[FeatureConfig]) -> Rows:
    """The group's rows, by the code that reads events; what the stream takes from the session, the request brings."""
    named = [msgspec.structs.replace(feature, field=None) for feature in members]
    read = ImpressionReader(columns, features=named, labels=()).read(columns.rows)
    session = [feature for feature in named if feature.source is not None]
    dense = {f.name: _numbers(columns.column((), f.name)) for f in session if f.is_dense}
    lists = {f.name: _items(columns.column((), f.name), feature=f) for f in session if not f.is_dense}
    return GroupAssembler(named).assemble(read, dense=dense, lists=lists)[members[0].group]


def _numbers(values: list[float | None]) -> Float32:
    return np.array([0.0 if value is None else value for value in values], np.float64).astype(np.float32)


def _items(values: list[list[int | str] | None], *, feature: FeatureConfig) -> Jagged:
    """Ids as `session.items` has them: an integer is itself, a string its hash; the latest `max_length`."""
    kept = [() if value is None else value[-feature.max_length :] for value in values]
    ids = list(chain.from_iterable(kept))
    hashed = iter(hash_strings([item for item in ids if isinstance(item, str)]).tolist())
    numbers = np.array([next(hashed) if isinstance(item, str) else item for item in ids], np.int64)
    return Jagged.from_lengths(numbers, np.fromiter(map(len, kept), np.int32, len(kept)))
