"""Exact optimizers: fused into the tables' kernels, torch's for what every rank holds whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import nn
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torchrec.distributed.embedding_sharding import USE_ONE_TBE_PER_TABLE
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from stream.config import OptimizerConfig
from trainer.rates import DENSE, SPARSE

ADAGRAD_EPS = 1e-8
FUSED = {
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    "sgd": EmbOptimType.EXACT_SGD,
    "adam": EmbOptimType.ADAM,
}
TABLES = "embeddings."


def torch_optimizers(
    parameters: Mapping[str, nn.Parameter],
    tables: Mapping[str, torch.Tensor | ShardedTensor],
    *,
    config: OptimizerConfig,
    parts: Mapping[str, str],
) -> dict[str, torch.optim.Optimizer]:
    """Torch's optimizers by name, their state made now: `dense`, and `replicated` for data-parallel tables."""
    dense = [p for name, p in parameters.items() if not name.startswith(TABLES)]
    copies = {name for name, tensor in tables.items() if not isinstance(tensor, ShardedTensor)}
    replicated: dict[str, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        if name.startswith(TABLES) and (table := name.split(".")[-2]) in copies:
            replicated.setdefault(parts[table], []).append(parameter)
    kinds = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad}
    groups = [{"params": dense, "part": DENSE}]
    optimizers: dict[str, torch.optim.Optimizer] = {"dense": kinds[config.dense](groups, lr=config.dense_learning_rate)}
    if replicated:
        groups = [{"params": of_part, "part": part} for part, of_part in replicated.items()]
        rate = config.sparse_learning_rate
        if config.sparse == "rowwise_adagrad":
            optimizers["replicated"] = RowWiseAdagrad(groups, lr=rate, eps=ADAGRAD_EPS)
        else:
            optimizers["replicated"] = kinds[config.sparse](groups, lr=rate)
    for optimizer in optimizers.values():
        _make_state(optimizer)
    return optimizers


def give_own_kernels(embeddings: nn.Module, *, parts: Mapping[str, str], rates: Mapping[str, float]) -> None:
    """A kernel has one rate: tables with one of their own get a kernel of their own."""
    for name, parameter in embeddings.named_parameters():
        part = parts[name.split(".")[-2]]
        if part != SPARSE:
            # What TorchRec's apply_optimizer_in_backward leaves for its sharders.
            parameter.__dict__["_optimizer_kwargs"] = [{"lr": rates[part], USE_ONE_TBE_PER_TABLE: True}]


def kernel_optimizers(optimizer: KeyedOptimizer) -> Iterator[KeyedOptimizer]:
    """The optimizers of single kernels."""
    if not isinstance(optimizer, CombinedOptimizer):
        yield optimizer
        return
    for _, inner in optimizer.optimizers:
        yield from kernel_optimizers(inner)


def table_of(optimizer: KeyedOptimizer) -> str:
    """One of the tables of a kernel."""
    name: str = next(iter(optimizer.params))
    return name.split(".")[-2]


def _make_state(optimizer: torch.optim.Optimizer) -> None:
    """State is made by a first step: take one with zero gradients, which moves nothing, and set it back to zero."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for state in optimizer.state.values():
        for value in state.values():
            if torch.is_tensor(value):
                value.zero_()
