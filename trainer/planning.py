"""Who holds which part of which table: TorchRec's planner under the config's constraints."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import nn
from torchrec.distributed.embedding_types import BaseEmbeddingSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.types import ShardingPlan
from torchrec.modules.embedding_configs import BaseEmbeddingConfig, DataType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from stream.config import DeviceConfig, ModelConfig, OptimizerConfig
from trainer.model import GroupedDLRM
from trainer.ranks import Ranks
from trainer.tables import Table, table_config

KINDS = ("table_wise", "column_wise", "row_wise", "data_parallel")
CPU_KINDS = ("table_wise",)
"""Where the config leaves it open: cuts of whole tables can be taken over by another number of ranks."""


class ShardingError(Exception):
    """The model cannot be laid out as the config asks on these devices."""


def halve_tables(embeddings: nn.Module) -> None:
    """Tables of a model on the meta device will be made in fp16."""
    for module in embeddings.modules():
        if isinstance(module, EmbeddingBagCollection):
            configs: Sequence[BaseEmbeddingConfig] = module.embedding_bag_configs()
        elif isinstance(module, EmbeddingCollection):
            configs = module.embedding_configs()
        else:
            continue
        module.half()
        for table in configs:
            table.data_type = DataType.FP16


def make_plan(
    model: GroupedDLRM,
    sharders: list[BaseEmbeddingSharder[Any]],
    *,
    config: ModelConfig,
    ranks: Ranks,
    memory_bytes: int | None,
) -> ShardingPlan:
    if model.uses_vbe and ranks.device.type == "cpu":
        _check_vbe(model, config=config)
    constraints = {table.name: _constraint(table, config=config, ranks=ranks) for table in model.tables}
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", ranks.world_size))
    topology = Topology(
        ranks.world_size, compute_device=ranks.device.type, local_world_size=local_size, **_caps(ranks, memory_bytes)
    )
    planner = EmbeddingShardingPlanner(topology=topology, constraints=constraints)
    try:
        return planner.collective_plan(model, sharders, dist.group.WORLD)
    except (PlannerError, ValueError, RuntimeError) as error:
        raise ShardingError(f"no sharding plan for {ranks.world_size} ranks on {ranks.device.type}: {error}") from error


def _caps(ranks: Ranks, memory_bytes: int | None) -> dict[str, int]:
    if memory_bytes is None:
        return {}
    return {"hbm_cap" if ranks.device.type == "cuda" else "ddr_cap": memory_bytes}


def check_device(kind: str, *, optimizer: OptimizerConfig, device: DeviceConfig) -> None:
    """What FBGEMM's CPU kernels cannot do."""
    if kind != "cpu":
        return
    if optimizer.sparse == "adam":
        choose = "choose rowwise_adagrad or sgd - at $.trainer.optimizer.sparse"
        raise ShardingError(f"adam for tables needs a GPU: FBGEMM has no such kernel for a CPU; {choose}")
    if device.tables == "fp16":
        raise ShardingError("tables in fp16 need a GPU, choose fp32 - at $.trainer.device.tables")


def _check_vbe(model: GroupedDLRM, *, config: ModelConfig) -> None:
    """What TorchRec 1.9 cannot do with `inverse_indices` on a CPU."""
    at = "use grouped - at $.trainer.distinct.lookups"
    if len({table_config(feature, config).pooling for table in model.tables for feature in table.features}) > 1:
        raise ShardingError(f"vbe on a CPU takes one pooling for all tables, {at}")
    if any("data_parallel" in table_config(table.owner, config).sharding for table in model.tables):
        raise ShardingError(f"vbe on a CPU takes no data_parallel tables, {at}")


def _constraint(table: Table, *, config: ModelConfig, ranks: Ranks) -> ParameterConstraints:
    kinds: list[str] = list(table_config(table.owner, config).sharding)
    if ranks.device.type == "cpu":
        kinds = _on_cpu(table, kinds)
    kernels = ["dense"] if kinds == ["data_parallel"] else ["fused"]
    if "data_parallel" in kinds and len(kinds) > 1:
        kernels.append("dense")
    return ParameterConstraints(
        sharding_types=kinds or None,
        compute_kernels=kernels,
        min_partition=_shard_columns(table.dim, ranks.world_size),
    )


def _on_cpu(table: Table, kinds: list[str]) -> list[str]:
    """What gloo and FBGEMM's CPU kernels can do of the allowed kinds."""
    impossible, why = ("row_wise", "bags needs NCCL: gloo gathers equal sizes only")
    if not table.as_bag:
        impossible, why = ("data_parallel", "lists needs a GPU: FBGEMM's dense kernel pools them on a CPU")
    possible = [kind for kind in kinds or CPU_KINDS if kind != impossible]
    if not possible:
        others = ", ".join(kind for kind in KINDS if kind != impossible)
        raise ShardingError(
            f"table of '{table.owner}': {impossible} sharding of {why}; "
            f"allow one of {others} - at $.trainer.model.tables"
        )
    return possible


def _shard_columns(dim: int, world_size: int) -> int:
    """Columns of a column-wise shard: divides `dim`, is a multiple of 4, and makes at most `world_size` shards."""
    return min(c for c in range(4, dim + 1, 4) if dim % c == 0 and dim // c <= world_size)
