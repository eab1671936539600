"""Rows that count as touched: those that changed, and those that TorchRec's own tracker names."""

import numpy as np
import pytest
import torch
from torchrec.distributed.model_tracker.model_delta_tracker import ModelDeltaTrackerTrec

from stream.config import Config
from tests.trainer.made_batches import VARIANTS, World, make_config, with_sharding
from tests.trainer.reference import new_model, tensors, weighted_loss
from tests.trainer.test_keeper import pytestmark, ranks
from trainer.ranks import Ranks
from trainer.sharding import ShardedModel
from trainer.touched import TouchedRows, united

__all__ = ["pytestmark", "ranks"]


def sharded(config: Config, ranks: Ranks) -> ShardedModel:
    model = ShardedModel(
        new_model(config, device="meta"), config=config.trainer.model, optimizer=config.trainer.optimizer, ranks=ranks
    )
    model.fill_tables(seed=1)
    return model


def train(
    model: ShardedModel, world: World, config: Config, *, steps: int, tracker: ModelDeltaTrackerTrec | None = None
) -> None:
    for _ in range(steps):
        if tracker is not None:
            tracker.step()
        batch = tensors(world.batch(), config=config)
        model.update(weighted_loss(model(batch), batch) / 64)


def tables(model: ShardedModel) -> dict[str, np.ndarray]:
    return {shard.table: shard.weights for shard in model.table_shards()}


@pytest.mark.parametrize("variant", ["dot", "transformer", "shared bag", "shared sequence"])
@pytest.mark.parametrize("kind", ["table_wise", "column_wise"])
def test_what_changed_was_touched_and_is_what_the_library_tracks(ranks: Ranks, variant: str, kind: str) -> None:
    config = with_sharding(make_config(model=VARIANTS[variant]), kind)
    model, world = sharded(config, ranks), World(config)
    tracker = ModelDeltaTrackerTrec(model.module)
    for steps in (3, 1, 5):
        before = tables(model)
        train(model, world, config, steps=steps, tracker=tracker)
        rows = model.touched.take()
        for table, after in tables(model).items():
            changed = np.flatnonzero((after != before[table]).any(axis=1))
            assert set(changed.tolist()) <= set(rows[table].tolist()), table
            assert len(changed) > 0.5 * len(rows[table]) > 0
        tracked = {fqn.split(".")[-1]: ids.unique().numpy() for fqn, ids in tracker.get_unique_ids().items()}
        assert tracked.keys() == rows.keys()
        for table, ids in tracked.items():
            np.testing.assert_array_equal(rows[table], ids, err_msg=table)
    assert not any(map(len, model.touched.take().values()))


def test_what_did_not_get_out_is_due_again(ranks: Ranks) -> None:
    config = make_config()
    model, world = sharded(config, ranks), World(config)
    train(model, world, config, steps=2)
    first = model.touched.take()
    train(model, world, config, steps=1)
    model.touched.give_back(first)
    again = model.touched.take()
    assert sum(map(len, again.values())) > sum(map(len, first.values()))
    for table, ids in first.items():
        assert set(ids.tolist()) <= set(again[table].tolist())
        assert (np.diff(again[table]) > 0).all()


def test_looking_touches_nothing(ranks: Ranks) -> None:
    config = make_config()
    model, world = sharded(config, ranks), World(config)
    with torch.no_grad():
        model(tensors(world.batch(), config=config))
    train(model, world, config, steps=0)
    assert not any(map(len, model.touched.take().values()))


def test_the_marks_take_no_more_room_however_long_they_are_kept(ranks: Ranks) -> None:
    config = make_config()
    model, world = sharded(config, ranks), World(config)
    marks: TouchedRows = model.touched
    size = sum(mask.nbytes for mask in marks._marks.values())
    assert size == sum(shard.rows for shard in model.table_shards())
    train(model, world, config, steps=20)
    assert sum(mask.nbytes for mask in marks._marks.values()) == size


def test_ranks_touch_together() -> None:
    parts = [{"t": np.array([1, 5]), "u": np.array([], np.int64)}, {"t": np.array([2, 5]), "u": np.array([7])}]
    assert {table: ids.tolist() for table, ids in united(parts).items()} == {"t": [1, 2, 5], "u": [7]}
