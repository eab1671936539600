"""Learning rates: the schedule, orders, and what a step really moves weights by."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from stream.config import Config, OptimizerConfig, RateConfig, TableConfig
from tests.trainer.made_batches import MODEL, World, make_config
from tests.trainer.reference import Reference, new_model, tensors, weighted_loss
from tests.trainer.test_keeper import keeper, pytestmark, ranks
from trainer.ranks import Ranks
from trainer.rates import LearningRates, RateError, factor
from trainer.sharding import ShardedModel
from trainer.tables import tables_of_model

__all__ = ["pytestmark", "ranks"]

OWN = replace(MODEL, tables={**MODEL.tables, "item": TableConfig(rows=500, learning_rate=0.2)})
OPTIMIZER = OptimizerConfig(sparse="sgd", sparse_learning_rate=0.1, dense_learning_rate=0.01)


def rates_of(config: Config) -> LearningRates:
    tables = tables_of_model(new_model(config).specs, config.trainer.model)
    return LearningRates(config.trainer.optimizer, model=config.trainer.model, tables=tables)


@pytest.mark.parametrize(
    ("schedule", "steps", "expected"),
    [
        (RateConfig(), (0, 10**9), (1, 1)),
        (RateConfig(warmup_steps=4), (0, 1, 3, 4, 99), (0.25, 0.5, 1, 1, 1)),
        (RateConfig(decay="linear", decay_steps=10, floor=0.2), (0, 5, 10, 99), (1, 0.6, 0.2, 0.2)),
        (RateConfig(decay="cosine", decay_steps=10), (0, 5, 10, 99), (1, 0.5, 0, 0)),
        (RateConfig(warmup_steps=5, decay="inverse_sqrt", decay_steps=10, floor=0.1), (15, 45, 10**6), (1, 0.5, 0.1)),
    ],
)
def test_schedules(schedule: RateConfig, steps: tuple[int, ...], expected: tuple[float, ...]):
    assert [factor(schedule, step) for step in steps] == pytest.approx(expected)


def test_an_order_holds_until_the_config_says_something_else(caplog: pytest.LogCaptureFixture):
    config = make_config(model=OWN, optimizer=OPTIMIZER)
    rates = rates_of(config)
    assert rates.at(0) == {"dense": 0.01, "sparse": 0.1, "tables.item": 0.2}
    rates.give({"dense": 0.5, "tables.item": 0.0})
    rates.give({"tables.item": 0.3})
    again = rates_of(config)
    again.restore(rates.state())
    assert again.at(7) == rates.at(7) == {"dense": 0.5, "sparse": 0.1, "tables.item": 0.3}
    edited = rates_of(make_config(model=OWN, optimizer=replace(OPTIMIZER, dense_learning_rate=0.02)))
    with caplog.at_level(logging.WARNING):
        edited.restore(rates.state())
    assert edited.at(7) == {"dense": 0.02, "sparse": 0.1, "tables.item": 0.3}
    assert "the config's learning rate holds" in caplog.text
    again.give({"dense": None, "tables.item": None})
    assert again.at(7) == rates_of(config).at(7)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"dense": 0.1, "tables.user": 0.1}, r"no learning rate 'tables.user': there is dense, sparse, tables.item"),
        ({"dense": 0.1, "sparse": -1.0}, r"learning rate 'sparse': expected a number from 0, got -1.0"),
        ({"dense": float("nan")}, r"learning rate 'dense'"),
    ],
)
def test_an_order_that_cannot_be_obeyed_changes_nothing(given: dict[str, float], error: str):
    rates = rates_of(make_config(model=OWN, optimizer=OPTIMIZER))
    before = rates.at(0)
    with pytest.raises(RateError, match=error):
        rates.give(given)
    assert rates.at(0) == before


@pytest.mark.parametrize("sparse", ["rowwise_adagrad", "sgd"])
def test_every_part_moves_by_its_own_rate(ranks: Ranks, sparse: str):
    """A rate of 0 freezes exactly its part, from the next step, and a table's own rate is what it is trained with."""
    config = make_config(model=OWN, optimizer=replace(OPTIMIZER, sparse=sparse, dense="sgd"))
    model = ShardedModel(new_model(config, device="meta"), config=OWN, optimizer=config.trainer.optimizer, ranks=ranks)
    model.fill_tables(seed=0)
    world, step = World(config), 0

    def moved() -> set[str]:
        nonlocal step
        before = weights(model)
        batch = tensors(world.batch(), config=config)
        model.use_rates(step=step)
        model.update(weighted_loss(model(batch), batch) / batch.num_samples)
        step += 1
        after = weights(model)
        return {key for key, value in after.items() if not np.array_equal(value, before[key])}

    everything, tables = moved(), {"t_user", "t_history", "t_item", "t_tags", "t_hour"}
    assert tables < everything
    model.rates.give({"tables.item": 0.0})
    assert moved() == everything - {"t_item"}
    model.rates.give({"tables.item": None, "sparse": 0.0})
    assert moved() == everything - tables | {"t_item"}
    model.rates.give({"sparse": None, "dense": 0.0})
    assert moved() == tables


def weights(model: ShardedModel) -> dict[str, np.ndarray]:
    return {shard.table: shard.weights for shard in model.table_shards()} | model.dense_weights()


def test_a_schedule_trains_as_torch_would(ranks: Ranks):
    """Warm-up, decay and a table's own rate against torch's optimizers told every rate by hand."""
    schedule = RateConfig(warmup_steps=5, decay="linear", decay_steps=10, floor=0.1)
    optimizer = replace(OPTIMIZER, sparse="rowwise_adagrad", sparse_schedule=schedule, dense_schedule=schedule)
    config = make_config(model=OWN, optimizer=optimizer)
    torch.manual_seed(config.trainer.seed)
    model = ShardedModel(new_model(config, device="meta"), config=OWN, optimizer=optimizer, ranks=ranks)
    model.fill_tables(seed=config.trainer.seed)
    reference = Reference(config)
    sparse, dense = reference._optimizers
    item = [p for name, p in reference.model.named_parameters() if ".t_item." in name]
    sparse.param_groups[0]["params"] = [p for p in sparse.param_groups[0]["params"] if p is not item[0]]
    sparse.add_param_group({"params": item})
    for step, made in enumerate(World(config).batches(20)):
        batch = tensors(made, config=config)
        share = factor(schedule, step)
        for group, rate in zip([*sparse.param_groups, *dense.param_groups], (0.1, 0.2, 0.01), strict=True):
            group["lr"] = rate * share
        expected = reference.step([batch])
        model.use_rates(step=step)
        loss = weighted_loss(model(batch), batch) / batch.num_samples
        model.update(loss)
        assert float(loss.detach()) == pytest.approx(expected, abs=1e-5)
    found = weights(model)
    for key, value in reference.weights().items():
        name = key.split(".")[-2] if ".t_" in key else key
        np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=key)


def test_a_cut_keeps_what_was_ordered(ranks: Ranks, tmp_path: Path):
    config = make_config(
        model=OWN, optimizer=OPTIMIZER, checkpoint_url=str(tmp_path / "cuts"), versions_url=str(tmp_path / "versions")
    )
    first = keeper(config, ranks)
    first.restore()
    first._trained.model.rates.give({"sparse": 0.25})
    assert first.checkpoint()
    first.release()
    second = keeper(config, ranks)
    second.restore()
    assert second._trained.model.rates.at(0)["sparse"] == 0.25
    second.release()
