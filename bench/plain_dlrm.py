"""What one would write without TorchRec and without deduplication: a DLRM of nn.EmbeddingBag, torch's optimizers.

The same layers as `trainer.model.GroupedDLRM` of the same config, a row for every sample.
Letters in shapes: B samples, T the longest list, F vectors, D dim, L labels.
"""

from __future__ import annotations

from itertools import combinations, pairwise

import torch
from torch import nn

from stream.config import Config
from trainer.group_tower import squash
from trainer.ikjt import TrainBatch, group_specs

INIT_BOUND = 0.1


class PlainDLRM(nn.Module):
    """Reads batches whose groups have a row for every sample."""

    def __init__(self, config: Config, *, sequence: str | None, length: int) -> None:
        """`sequence`: the feature that a transformer pools, of `length` items at most; all others are summed."""
        super().__init__()
        model = config.trainer.model
        dim, count = model.dim, model.interaction.vectors
        self._specs = group_specs(config.features, model)
        self._sequence, self._length, self._dim = sequence, length, dim
        self.tables, self.dense, self.mix = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for name, spec in self._specs.items():
            for feature, rows in spec.table_rows.items():
                weights = torch.empty(rows, dim).uniform_(-INIT_BOUND, INIT_BOUND)
                kind = nn.Embedding if feature == sequence else nn.EmbeddingBag
                self.tables[feature] = kind(rows, dim, _weight=weights, sparse=True)
            columns = len(spec.table_rows) * dim
            if spec.dense:
                hidden = model.dense_arch[0]
                self.dense[name] = nn.Sequential(
                    nn.Linear(len(spec.dense), hidden), nn.ReLU(), nn.Linear(hidden, dim), nn.ReLU()
                )
                columns += dim
            self.mix[name] = nn.Linear(columns, count * dim)
        self.positions = nn.Parameter(torch.randn(length, dim) * dim**-0.5)
        heads, width = model.sequence.heads, model.sequence.feed_forward * dim
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, heads, width, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(model.sequence.layers)
        )
        vectors = count * len(self._specs)
        self._pairs = list(combinations(range(vectors), 2))
        self.register_buffer("_upper", torch.tensor(self._pairs).T)
        sizes = [vectors * dim + len(self._pairs), *model.over_arch]
        layers = [[nn.Linear(a, b), nn.ReLU()] for a, b in pairwise(sizes)]
        self.over = nn.Sequential(
            *(layer for pair in layers for layer in pair), nn.Linear(sizes[-1], len(config.labels))
        )

    def optimizers(self, config: Config) -> list[torch.optim.Optimizer]:
        """AdaGrad for the tables (torch has no row-wise one), Adam for the rest."""
        rates = config.trainer.optimizer
        tables = list(self.tables.parameters())
        rest = [p for name, p in self.named_parameters() if not name.startswith("tables.")]
        if self._sequence is None:
            rest = [p for p in rest if p is not self.positions and p not in set(self.blocks.parameters())]
        return [
            torch.optim.Adagrad(tables, lr=rates.sparse_learning_rate),
            torch.optim.Adam(rest, lr=rates.dense_learning_rate),
        ]

    def forward(self, batch: TrainBatch) -> torch.Tensor:
        """Logits [B, L]."""
        mixed = []
        for name, spec in self._specs.items():
            group = batch.groups[name]
            parts = []
            for feature in spec.table_rows:
                ids = group.ids[feature]  # type: ignore[index]
                parts.append(self._pooled(feature, ids.values(), ids.lengths()))
            if spec.dense:
                parts.append(self.dense[name](squash(group.dense)))
            mixed.append(self.mix[name](torch.cat(parts, dim=1)))
        vectors = torch.cat(mixed, dim=1)
        of_sample_BFD = vectors.unflatten(1, (-1, self._dim))
        products_BFF = torch.bmm(of_sample_BFD, of_sample_BFD.transpose(1, 2))
        first, second = self._upper
        logits: torch.Tensor = self.over(torch.cat([vectors, products_BFF[:, first, second]], dim=1))
        return logits

    def _pooled(self, feature: str, values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        offsets = nn.functional.pad(lengths.to(torch.int64).cumsum(0), (1, 0))
        pooled: torch.Tensor
        if feature != self._sequence:
            pooled = self.tables[feature](values, offsets[:-1])
            return pooled
        place = torch.arange(self._length)
        exists_BT = place < lengths[:, None]
        ids_BT = torch.zeros(len(lengths), self._length, dtype=torch.int64).masked_scatter(exists_BT, values)
        from_end_BT = (lengths[:, None] - 1 - place).clamp(min=0)
        x = self.tables[feature](ids_BT) + self.positions[from_end_BT]
        padding = ~exists_BT
        padding[:, 0] = False
        for block in self.blocks:
            x = block(x, src_key_padding_mask=padding)
        pooled = (x * exists_BT[:, :, None]).sum(dim=1) / lengths.clamp(min=1)[:, None]
        return pooled
