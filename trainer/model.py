"""A DLRM whose tables and dense layers see each distinct row of a group once (RecD, arXiv 2211.05239, O5 to O7).

Letters in shapes: B samples, U distinct rows of a group, L labels, F vectors (id features and dense archs), D dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.mlp import MLP

from stream.config import ConfigError, DerivedConfig, FeatureConfig, LabelConfig, ModelConfig
from trainer.ikjt import GroupSpec, GroupTensors, TrainBatch, group_specs

LANES = 4
"""FBGEMM's kernels take so many columns at a time."""
POOLING = {"sum": PoolingType.SUM, "mean": PoolingType.MEAN}


class KeyOrderError(Exception):
    """A batch's features stand in another order than the model's: TorchRec would mix up tables without a word."""


class GroupedDLRM(nn.Module):
    """Logits from grouped features.

    Per group: one EmbeddingBagCollection over its id features (tables `t_<feature>`) and one dense arch over its
    dense columns, both on distinct rows, then one expansion to samples. Over all groups: dot products of every pair
    of the F vectors beside the vectors themselves, and the over arch.

    The same class serves unsharded and trains under DistributedModelParallel. `device` is where tables are made:
    `meta` leaves them to the sharding. Raises ConfigError for a dimension that does not fit.
    """

    def __init__(
        self,
        features: Sequence[FeatureConfig],
        *,
        labels: Sequence[LabelConfig],
        config: ModelConfig,
        derived: Sequence[DerivedConfig] = (),
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        if config.dim % LANES:
            raise ConfigError(f"tables need a multiple of {LANES}, got {config.dim} - at $.trainer.model.dim")
        self.specs = group_specs(features, config, derived=derived)
        self.dim = config.dim
        self.embeddings = nn.ModuleDict()
        self.dense_archs = nn.ModuleDict()
        num_vectors = 0
        for name, spec in self.specs.items():
            if spec.table_rows:
                tables = [_table(feature, rows=rows, config=config) for feature, rows in spec.table_rows.items()]
                self.embeddings[module_name(name)] = EmbeddingBagCollection(tables=tables, device=device)
                num_vectors += len(tables)
            if spec.dense:
                self.dense_archs[module_name(name)] = MLP(len(spec.dense), [*config.dense_arch, config.dim])
                num_vectors += 1
        if not num_vectors:
            raise ConfigError("the model needs at least one feature - at $.features")
        self.interaction = DotInteraction(num_vectors)
        num_inputs = num_vectors * config.dim + self.interaction.num_pairs
        last = config.over_arch[-1] if config.over_arch else num_inputs
        self.over_arch = nn.Sequential(MLP(num_inputs, list(config.over_arch)), nn.Linear(last, len(labels)))

    def forward(self, batch: TrainBatch) -> torch.Tensor:
        """Logits [B, L]."""
        expanded = [
            self._distinct(spec, batch.groups[name]).index_select(0, batch.groups[name].inverse)
            for name, spec in self.specs.items()
        ]
        vectors_BFD = torch.cat(expanded, dim=1).view(len(batch.labels), -1, self.dim)
        logits: torch.Tensor = self.over_arch(self.interaction(vectors_BFD))
        return logits

    def _distinct(self, spec: GroupSpec, group: GroupTensors) -> torch.Tensor:
        """Vectors of the distinct rows, side by side: [U, vectors of the group * D]."""
        parts = []
        key = module_name(spec.name)
        if group.ids is not None:
            if group.ids.keys() != list(spec.table_rows):
                raise KeyOrderError(
                    f"group {spec.name}: the batch has {group.ids.keys()}, the model {list(spec.table_rows)}"
                )
            # By name: under sharding the values lie in the order of the shards.
            pooled = self.embeddings[key](group.ids).to_dict()
            parts += [pooled[feature] for feature in spec.table_rows]
        if spec.dense:
            parts.append(self.dense_archs[key](squash(group.dense)))
        return torch.cat(parts, dim=1)


class DotInteraction(nn.Module):
    """[B, F, D] to [B, F * D + F * (F - 1) / 2]: the vectors themselves, then the dot product of every pair."""

    def __init__(self, num_vectors: int) -> None:
        super().__init__()
        pairs = torch.triu_indices(num_vectors, num_vectors, offset=1)
        self.num_pairs = int(pairs.shape[1])
        self.register_buffer("pairs", pairs, persistent=False)

    def forward(self, vectors_BFD: torch.Tensor) -> torch.Tensor:
        pairs = cast(torch.Tensor, self.pairs)
        products_BFF = torch.bmm(vectors_BFD, vectors_BFD.transpose(1, 2))
        return torch.cat([vectors_BFD.flatten(1), products_BFF[:, pairs[0], pairs[1]]], dim=1)


def squash(dense: torch.Tensor) -> torch.Tensor:
    """sign(x) * log(1 + |x|), without state; NaN counts as 0, an infinity as the greatest finite number."""
    finite = torch.nan_to_num(dense)
    return finite.sign() * finite.abs().log1p()


def module_name(name: str) -> str:
    """A name of the config as a module's name: unique, never one of ModuleDict's own, without a dot."""
    return "g_" + name.replace(".", ":")


def table_name(feature: str) -> str:
    """The table of an id feature."""
    return "t_" + feature.replace(".", ":")


def _table(feature: str, *, rows: int, config: ModelConfig) -> EmbeddingBagConfig:
    table = config.tables.get(feature, config.default_table)
    if table.dim not in (None, config.dim):
        where = f"$.trainer.model.tables.{feature}.dim" if feature in config.tables else "$.trainer.model.default_table"
        raise ConfigError(f"the dot interaction needs {config.dim} (trainer.model.dim), got {table.dim} - at {where}")
    return EmbeddingBagConfig(
        name=table_name(feature),
        embedding_dim=config.dim,
        num_embeddings=rows,
        feature_names=[feature],
        pooling=POOLING[table.pooling],
    )
