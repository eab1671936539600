"""From a decoded batch to tensors: per feature group, the distinct rows and one inverse.

Letters in shapes: B samples, U distinct rows of a group, N ids, L labels, D dense columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dedup_cache import Batch, Group, Rows, expand
from stream.config import DerivedConfig, FeatureConfig, ModelConfig
from stream.transforms import Planned, in_batch

GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
MIX_1, MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
SHIFT_27, SHIFT_30, SHIFT_31 = np.uint64(27), np.uint64(30), np.uint64(31)


@dataclass(frozen=True)
class GroupSpec:
    """What the model reads of one group, in this order: dense columns, and per id feature the rows of its table.

    The ids of `direct` features are rows of their tables as they are: a transform keeps them below the number of rows.
    All others are hashed into theirs.
    """

    name: str
    dense: tuple[str, ...]
    table_rows: dict[str, int]
    direct: frozenset[str] = frozenset()


@dataclass(frozen=True)
class GroupTensors:
    """One group: ids as a KeyedJaggedTensor of U rows (None without id features), dense [U, D], inverse int64[B].

    Where lookups are to see every sample, ids have B rows.
    """

    ids: KeyedJaggedTensor | None
    dense: torch.Tensor
    inverse: torch.Tensor

    def to(self, device: torch.device) -> GroupTensors:
        """The same on `device`."""
        ids = None if self.ids is None else self.ids.to(device, non_blocking=True)
        return GroupTensors(ids, self.dense.to(device, non_blocking=True), self.inverse.to(device, non_blocking=True))


@dataclass(frozen=True)
class TrainBatch:
    """What one step of one rank reads. labels, scores [B, L], weights [B]; a weight of 0 leaves a sample out."""

    groups: dict[str, GroupTensors]
    labels: torch.Tensor
    weights: torch.Tensor
    scores: torch.Tensor

    @property
    def num_samples(self) -> int:
        """Number of samples B."""
        return int(self.labels.shape[0])

    @property
    def num_bytes(self) -> int:
        """Of all tensors."""
        parts = [self.labels, self.weights, self.scores]
        for group in self.groups.values():
            parts += [group.dense, group.inverse]
            if group.ids is not None:
                parts += [group.ids.values(), group.ids.lengths()]
        return sum(part.nbytes for part in parts)

    def to(self, device: torch.device) -> TrainBatch:
        """The same on `device`."""
        if device.type == "cpu":
            return self
        return TrainBatch(
            {name: group.to(device) for name, group in self.groups.items()},
            self.labels.to(device, non_blocking=True),
            self.weights.to(device, non_blocking=True),
            self.scores.to(device, non_blocking=True),
        )


def group_specs(
    features: Sequence[FeatureConfig], model: ModelConfig, *, derived: Sequence[DerivedConfig] = ()
) -> dict[str, GroupSpec]:
    """Groups by name, features as they are after their transforms, in the order of the batches' columns."""
    specs: dict[str, GroupSpec] = {}
    for feature in in_batch(features, derived):
        spec = specs.get(feature.group, GroupSpec(feature.group, (), {}))
        rows = {} if feature.is_dense else {feature.name: _table_rows(feature, model)}
        is_direct = feature.bound is not None and feature.bound <= rows.get(feature.name, 0)
        specs[feature.group] = GroupSpec(
            spec.name,
            spec.dense + feature.dense_columns,
            spec.table_rows | rows,
            spec.direct | {feature.name} if is_direct else spec.direct,
        )
    return specs


def _table_rows(feature: Planned, model: ModelConfig) -> int:
    """As configured; a feature without a table of its own needs no more rows than it has ids."""
    if feature.name in model.tables:
        return model.tables[feature.name].rows
    return min(model.default_table.rows, feature.bound or model.default_table.rows)


def hash_ids(ids: np.ndarray, *, rows: int) -> np.ndarray:
    """Map int64[N] ids to int64[N] rows of a table: splitmix64 of the id (read as unsigned), modulo `rows`.

    The same in trainer and server; a change of it makes every trained table worthless (golden values in the tests).
    splitmix64 is Steele, Lea and Flood's generator (OOPSLA 2014) with the id as its state.
    """
    x = ids.view(np.uint64) + GOLDEN_GAMMA
    x = (x ^ (x >> SHIFT_30)) * MIX_1
    x = (x ^ (x >> SHIFT_27)) * MIX_2
    hashed: np.ndarray = ((x ^ (x >> SHIFT_31)) % np.uint64(rows)).view(np.int64)
    return hashed


def to_group(rows: Rows, inverse: np.ndarray, *, spec: GroupSpec, expand_ids: bool = False) -> GroupTensors:
    """Tensors of one group; lists come out compact, ids hashed into their tables. U must be above 0."""
    looked_up = rows.take(inverse) if expand_ids else rows
    parts = [looked_up.lists[name].compact() for name in spec.table_rows]
    hashed = [
        values if name in spec.direct else hash_ids(values, rows=table_rows)
        for (values, _), (name, table_rows) in zip(parts, spec.table_rows.items(), strict=True)
    ]
    ids = None
    if parts:
        ids = KeyedJaggedTensor(
            keys=list(spec.table_rows),
            values=torch.from_numpy(np.concatenate(hashed)),
            lengths=torch.from_numpy(np.concatenate([lengths for _, lengths in parts])),
            stride=looked_up.num_rows,
        )
    dense = np.array(rows.dense, dtype=np.float32)
    return GroupTensors(ids, torch.from_numpy(dense), torch.from_numpy(inverse.astype(np.int64)))


def to_train_batch(
    batch: Batch, *, specs: Mapping[str, GroupSpec], dedup: bool, expand_ids: bool = False
) -> TrainBatch:
    """Tensors of a batch whose rows are all inline.

    `dedup` false expands every group first, the baseline; `expand_ids` only what the lookups see.
    """
    groups = {name: batch.groups[name] for name in specs}
    if not dedup:
        everyone = np.arange(batch.num_samples, dtype=np.int32)
        groups = {name: Group(expand(group), everyone) for name, group in groups.items()}
    return TrainBatch(
        {
            name: to_group(group.rows, group.inverse, spec=specs[name], expand_ids=expand_ids)
            for name, group in groups.items()
        },
        torch.from_numpy(np.array(batch.labels)),
        torch.from_numpy(np.array(batch.weights)),
        torch.from_numpy(np.array(batch.scores)),
    )


def dummy_batch(specs: Mapping[str, GroupSpec], *, num_labels: int) -> TrainBatch:
    """One sample of empty lists, zeros and weight 0: lets a rank without data take part in a step."""
    groups = {}
    for name, spec in specs.items():
        ids = None
        if spec.table_rows:
            ids = KeyedJaggedTensor(
                keys=list(spec.table_rows),
                values=torch.empty(0, dtype=torch.int64),
                lengths=torch.zeros(len(spec.table_rows), dtype=torch.int32),
                stride=1,
            )
        groups[name] = GroupTensors(ids, torch.zeros(1, len(spec.dense)), torch.zeros(1, dtype=torch.int64))
    labels = torch.zeros(1, num_labels)
    return TrainBatch(groups, labels, torch.zeros(1), torch.full_like(labels, torch.nan))
