"""From requests to the batch that the model reads, in the very form that training uses.

A group whose features no candidate touches is one row, however many candidates there are; what candidates do touch is
deduplicated, across the requests of the batch too. The transforms run on the distinct rows, by the stream's own code.

Letters in shapes: K candidates of a request, B of all requests, R rows of a column (1 or K), U distinct rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from dedup_cache import Jagged, Rows
from dedup_cache.arrays import AnyArray, Float32, Int32
from serving.requests import Column, ScoreRequest
from stream.config import DerivedConfig, FeatureConfig, ModelConfig
from stream.transforms import Transforms
from trainer.ikjt import GroupTensors, TrainBatch, group_specs, to_group


class Encoded(NamedTuple):
    """A batch of B samples, request by request; `rows` were asked for (B a group), `distinct` of them are computed."""

    batch: TrainBatch
    rows: int
    distinct: int


class RequestEncoder:
    """Encodes requests for one set of features and one model; safe to use from several threads."""

    def __init__(
        self,
        features: Sequence[FeatureConfig],
        *,
        num_labels: int,
        model: ModelConfig,
        derived: Sequence[DerivedConfig] = (),
    ) -> None:
        self._num_labels = num_labels
        self._specs = group_specs(features, model, derived=derived)
        self._transforms = Transforms(features, derived)
        self._members = {name: [f for f in features if f.group == name] for name in self._specs}

    def encode(self, requests: Sequence[ScoreRequest], *, dedup: bool = True) -> Encoded:
        """Every K must be above 0. `dedup` false computes every candidate by itself: the baseline."""
        count = sum(request.num_candidates for request in requests)
        groups = {name: self._group(requests, name, dedup=dedup) for name in self._specs}
        labels = torch.zeros(count, self._num_labels)
        batch = TrainBatch(groups, labels, torch.ones(count), torch.full_like(labels, torch.nan))
        return Encoded(batch, count * len(groups), sum(int(group.dense.shape[0]) for group in groups.values()))

    def _group(self, requests: Sequence[ScoreRequest], name: str, *, dedup: bool) -> GroupTensors:
        """Rows of all requests one behind the other, made distinct, and each sample's."""
        members, spec = self._members[name], self._specs[name]
        given = [_rows(request, members) for request in requests]
        rows = given[0] if len(given) == 1 else Rows.concat(given)
        of_sample = _rows_of_samples([r.num_candidates for r in requests], [part.num_rows for part in given])
        if not dedup:
            made = self._transforms.rows(rows.take(of_sample), group=name)
            return to_group(made, np.arange(of_sample.size, dtype=np.int32), spec=spec)
        if rows.num_rows == 1:
            return to_group(self._transforms.rows(rows, group=name), of_sample, spec=spec)
        group = self._transforms.distinct(rows, group=name, salt=b"").group
        return to_group(group.rows, group.inverse[of_sample], spec=spec)


def _rows(request: ScoreRequest, members: Sequence[FeatureConfig]) -> Rows:
    """One group of one request: one row where no candidate has a feature of its own, else K."""
    columns = [request.columns[feature.name] for feature in members]
    num_rows = max(map(_num_rows, columns))
    columns = [_stretched(column, num_rows) for column in columns]
    dense = [column for column in columns if isinstance(column, np.ndarray)]
    matrix = np.concatenate(dense, axis=1) if dense else np.empty((num_rows, 0), np.float32)
    lists = {f.name: c for f, c in zip(members, columns, strict=True) if isinstance(c, Jagged)}
    return Rows(matrix, lists)


def _num_rows(column: Column) -> int:
    return column.num_rows if isinstance(column, Jagged) else column.shape[0]


def _stretched(column: Column, num_rows: int) -> Column:
    """A shared row once a candidate; ids are not copied."""
    if _num_rows(column) == num_rows:
        return column
    if isinstance(column, Jagged):
        return Jagged(column.values, np.repeat(column.starts, num_rows), np.repeat(column.lengths, num_rows))
    repeated: Float32 = np.repeat(column, num_rows, axis=0)
    return repeated


def _rows_of_samples(candidates: Sequence[int], rows: Sequence[int]) -> Int32:
    """int32[B]: each sample's row among those of all requests."""
    parts: list[AnyArray] = []
    begin = 0
    for count, num_rows in zip(candidates, rows, strict=True):
        parts.append(np.full(count, begin) if num_rows == 1 else np.arange(begin, begin + num_rows))
        begin += num_rows
    return np.concatenate(parts).astype(np.int32)
