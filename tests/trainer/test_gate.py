"""The weights that train against those in service, on batches that neither was trained on."""

from pathlib import Path

import numpy as np
import pytest
import torch

from stream.config import DistinctConfig, GateConfig
from tests.trainer.made_batches import World, make_config
from tests.trainer.reference import new_model
from tests.trainer.test_keeper import pytestmark, ranks
from trainer.gate import Gate, Shadow
from trainer.ikjt import TrainBatch, group_specs, to_train_batch
from trainer.publishing import Moment, take_snapshot
from trainer.ranks import Ranks
from trainer.sharding import ShardedModel
from trainer.versions import Snapshot, VersionStore

__all__ = ["pytestmark", "ranks"]

CONFIG = make_config()


@pytest.fixture(scope="module")
def model(ranks: Ranks) -> ShardedModel:
    network = new_model(CONFIG, device="meta")
    sharded = ShardedModel(network, config=CONFIG.trainer.model, optimizer=CONFIG.trainer.optimizer, ranks=ranks)
    sharded.fill_tables(seed=0)
    return sharded


def snapshot(model: ShardedModel, step: int) -> Snapshot:
    moment = Moment(step=step, samples=0, stream_time_ms=0, config={}, lineage="", base=0)
    taken = take_snapshot(model, ranks=model.ranks, moment=moment)
    assert taken is not None
    return taken


def batches(count: int, *, seed: int = 0) -> list[TrainBatch]:
    specs, world = group_specs(CONFIG.features, CONFIG.trainer.model), World(CONFIG, seed=seed, samples=128)
    return [to_train_batch(batch, specs=specs, dedup=True) for batch in world.batches(count)]


def predict(model: ShardedModel, batch: TrainBatch) -> np.ndarray:
    with torch.no_grad():
        return torch.sigmoid(model(batch)).numpy()


def learn(model: ShardedModel, batch: TrainBatch, *, sign: int = 1) -> None:
    labels = batch.labels if sign > 0 else 1 - batch.labels
    loss = torch.nn.functional.binary_cross_entropy_with_logits(model(batch), labels, reduction="sum")
    model.update(loss / 128)


def test_weights_that_were_poisoned_are_held_back_and_better_ones_go_out(model: ShardedModel, tmp_path: Path):
    gate = Gate(GateConfig(time_share=1.0, samples=1_000), labels=["click", "buy"], shadow=Shadow(CONFIG))
    gate.look(batches(1)[0], predictions=np.full((128, 2), np.nan))
    assert gate.worse() is None
    good, stream = snapshot(model, 1), batches(40)
    gate.published(good)
    for batch in stream[:20]:
        predictions = predict(model, batch)
        gate.look(batch, predictions=predictions)
        learn(model, batch)
    assert gate.worse() is None
    better = snapshot(model, 2)
    gate.published(better)
    np.testing.assert_allclose(gate._shadow.predict(stream[0]), predict(model, stream[0]), rtol=1e-5)
    for batch in stream[20:30]:
        learn(model, batch, sign=-1)
    for batch in stream[30:]:
        gate.look(batch, predictions=predict(model, batch))
    worse = gate.worse()
    assert worse is not None
    assert worse.entropy > worse.entropy_in_service
    assert worse.samples >= 1_000
    store = VersionStore(str(tmp_path), keep=2)
    gate.went_back(store.load(store.publish(better)))
    for batch in stream[30:]:
        gate.look(batch, predictions=predict(model, batch))
    assert gate.worse() == worse
    gate.forget()
    assert gate.worse() is None


@pytest.mark.parametrize("lookups", ["grouped", "vbe", "off"])
def test_the_weights_in_service_predict_whatever_form_batches_have(model: ShardedModel, lookups: str):
    config = make_config(distinct=DistinctConfig(lookups=lookups))
    specs = group_specs(config.features, config.trainer.model)
    batch = World(config).batch()
    given = to_train_batch(batch, specs=specs, dedup=True, expand_ids=lookups == "off")
    shadow = Shadow(config)
    shadow.take(snapshot(model, 1))
    expected = predict(model, to_train_batch(batch, specs=specs, dedup=True))
    np.testing.assert_allclose(shadow.predict(given), expected, rtol=1e-5)
