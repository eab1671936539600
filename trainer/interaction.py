"""How the vectors of all groups meet, each product on as few rows as it can be (RecD, arXiv 2211.05239, O7).

Letters in shapes: B samples, U distinct rows of a group, F vectors of a group, D dim, H outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import cast

import torch
from torch import nn
from torchrec.modules.crossnet import LowRankCrossNet

from stream.config import InteractionConfig

Rows = Mapping[str, torch.Tensor]
"""By group: its vectors side by side, [U, F * D]."""


class DotInteraction(nn.Module):
    """The over arch's first layer, on all vectors and the dot product of every pair (DLRM, arXiv 1906.00091).

    Pairs within a group, and that group's share of the layer's matrix, are computed on distinct rows; only pairs across
    groups are products of samples. The sum is that of one Linear over all of it.
    """

    def __init__(self, num_vectors: Mapping[str, int], *, dim: int, num_outputs: int) -> None:
        super().__init__()
        self._dim = dim
        self._groups = list(num_vectors)
        for name, count in num_vectors.items():
            self.register_buffer(_pairs(name), torch.triu_indices(count, count, offset=1), persistent=False)
        self.own = nn.ModuleDict()
        inputs = {name: count * dim + count * (count - 1) // 2 for name, count in num_vectors.items()}
        crossings = sum(a * b for a, b in combinations(num_vectors.values(), 2))
        self.register_buffer("crossings", _crossings(list(num_vectors.values())), persistent=False)
        bound = (sum(inputs.values()) + crossings) ** -0.5
        for name, count in inputs.items():
            self.own[name] = _uniform(nn.Linear(count, num_outputs, bias=False), bound)
        self.between = _uniform(nn.Linear(crossings, num_outputs, bias=False), bound) if crossings else None
        self.bias = nn.Parameter(torch.empty(num_outputs).uniform_(-bound, bound))

    def forward(self, rows: Rows, inverse: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """[B, H]."""
        total = self.bias.expand(len(inverse[self._groups[0]]), -1)
        for name in self._groups:
            pairs = cast(torch.Tensor, getattr(self, _pairs(name)))
            vectors_UFD = rows[name].view(len(rows[name]), -1, self._dim)
            products_UFF = torch.bmm(vectors_UFD, vectors_UFD.transpose(1, 2))
            own = torch.cat([rows[name], products_UFF.flatten(1)[:, pairs[0] * vectors_UFD.shape[1] + pairs[1]]], dim=1)
            total = total + self.own[name](own).index_select(0, inverse[name])
        if self.between is not None:
            total = total + self.between(self._products(rows, inverse))
        return total

    def _products(self, rows: Rows, inverse: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """[B, pairs] of vectors of two groups, out of one product of all with all: many small ones take far longer."""
        samples = [rows[name].index_select(0, inverse[name]) for name in self._groups]
        vectors_BFD = torch.cat(samples, dim=1).view(len(samples[0]), -1, self._dim)
        products_BFF = torch.bmm(vectors_BFD, vectors_BFD.transpose(1, 2))
        return products_BFF.flatten(1).index_select(1, cast(torch.Tensor, self.crossings))


class CrossInteraction(nn.Module):
    """Low-rank cross layers over all vectors of a sample (DCN-v2, arXiv 2008.13535), then a Linear."""

    def __init__(self, num_columns: Mapping[str, int], *, config: InteractionConfig, num_outputs: int) -> None:
        super().__init__()
        self._groups = list(num_columns)
        num_inputs = sum(num_columns.values())
        self.cross = LowRankCrossNet(num_inputs, num_layers=config.layers, low_rank=min(config.rank, num_inputs))
        self.out = nn.Linear(num_inputs, num_outputs)

    def forward(self, rows: Rows, inverse: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """[B, H]."""
        samples = [rows[name].index_select(0, inverse[name]) for name in self._groups]
        out: torch.Tensor = self.out(self.cross(torch.cat(samples, dim=1)))
        return out


class Heads(nn.Module):
    """From the over arch's last layer to one logit a label, each with layers of its own."""

    def __init__(self, num_inputs: int, *, hidden: Sequence[int], num_labels: int) -> None:
        super().__init__()
        self.towers = nn.ModuleList(_tower(num_inputs, hidden) for _ in range(num_labels))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[B, labels]."""
        return torch.cat([tower(hidden) for tower in self.towers], dim=1)


def _tower(num_inputs: int, hidden: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(num_inputs, size), nn.ReLU()]
        num_inputs = size
    return nn.Sequential(*layers, nn.Linear(num_inputs, 1))


def _uniform(linear: nn.Linear, bound: float) -> nn.Linear:
    """As torch draws the whole layer: its bound is that of all inputs, not of this part's."""
    nn.init.uniform_(linear.weight, -bound, bound)
    return linear


def _crossings(counts: Sequence[int]) -> torch.Tensor:
    """int64[pairs]: places in the flat matrix of all products, those of vectors of two groups, each once."""
    group_of = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return (group_of[:, None] < group_of).flatten().nonzero()[:, 0]


def _pairs(group: str) -> str:
    return f"pairs_{group}"
