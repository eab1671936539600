"""A sample of weight 3 teaches what three of weight 1 do: the correction of sampled negatives reaches the gradient."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch

from dedup_cache import Batch, Group
from tests.trainer.made_batches import World, make_config
from tests.trainer.test_keeper import keeper, pytestmark, ranks
from tests.trainer.test_loop import NoFeed
from trainer.board import Board
from trainer.feed import FedBatch, Feed
from trainer.ikjt import dummy_batch, group_specs, to_train_batch
from trainer.loop import Agreed, StepRules, TrainingLoop
from trainer.ranks import Ranks
from trainer.schedule import Schedule

__all__ = ["pytestmark", "ranks"]
WEIGHTS = np.array([1, 3, 1, 2], np.int64)


def test_a_weight_counts_like_so_many_samples(tmp_path: Path, ranks: Ranks) -> None:
    made = {name: trained(tmp_path / name, ranks, repeated=name == "repeated") for name in ("weighted", "repeated")}
    (weighted, weighted_sums), (repeated, repeated_sums) = made.values()
    for name, weights in weighted.items():
        torch.testing.assert_close(weights, repeated[name], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(weighted_sums, repeated_sums, rtol=1e-5)


def trained(folder: Path, ranks: Ranks, *, repeated: bool) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """Dense weights and evaluation after one step on four samples, weighted or so often."""
    config = make_config(checkpoint_url=str(folder / "cuts"), versions_url=str(folder / "versions"))
    batch = World(config, samples=4).batch()
    batch = (
        taken(batch, np.repeat(np.arange(4), WEIGHTS))
        if repeated
        else replace(batch, weights=WEIGHTS.astype(np.float32))
    )
    kept = keeper(config, ranks)
    specs = group_specs(config.features, config.trainer.model)
    loop = TrainingLoop(
        kept._trained,
        feed=cast(Feed, NoFeed()),
        keeper=kept,
        board=Board(["click", "buy"]),
        schedule=Schedule(config.trainer, orders=None),
        rules=StepRules(dummy_batch(specs, num_labels=2), full_batch=4, label_weights=torch.ones(2)),
        stop=threading.Event(),
    )
    count = batch.num_samples
    times = np.zeros(count, np.int64)
    fed = FedBatch(to_train_batch(batch, specs=specs, dedup=True), 0, 0, 0, count, 0, times, times, 0)
    loop._step(fed, Agreed(count, 1, *[0] * (len(Agreed._fields) - 2)))
    weights = {name: torch.from_numpy(value) for name, value in kept._trained.model.dense_weights().items()}
    sums = kept._trained.evaluation.state()["sums"].sum(axis=0)
    kept.release()
    return weights, sums


def taken(batch: Batch, indices: np.ndarray) -> Batch:
    """Samples `indices`."""
    groups = {name: Group(group.rows, group.inverse[indices]) for name, group in batch.groups.items()}
    columns = ("labels", "weights", "scores", "sample_ids", "event_times_ms", "append_times_ms")
    return replace(batch, groups=groups, **{name: getattr(batch, name)[indices] for name in columns})
