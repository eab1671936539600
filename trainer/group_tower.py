"""One group's features to its vectors, on its distinct rows (RecD, arXiv 2211.05239, O7).

Letters in shapes: B samples, U distinct rows, R rows that the lookups saw (U or B), D dim, F vectors.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torchrec.modules.mlp import MLP

from stream.config import DistinctConfig, ModelConfig
from trainer.ikjt import GroupSpec, GroupTensors
from trainer.lookup import Sequences
from trainer.sequences import AttentionPooling, TransformerPooling, select_jagged, select_padded
from trainer.tables import Table, table_config

Looked = torch.Tensor | Sequences


class GroupTower(nn.Module):
    """List pooling, projections, dense arch and mix of one group; where a step is not distinct, rows are samples."""

    def __init__(
        self,
        spec: GroupSpec,
        *,
        tables: Mapping[str, Table],
        lengths: Mapping[str, int],
        config: ModelConfig,
        distinct: DistinctConfig,
    ) -> None:
        """`tables` and `lengths` (of the longest list) by feature."""
        super().__init__()
        self._spec = spec
        self._distinct = distinct
        self.poolings = nn.ModuleDict()
        self.projections = nn.ModuleDict()
        self.dense_arch = MLP(len(spec.dense), [*config.dense_arch, config.dim]) if spec.dense else None
        self.num_columns = config.dim if spec.dense else 0
        mixed = config.interaction.vectors
        for feature in spec.table_rows:
            dim = tables[feature].dim
            kind = table_config(feature, config).pooling
            if kind == "attention":
                self.poolings[module_name(feature)] = AttentionPooling(dim)
            elif kind == "transformer":
                self.poolings[module_name(feature)] = TransformerPooling(
                    dim, max_length=lengths[feature], config=config.sequence, feature=feature
                )
            if dim != config.dim and config.interaction.kind == "dot" and not mixed:
                self.projections[module_name(feature)] = nn.Linear(dim, config.dim, bias=False)
                dim = config.dim
            self.num_columns += dim
        self.mix = None
        if mixed:
            self.mix = nn.Linear(self.num_columns, mixed * config.dim)
            self.num_columns = mixed * config.dim

    def forward(self, looked_up: Mapping[str, Looked], group: GroupTensors) -> torch.Tensor:
        """Vectors side by side: [U, F * D], or [B, F * D] where layers are not on distinct rows."""
        parts = []
        for feature in self._spec.table_rows:
            found = self._moved(looked_up[feature], group)
            if isinstance(found, Sequences):
                found = self.poolings[module_name(feature)](found)
            if module_name(feature) in self.projections:
                found = self.projections[module_name(feature)](found)
            parts.append(found)
        if self.dense_arch is not None:
            dense = group.dense if self._distinct.layers else group.dense.index_select(0, group.inverse)
            parts.append(self.dense_arch(squash(dense)))
        vectors = torch.cat(parts, dim=1)
        return vectors if self.mix is None else self.mix(vectors)

    def _moved(self, found: Looked, group: GroupTensors) -> Looked:
        """From the rows that the lookups saw to those that the layers see."""
        of_samples = self._distinct.lookups != "grouped" and (
            isinstance(found, torch.Tensor) or self._distinct.lookups == "off"
        )
        if of_samples == (not self._distinct.layers):
            return found
        rows = first_of(group.inverse, num_rows=len(group.dense)) if of_samples else group.inverse
        if isinstance(found, torch.Tensor):
            return found.index_select(0, rows)
        return select_jagged(found, rows) if self._distinct.jagged_select else select_padded(found, rows)


def first_of(inverse: torch.Tensor, *, num_rows: int) -> torch.Tensor:
    """int64[U]: the first sample of each distinct row."""
    samples = torch.arange(len(inverse), device=inverse.device)
    return samples.new_zeros(num_rows).scatter_reduce(0, inverse, samples, "amin", include_self=False)


def squash(dense: torch.Tensor) -> torch.Tensor:
    """sign(x) * log(1 + |x|), without state; NaN counts as 0, an infinity as the greatest finite number."""
    finite = torch.nan_to_num(dense)
    return finite.sign() * finite.abs().log1p()


def module_name(name: str) -> str:
    """A name of the config as a module's name: unique, never one of ModuleDict's own, without a dot."""
    return "g_" + name.replace(".", ":")
