"""How far a step moves the dense weights."""

from __future__ import annotations

import torch

from trainer.optimizers import TABLES
from trainer.sharding import ShardedModel


class DenseMove:
    """Made before a step, asked after it; what it remembers is a copy of the dense weights."""

    def __init__(self, model: ShardedModel) -> None:
        named = model.module.named_parameters()
        self._weights = [weights for name, weights in named if not name.startswith(TABLES)]
        self._before = [weights.detach().clone() for weights in self._weights]

    def share(self) -> float:
        """Length of the change over the length of the weights before; not finite where a weight is not."""
        with torch.no_grad():
            changes = [now - before for now, before in zip(self._weights, self._before, strict=True)]
        return _length(changes) / max(_length(self._before), 1e-12)


def _length(tensors: list[torch.Tensor]) -> float:
    return float(torch.stack([torch.linalg.vector_norm(tensor) for tensor in tensors]).norm())
