"""A DLRM whose tables and dense layers see each distinct row of a group once (RecD, arXiv 2211.05239, O5 to O7).

Letters in shapes: B samples, U distinct rows of a group, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torchrec.modules.mlp import MLP

from stream.config import ConfigError, DerivedConfig, DistinctConfig, FeatureConfig, LabelConfig, ModelConfig
from stream.transforms import in_batch
from stream.transforms.operation import Ids
from trainer.group_tower import GroupTower, Looked, module_name
from trainer.ikjt import TrainBatch, group_specs
from trainer.interaction import CrossInteraction, DotInteraction, Heads
from trainer.lookup import UnitLookup, VbeLookup
from trainer.tables import LANES, tables_of_model, units

ALL_DISTINCT = DistinctConfig()


class GroupedDLRM(nn.Module):
    """Logits from grouped features.

    Per group, on its distinct rows: the lookups of its id features, one vector a list (sum, mean, attention or
    transformer), and one dense arch over its dense columns. Then the interaction of all groups' vectors, in which rows
    become samples, the over arch, and a head a label.

    `distinct` switches single steps back to samples; what comes out is the same. The same class serves unsharded and
    trains under DistributedModelParallel. `device` is where tables are made: `meta` leaves them to the sharding.
    Raises ConfigError for what does not fit together.
    """

    def __init__(
        self,
        features: Sequence[FeatureConfig],
        *,
        labels: Sequence[LabelConfig],
        config: ModelConfig,
        derived: Sequence[DerivedConfig] = (),
        distinct: DistinctConfig = ALL_DISTINCT,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        if config.dim % LANES:
            raise ConfigError(f"tables need a multiple of {LANES}, got {config.dim} - at $.trainer.model.dim")
        self.specs = group_specs(features, config, derived=derived)
        if not self.specs:
            raise ConfigError("the model needs at least one feature - at $.features")
        self._samples = not distinct.layers
        self.tables = tables_of_model(self.specs, config)
        self.uses_vbe = distinct.lookups == "vbe"
        self.embeddings = nn.ModuleDict()
        for unit in units(self.specs, self.tables, together=self.uses_vbe):
            kind = VbeLookup if self.uses_vbe else UnitLookup
            self.embeddings[module_name(unit.name)] = kind(unit, specs=self.specs, config=config, device=device)
        lengths = {f.name: f.kind.max_length for f in in_batch(features, derived) if isinstance(f.kind, Ids)}
        readers = {feature: table for table in self.tables for feature in table.features}
        self.towers = nn.ModuleDict()
        columns: dict[str, int] = {}
        for name, spec in self.specs.items():
            tower = GroupTower(spec, tables=readers, lengths=lengths, config=config, distinct=distinct)
            self.towers[module_name(name)] = tower
            columns[module_name(name)] = tower.num_columns
        width = config.over_arch[0] if config.over_arch else config.dim
        if config.interaction.kind == "dot":
            vectors = {name: count // config.dim for name, count in columns.items()}
            self.interaction: nn.Module = DotInteraction(vectors, dim=config.dim, num_outputs=width)
        else:
            self.interaction = CrossInteraction(columns, config=config.interaction, num_outputs=width)
        more = [MLP(width, list(config.over_arch[1:]))] if len(config.over_arch) > 1 else []
        self.over_arch = nn.Sequential(*([nn.ReLU(), *more] if config.over_arch else []))
        last = config.over_arch[-1] if config.over_arch else width
        self.heads = Heads(last, hidden=config.heads, num_labels=len(labels))

    def pad_sequences(self, num_rows: int) -> None:
        """Bring list features to the same number of rows a group on every rank, as their exchange needs it."""
        for lookup in self.embeddings.values():
            if isinstance(lookup, UnitLookup):
                lookup.pad_groups_to(num_rows)

    def forward(self, batch: TrainBatch) -> torch.Tensor:
        """Logits [B, L]."""
        looked_up: dict[str, Looked] = {}
        for lookup in self.embeddings.values():
            looked_up |= lookup(batch.groups)
        rows, inverse = {}, {}
        everyone = torch.arange(batch.num_samples, device=batch.labels.device)
        for name in self.specs:
            group = batch.groups[name]
            rows[module_name(name)] = self.towers[module_name(name)](looked_up, group)
            inverse[module_name(name)] = everyone if self._samples else group.inverse
        logits: torch.Tensor = self.heads(self.over_arch(self.interaction(rows, inverse)))
        return logits
