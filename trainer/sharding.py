"""The model over all ranks: who holds which part of which table, with which optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import xxhash
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embedding_types import BaseEmbeddingSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.types import ShardingEnv

from stream.config import DeviceConfig, ModelConfig, OptimizerConfig
from trainer.ikjt import TrainBatch
from trainer.model import GroupedDLRM
from trainer.optimizers import (
    ADAGRAD_EPS,
    FUSED,
    TABLES,
    give_own_kernels,
    kernel_optimizers,
    table_of,
    torch_optimizers,
)
from trainer.planning import check_device, halve_tables, make_plan
from trainer.ranks import Ranks
from trainer.rates import LearningRates, part_of
from trainer.touched import TouchedRows
from trainer.versions import TableShard, Version, VersionError

INIT_BLOCK_ROWS = 65_536
INIT_BOUND = 0.1
DEFAULT_DEVICE = DeviceConfig()


class ShardedModel:
    """A GroupedDLRM under DistributedModelParallel, with fused optimizers for tables and torch's for dense layers."""

    def __init__(
        self,
        model: GroupedDLRM,
        *,
        config: ModelConfig,
        optimizer: OptimizerConfig,
        ranks: Ranks,
        device: DeviceConfig = DEFAULT_DEVICE,
    ) -> None:
        """`model` has its tables on the meta device; `fill_tables` gives them their first values afterwards.

        Raises ShardingError for what the devices cannot do.
        """
        self.ranks = ranks
        self._dense_type = torch.bfloat16 if device.dense == "bf16" else None
        check_device(ranks.device.type, optimizer=optimizer, device=device)
        if device.tables == "fp16":
            halve_tables(model.embeddings)
        self.rates = LearningRates(optimizer, model=config, tables=model.tables)
        parts = {table.name: part_of(table, config) for table in model.tables}
        self._rates_now: dict[str, float] = {}
        give_own_kernels(model.embeddings, parts=parts, rates=self.rates.at(0))
        fused = {
            "optimizer": FUSED[optimizer.sparse],
            "learning_rate": optimizer.sparse_learning_rate,
            "eps": ADAGRAD_EPS,
        }
        sharders: list[BaseEmbeddingSharder[Any]] = [
            EmbeddingBagCollectionSharder(fused_params=dict(fused)),
            EmbeddingCollectionSharder(fused_params=dict(fused)),
        ]
        for name, part in model.named_children():
            if f"{name}." != TABLES:
                part.to(ranks.device)
        self.module = DistributedModelParallel(
            model,
            device=ranks.device,
            plan=make_plan(model, sharders, config=config, ranks=ranks, memory_bytes=device.memory_bytes),
            sharders=sharders,
            env=ShardingEnv.from_process_group(dist.group.WORLD),
            # One rank alone has nobody to average with, and DDP would copy every gradient.
            init_data_parallel=ranks.world_size > 1,
        )
        self.touched = TouchedRows(model.tables, device=ranks.device)
        """Rows that were updated since a version was taken."""
        self._read: list[TrainBatch] = []
        self._optimizers = torch_optimizers(
            dict(self.module.named_parameters()), self._tables(), config=optimizer, parts=parts
        )
        self._fused = [(parts[table_of(one)], one) for one in kernel_optimizers(self.module.fused_optimizer)]
        self.use_rates(step=0)

    def __call__(self, batch: TrainBatch) -> torch.Tensor:
        """Logits [B, L] of this rank's batch; every rank must call together."""
        with torch.autocast(self.ranks.device.type, dtype=self._dense_type, enabled=self._dense_type is not None):
            logits: torch.Tensor = self.module(batch)
        if torch.is_grad_enabled():
            self._read.append(batch)
        return logits.float()

    def update(self, loss: torch.Tensor) -> None:
        """Backward and one step of every optimizer; gradients are averaged over the ranks."""
        for optimizer in self._optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        for optimizer in self._optimizers.values():
            optimizer.step()
        for batch in self._read:
            self.touched.mark(batch)
        self._read.clear()

    def forget_batch(self) -> None:
        """Nothing is learned from what was predicted since the last `update`."""
        self._read.clear()

    def use_rates(self, *, step: int) -> None:
        """Learn from here on with the rates of the step after `step` others."""
        rates = self.rates.at(step)
        if rates == self._rates_now:
            return
        self._rates_now = rates
        for optimizer in self._optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = rates[group["part"]]
        for part, fused in self._fused:
            for group in fused.param_groups:
                group["lr"] = rates[part]
            # The update itself is part of the backward pass; this hands the rate to its kernel.
            fused.step()

    def fill_tables(self, *, seed: int) -> None:
        """Give every table its first values: the same for a seed, whatever the sharding."""
        for table, tensor in self._tables().items():
            _fill(table, tensor, seed=seed)

    def tensors(self) -> dict[str, torch.Tensor | ShardedTensor]:
        """All state by name, aliases of what trains: `model/...`, `fused/...`, `<dense optimizer>/...`."""
        named = {f"model/{key}": value for key, value in self.module.state_dict().items()}
        for key, state in self.module.fused_optimizer.state_dict()["state"].items():
            named |= {f"fused/{key}/{name}": value for name, value in state.items() if torch.is_tensor(value)}
        names = {parameter: name for name, parameter in self.module.named_parameters()}
        for kind, optimizer in self._optimizers.items():
            for parameter, state in optimizer.state.items():
                named |= {f"{kind}/{names[parameter]}/{k}": v for k, v in state.items() if torch.is_tensor(v)}
        return named

    def dense_weights(self) -> dict[str, np.ndarray]:
        """Copies of all weights that are no tables, by state_dict name."""
        return {key: _host_copy(value) for key, value in self._dense().items()}

    def table_shards(self, rows: Mapping[str, np.ndarray] | None = None) -> list[TableShard]:
        """Copies of the parts of the tables that this rank answers for (rank 0 for what all ranks hold).

        `rows` (by table, int64 ids, ascending) leaves all other rows out.
        """
        return [
            _shard(area, table=table, shape=tensor.shape, ids=None if rows is None else rows[table])
            for table, tensor in self._tables().items()
            for area in _areas(tensor)
            if isinstance(tensor, ShardedTensor) or self.ranks.rank == 0
        ]

    def check_fit(self, version: Version) -> None:
        """VersionError unless names and shapes are this model's."""
        expected = {k: tuple(v.shape) for k, v in [*self._tables().items(), *self._dense().items()]}
        given = {k: tuple(v.shape) for k, v in [*version.tables.items(), *version.dense.items()]}
        if expected != given:
            odd = sorted(key for key in expected | given if expected.get(key) != given.get(key))
            raise VersionError(f"version {version.manifest.version} does not fit the model: {', '.join(odd[:5])}")

    def take_weights(self, version: Version) -> None:
        """Copy the weights of a version that fits; optimizer state stays."""
        with torch.no_grad():
            for table, tensor in self._tables().items():
                for row, col, weights in _areas(tensor):
                    part = version.tables[table][row : row + weights.shape[0], col : col + weights.shape[1]]
                    weights.copy_(torch.from_numpy(np.array(part)))
            for key, value in self._dense().items():
                value.copy_(torch.from_numpy(np.array(version.dense[key])))

    def _dense(self) -> dict[str, torch.Tensor]:
        return {key: value for key, value in self.module.state_dict().items() if not key.startswith(TABLES)}

    def _tables(self) -> dict[str, torch.Tensor | ShardedTensor]:
        return tables_of(self.module.state_dict())


def tables_of(state_dict: Mapping[str, Any]) -> dict[str, torch.Tensor | ShardedTensor]:
    """The embedding tables in a GroupedDLRM's state_dict, sharded or not, by table name."""
    return {key.split(".")[-2]: value for key, value in state_dict.items() if key.startswith(TABLES)}


def fill_unsharded(model: GroupedDLRM, *, seed: int) -> None:
    """The first values of an unsharded model's tables: those that the sharded one gets."""
    for table, tensor in tables_of(model.state_dict()).items():
        _fill(table, tensor, seed=seed)


class _Area(NamedTuple):
    row: int
    col: int
    weights: torch.Tensor


def _areas(tensor: torch.Tensor | ShardedTensor) -> Iterator[_Area]:
    """The parts of a table on this rank, as aliases."""
    if not isinstance(tensor, ShardedTensor):
        yield _Area(0, 0, tensor)
        return
    for shard in tensor.local_shards():
        row, col = shard.metadata.shard_offsets
        yield _Area(row, col, shard.tensor)


def _fill(table: str, tensor: torch.Tensor | ShardedTensor, *, seed: int) -> None:
    """Uniform in +-INIT_BOUND, drawn in blocks of rows, so that a shard draws only the blocks it overlaps."""
    rows, dim = tensor.shape
    with torch.no_grad():
        for area in _areas(tensor):
            last = area.row + area.weights.shape[0]
            for block in range(area.row // INIT_BLOCK_ROWS, -(-last // INIT_BLOCK_ROWS)):
                begin = block * INIT_BLOCK_ROWS
                size = min(INIT_BLOCK_ROWS, rows - begin)
                generator = torch.Generator().manual_seed(
                    xxhash.xxh3_64_intdigest(f"{seed}/{table}/{block}".encode()) >> 1
                )
                drawn = (torch.rand(size, dim, generator=generator) * 2 - 1) * INIT_BOUND
                first, end = max(begin, area.row), min(begin + size, last)
                part = drawn[first - begin : end - begin, area.col : area.col + area.weights.shape[1]]
                area.weights[first - area.row : end - area.row].copy_(part)


def _shard(area: _Area, *, table: str, shape: Sequence[int], ids: np.ndarray | None) -> TableShard:
    rows, dim = shape
    if ids is None:
        return TableShard(table, rows, dim, area.row, area.col, _host_copy(area.weights))
    first, last = np.searchsorted(ids, (area.row, area.row + area.weights.shape[0]))
    own = ids[first:last]
    places = torch.from_numpy(own - area.row).to(area.weights.device)
    weights: np.ndarray = area.weights.detach().index_select(0, places).cpu().float().numpy()
    return TableShard(table, rows, dim, area.row, area.col, weights, own)


def _host_copy(tensor: torch.Tensor) -> np.ndarray:
    copied: np.ndarray = tensor.detach().to("cpu", torch.float32, copy=True).numpy()
    return copied
