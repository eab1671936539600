"""Run under torchrun: trains cases under DistributedModelParallel, and leaves what came out.

sharded_run.py CASES.json OUT_FOLDER
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch

from stream.config import Config, ConfigError, DistinctConfig, OptimizerConfig
from tests.trainer.made_batches import VARIANTS, World, make_config, with_sharding
from tests.trainer.reference import new_model, tensors, weighted_loss
from trainer.ikjt import dummy_batch
from trainer.planning import ShardingError
from trainer.ranks import Ranks, join, leave
from trainer.sharding import ShardedModel
from trainer.touched import united
from trainer.versions import TableShard

FOLLOWED = "followed/"
"""Begins the names of tables that one full snapshot and the deltas after it made."""


def case_config(case: dict[str, str]) -> Config:
    config = make_config(
        model=VARIANTS[case["model"]],
        distinct=DistinctConfig(lookups=case["lookups"]),
        optimizer=OptimizerConfig(sparse=case["sparse"], sparse_learning_rate=0.1),
    )
    return with_sharding(config, case["kind"])


def whole(shards: list[TableShard]) -> dict[str, np.ndarray]:
    """The tables, put together from all ranks' parts."""
    return put_into({}, shards)


def put_into(tables: dict[str, np.ndarray], shards: list[TableShard]) -> dict[str, np.ndarray]:
    """All ranks' parts put into tables: whole rectangles, or the rows that a delta has."""
    for shard in shards:
        table = tables.setdefault(shard.table, np.full((shard.rows, shard.dim), np.nan, np.float32))
        rows, columns = shard.weights.shape
        place = slice(shard.row, shard.row + rows) if shard.ids is None else shard.ids
        table[place, shard.col : shard.col + columns] = shard.weights
    return tables


def train(case: dict[str, str], *, ranks: Ranks, steps: int) -> tuple[list[float], dict[str, np.ndarray]]:
    config = case_config(case)
    model = new_model(config, device="meta")
    if ranks.world_size > 1:
        model.pad_sequences(128)
    sharded = ShardedModel(model, config=config.trainer.model, optimizer=config.trainer.optimizer, ranks=ranks)
    sharded.fill_tables(seed=config.trainer.seed)
    world = World(config, seed=ranks.rank, samples=40 + 24 * ranks.rank)
    losses = []
    followed: dict[str, np.ndarray] = {}
    for step in range(steps):
        batch = tensors(world.batch(), config=config, dedup=case["dedup"] == "on")
        if step % 5 == 4 and ranks.rank == 1:
            batch = dummy_batch(model.specs, num_labels=2)
        real = int(batch.weights.sum() > 0) * batch.num_samples
        total = ranks.sums([real])[0]
        loss = weighted_loss(sharded(batch), batch) * ranks.world_size / total
        losses.append(float(loss.detach()))
        sharded.update(loss)
        if step in (8, 9, 20, steps - 1):
            rows = united(ranks.gather(sharded.touched.take())) if followed else None
            put_into(followed, [shard for part in ranks.gather(sharded.table_shards(rows)) for shard in part])
    shards = [shard for part in ranks.gather(sharded.table_shards()) for shard in part]
    followed = {f"{FOLLOWED}{table}": weights for table, weights in followed.items()}
    return losses, sharded.dense_weights() | whole(shards) | followed


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    ranks = join()
    for number, case in enumerate(json.loads(Path(sys.argv[1]).read_text())):
        try:
            losses, weights = train(case, ranks=ranks, steps=int(case["steps"]))
        except (ConfigError, ShardingError) as error:
            (Path(sys.argv[2]) / f"{number}-{ranks.rank}.txt").write_text(str(error))
            continue
        summed = np.sum(ranks.gather(np.array(losses)), axis=0) / ranks.world_size
        if ranks.rank == 0:
            np.savez(Path(sys.argv[2]) / f"{number}.npz", losses=summed, **weights)
    leave()
