"""Embedding lookups on the distinct rows of each group (RecD, arXiv 2211.05239, O5).

Letters in shapes: B samples, U distinct rows of a group, R rows that are looked up (U, or B where lookups see every
sample), N ids, D dim.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from stream.config import ConfigError, ModelConfig
from trainer.ikjt import GroupSpec, GroupTensors
from trainer.tables import BAGS, Table, Unit, table_config

POOLING = {"sum": PoolingType.SUM, "mean": PoolingType.MEAN}


class KeyOrderError(Exception):
    """A batch's features stand in another order than the model's: TorchRec would mix up tables without a word."""


@dataclass(frozen=True)
class Sequences:
    """Embeddings of every id of a list feature: values [N, D], lengths [R]."""

    values: torch.Tensor
    lengths: torch.Tensor


class UnitLookup(nn.Module):
    """The lookups of one unit: bags pool inside the lookup, all other tables give every id's embedding.

    Groups of one unit lie one behind the other in the rows of a single KeyedJaggedTensor, every feature with empty
    lists in the rows of the other groups: a table that two groups share is then read and updated once a step.
    """

    def __init__(
        self, unit: Unit, *, specs: Mapping[str, GroupSpec], config: ModelConfig, device: torch.device | None
    ) -> None:
        super().__init__()
        self._specs = [specs[name] for name in unit.groups]
        self._in_bags = {feature for table in unit.bags for feature in table.features}
        self._pooling = {f: table_config(f, config).pooling for s in self._specs for f in s.table_rows}
        self.bags = self.sequences = None
        if unit.bags:
            bags = [_bag_config(table, pooling=self._pooling[table.features[0]]) for table in unit.bags]
            self.bags = EmbeddingBagCollection(tables=bags, device=device)
        if unit.sequences:
            self.sequences = EmbeddingCollection(tables=[_sequence_config(t) for t in unit.sequences], device=device)
        self._stride: int | None = None

    def pad_groups_to(self, num_rows: int) -> None:
        """Pad sequences with empty lists to so many rows a group."""
        self._stride = num_rows * len(self._specs)

    def forward(self, groups: Mapping[str, GroupTensors]) -> dict[str, torch.Tensor | Sequences]:
        """By feature: [R, D] where it is pooled by sum or mean, else Sequences."""
        members = [(spec, _ids(groups[spec.name], spec)) for spec in self._specs]
        found: dict[str, torch.Tensor | Sequences] = {}
        if self.bags is not None:
            # By name: under sharding the values lie in the order of the shards.
            pooled = self.bags(_join(members, self._in_bags)).to_dict()
            found |= {f: pooled[f][rows] for f, rows in _rows_of(members) if f in self._in_bags}
        if self.sequences is not None:
            others = self._pooling.keys() - self._in_bags
            jagged = self.sequences(_join(members, others, stride=self._stride))
            for feature, rows in _rows_of(members):
                if feature in others:
                    each = Sequences(jagged[feature].values(), jagged[feature].lengths()[rows])
                    kind = self._pooling[feature]
                    found[feature] = segment_sum(each, mean=kind == "mean") if kind in BAGS else each
        return found


class VbeLookup(nn.Module):
    """All bags in one collection, with TorchRec's own deduplication: `inverse_indices`, expanded at its exit."""

    def __init__(
        self, unit: Unit, *, specs: Mapping[str, GroupSpec], config: ModelConfig, device: torch.device | None
    ) -> None:
        super().__init__()
        if unit.sequences:
            # No gradient reaches a sharded EmbeddingCollection through VBE (torchrec 1.9), and only a warning says so.
            names = ", ".join(feature for table in unit.sequences for feature in table.features)
            raise ConfigError(f"vbe has no sequence features ({names}), use grouped - at $.trainer.distinct.lookups")
        self._specs = [specs[name] for name in unit.groups]
        bags = [_bag_config(t, pooling=table_config(t.features[0], config).pooling) for t in unit.bags]
        self.bags = EmbeddingBagCollection(tables=bags, device=device)

    def forward(self, groups: Mapping[str, GroupTensors]) -> dict[str, torch.Tensor]:
        """By feature: [B, D]."""
        members = [(spec, _ids(groups[spec.name], spec)) for spec in self._specs]
        keys = [feature for spec in self._specs for feature in spec.table_rows]
        inverse = torch.stack([groups[spec.name].inverse for spec in self._specs for _ in spec.table_rows])
        ids = KeyedJaggedTensor(
            keys=keys,
            values=torch.cat([ids.values() for _, ids in members]),
            lengths=torch.cat([ids.lengths() for _, ids in members]),
            stride_per_key_per_rank=[[ids.stride()] for spec, ids in members for _ in spec.table_rows],
            inverse_indices=(keys, inverse),
        )
        found: dict[str, torch.Tensor] = self.bags(ids).to_dict()
        return found


def segments(lengths: torch.Tensor, *, num_values: int) -> torch.Tensor:
    """int64[N]: to which of the lists each value belongs."""
    each = torch.arange(len(lengths), device=lengths.device)
    return each.repeat_interleave(lengths.to(torch.int64), output_size=num_values)


def segment_sum(lists: Sequences, *, mean: bool = False) -> torch.Tensor:
    """Sum or mean of every list: [R, D]; an empty one gives zeros."""
    num_rows, dim = len(lists.lengths), lists.values.shape[1]
    place = segments(lists.lengths, num_values=len(lists.values))
    total = lists.values.new_zeros(num_rows, dim).index_add(0, place, lists.values)
    return total / lists.lengths.clamp(min=1)[:, None].to(total.dtype) if mean else total


def _ids(group: GroupTensors, spec: GroupSpec) -> KeyedJaggedTensor:
    if group.ids is None or group.ids.keys() != list(spec.table_rows):
        given = [] if group.ids is None else group.ids.keys()
        raise KeyOrderError(f"group {spec.name}: the batch has {given}, the model {list(spec.table_rows)}")
    return group.ids


Members = Sequence[tuple[GroupSpec, KeyedJaggedTensor]]


def _rows_of(members: Members) -> Iterable[tuple[str, slice]]:
    begin = 0
    for spec, ids in members:
        rows = slice(begin, begin + ids.stride())
        yield from ((feature, rows) for feature in spec.table_rows)
        begin = rows.stop


def _join(members: Members, features: Iterable[str], *, stride: int | None = None) -> KeyedJaggedTensor:
    """The named features of all groups over the rows of all groups, padded with empty lists to `stride` rows."""
    wanted = set(features)
    if len(members) == 1 and stride is None and wanted >= set(members[0][0].table_rows):
        return members[0][1]
    num_rows = sum(ids.stride() for _, ids in members)
    stride = num_rows if stride is None else stride
    if num_rows > stride:
        raise ValueError(f"a batch has {num_rows} distinct rows, more than batch.max_samples allows ({stride})")
    keys, values, lengths = [], [], []
    begin = 0
    for spec, ids in members:
        for feature in spec.table_rows:
            if feature in wanted:
                part = ids[feature]
                keys.append(feature)
                values.append(part.values())
                after = stride - begin - ids.stride()
                lengths.append(nn.functional.pad(part.lengths(), (begin, after)))
        begin += ids.stride()
    return KeyedJaggedTensor(keys=keys, values=torch.cat(values), lengths=torch.cat(lengths), stride=stride)


def _bag_config(table: Table, *, pooling: str) -> EmbeddingBagConfig:
    return EmbeddingBagConfig(
        name=table.name,
        embedding_dim=table.dim,
        num_embeddings=table.rows,
        feature_names=list(table.features),
        pooling=POOLING[pooling],
    )


def _sequence_config(table: Table) -> EmbeddingConfig:
    return EmbeddingConfig(
        name=table.name, embedding_dim=table.dim, num_embeddings=table.rows, feature_names=list(table.features)
    )
