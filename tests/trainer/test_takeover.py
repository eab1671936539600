"""A changed model goes on from the cut: what it still has works as before, what cannot be had is refused by name."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from dedup_cache import Batch, Group, Jagged, Rows
from stream.config import Config, FeatureConfig, LabelConfig, TableConfig
from stream.transforms import Transform
from tests.trainer.made_batches import FEATURES, LABELS, MODEL, VARIANTS, World, make_config
from tests.trainer.reference import tensors, weighted_loss
from tests.trainer.test_keeper import keeper, pytestmark, ranks
from trainer.cut_files import CutError
from trainer.keeper import Keeper
from trainer.ranks import Ranks
from trainer.takeover import TakenOver

__all__ = ["pytestmark", "ranks"]
BRAND = FeatureConfig(name="brand", group="item")
WEIGHT = FeatureConfig(name="weight", group="item", type="float")
REGION = FeatureConfig(name="region", group="place")


def config_of(root: Path, *, model=MODEL, features=FEATURES, labels=LABELS, **trainer: object) -> Config:
    config = make_config(model=model, checkpoint_url=str(root / "cuts"), versions_url=str(root / "versions"), **trainer)
    return msgspec.structs.replace(config, features=features, labels=labels)


def with_more(batch: Batch) -> Batch:
    """The same samples with a brand and a weight of each item, and a region for all."""
    item, size = batch.groups["item"], batch.num_samples
    count = item.rows.num_rows
    dense = np.concatenate([item.rows.dense, np.full((count, 1), 2.5, np.float32)], axis=1)
    lists = {**item.rows.lists, "brand": Jagged.from_rows([[i % 7] for i in range(count)])}
    place = Group(Rows(np.zeros((1, 0), np.float32), {"region": Jagged.from_rows([[3]])}), np.zeros(size, np.int32))
    return replace(batch, groups={**batch.groups, "item": Group(Rows(dense, lists), item.inverse), "place": place})


def opened(config: Config, ranks: Ranks) -> Keeper:
    """A trainer that went on from the cut, if there is one."""
    kept = keeper(config, ranks)
    try:
        kept.restore()
    finally:
        kept.release()
    return kept


def logits(kept: Keeper, config: Config, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return kept._trained.model(tensors(batch, config=config))


def train(kept: Keeper, config: Config, batches: list[Batch]) -> None:
    for batch in batches:
        given = tensors(batch, config=config)
        kept._trained.model.update(weighted_loss(kept._trained.model(given)[:, : batch.labels.shape[1]], given) / 64)
        kept._trained.state.step += 1


@pytest.fixture
def batches() -> list[Batch]:
    return list(World(make_config()).batches(4))


def trained(config: Config, ranks: Ranks, batches: list[Batch]) -> Keeper:
    kept = opened(config, ranks)
    train(kept, config, batches)
    assert kept.checkpoint()
    return kept


def silence(kept: Keeper, *, keep: Config) -> None:
    """Set all inputs of dense layers to zero that the model of `keep` does not have."""
    from trainer.description import describe

    was, now = describe(keep), kept._model
    state = kept._trained.model.module.state_dict()
    for name, columns in now.columns.items():
        old = set(was.columns[name].spans) if name in was.columns else set()
        first = 0
        for span in columns.spans:
            if span not in old:
                state[name].narrow(columns.axis, first, span[1]).zero_()
            first += span[1]


def told(kept: Keeper) -> TakenOver:
    assert kept.taken_over is not None
    return kept.taken_over


@pytest.fixture(params=["dot", "cross", "mixed"])
def interaction(request: pytest.FixtureRequest) -> str:
    return request.param


def test_new_and_removed_features(tmp_path: Path, ranks: Ranks, batches: list[Batch], interaction: str):
    small = config_of(tmp_path, model=VARIANTS[interaction])
    before = trained(small, ranks, batches)
    expected = logits(before, small, batches[0])
    large = config_of(tmp_path, model=VARIANTS[interaction], features=(REGION, *FEATURES, BRAND, WEIGHT))
    after = opened(large, ranks)
    assert {"table t_brand", "table t_region"} <= set(told(after).new)
    assert "towers.g_item.dense_arch._mlp.0._linear.weight: inputs weight" in told(after).new
    assert told(after).dropped == told(after).grown == ()
    silence(after, keep=small)
    torch.testing.assert_close(logits(after, large, with_more(batches[0])), expected, rtol=1e-5, atol=1e-6)
    train(after, large, [with_more(batch) for batch in batches])
    assert after.checkpoint()
    silence(after, keep=small)
    expected = logits(after, large, with_more(batches[1]))
    assert after.checkpoint()
    again = opened(small, ranks)
    assert {"table t_brand", "table t_region"} <= set(told(again).dropped)
    torch.testing.assert_close(logits(again, small, batches[1]), expected, rtol=1e-5, atol=1e-6)
    train(again, small, batches)
    report = (tmp_path / "cuts" / "takeover.json").read_bytes()
    assert msgspec.json.decode(report, type=TakenOver) == told(again)


def test_a_bigger_table(tmp_path: Path, ranks: Ranks, batches: list[Batch]):
    former = config_of(tmp_path)
    before = trained(former, ranks, batches)
    rows = {"item": TableConfig(rows=1500), "tags": TableConfig(rows=100, pooling="mean")}
    config = config_of(tmp_path, model=msgspec.structs.replace(MODEL, tables=MODEL.tables | rows))
    after = opened(config, ranks)
    assert told(after).grown == ("table t_item: 500 -> 1500 rows", "table t_tags: 50 -> 100 rows")
    assert told(after).new == told(after).dropped == ()
    for batch in batches:
        assert torch.equal(logits(after, config, batch), logits(before, former, batch))
    state = {key: value for key, value in after._trained.model.tensors().items() if "momentum1" in key}
    was = {key: value for key, value in before._trained.model.tensors().items() if "momentum1" in key}
    for key, value in state.items():
        now, then = value.local_shards()[0].tensor, was[key].local_shards()[0].tensor
        assert torch.equal(now, then.repeat(len(now) // len(then)))


def test_a_bigger_table_of_ids_that_are_its_rows(tmp_path: Path, ranks: Ranks, batches: list[Batch]):
    transforms = msgspec.convert([{"positive_modulus": {"modulus": 24}}], tuple[Transform, ...])
    features = replaced("hour", transforms=transforms)
    former = config_of(tmp_path, features=features, **table("hour", rows=24))
    before = trained(former, ranks, batches)
    config = config_of(tmp_path, features=features, **table("hour", rows=30))
    after = opened(config, ranks)
    assert told(after).grown == ("table t_hour: 24 -> 30 rows",)
    assert torch.equal(logits(after, config, batches[0]), logits(before, former, batches[0]))
    rows = {kept: kept._trained.model._tables()["t_hour"].local_shards()[0].tensor for kept in (before, after)}
    assert torch.equal(rows[after][:24], rows[before])
    assert (rows[after][24:] != 0).all()


def test_a_learning_rate_and_labels(tmp_path: Path, ranks: Ranks, batches: list[Batch]):
    former = config_of(tmp_path)
    before = trained(former, ranks, batches)
    rates = msgspec.structs.replace(former.trainer.optimizer, sparse_learning_rate=0.5)
    buy = msgspec.structs.replace(LABELS[1], engagements=("buy", "rent"))
    labels = (LabelConfig(name="like", engagements=("click",)), buy, LABELS[0])
    config = config_of(tmp_path, labels=labels, optimizer=rates, features=replaced("hour", field="local_hour"))
    after = opened(config, ranks)
    assert told(after).changed == (
        "trainer.optimizer.sparse_learning_rate: 0.05 -> 0.5",
        "features.hour.field: hour -> local_hour",
        "labels.buy.engagements: click -> buy, rent",
    )
    assert told(after).new == ("heads.like.0.bias", "heads.like.0.weight")
    expected = logits(before, former, batches[0])
    assert torch.equal(logits(after, config, batches[0])[:, 1:], expected.flip(1))
    sums, was = (kept._trained.evaluation.state()["sums"] for kept in (after, before))
    np.testing.assert_array_equal(sums[..., 1:], was[..., ::-1])
    assert after.checkpoint()
    assert told(opened(former, ranks)).dropped == ("heads.like.0.bias", "heads.like.0.weight")


def replaced(name: str, **fields: object) -> tuple[FeatureConfig, ...]:
    return tuple(msgspec.structs.replace(f, **fields) if f.name == name else f for f in FEATURES)


def table(name: str, **fields: object) -> dict[str, object]:
    former = MODEL.tables.get(name, MODEL.default_table)
    tables = MODEL.tables | {name: msgspec.structs.replace(former, **fields)}
    return {"model": msgspec.structs.replace(MODEL, tables=tables)}


REFUSED = {
    "dimension": (table("item", dim=16), r"table of 'item' has dimension 8 .* and 16 .* set .*tables\.item\.dim to 8"),
    "hashing": (table("item", rows=600), r"has 500 rows in the cut and 600 .* other ids: .* a multiple of 500"),
    "smaller": (table("item", rows=250), r"has 500 rows in the cut and 250 .* a multiple of 500"),
    "strings": ({"features": replaced("item", type="string")}, "feature 'item' comes from another source"),
    "layers": ({"model": msgspec.structs.replace(MODEL, over_arch=(16,))}, r"interaction.* is \[32.* and \[16"),
}


@pytest.mark.parametrize("change", [*REFUSED, "sparse optimizer", "dense optimizer"])
def test_what_cannot_be_taken_over_is_refused_by_name(tmp_path: Path, ranks: Ranks, batches: list[Batch], change: str):
    former = config_of(tmp_path)
    trained(former, ranks, batches[:1])
    if change in REFUSED:
        fields, message = REFUSED[change]
    else:
        kind = change.partition(" ")[0]
        optimizer = msgspec.structs.replace(former.trainer.optimizer, **{kind: "sgd"})
        fields, message = {"optimizer": optimizer}, f"{kind} optimizer was .* and is sgd.* set trainer.optimizer.{kind}"
    with pytest.raises(CutError, match=message):
        opened(config_of(tmp_path, **fields), ranks)
    assert told(opened(former, ranks)).is_changed is False


@pytest.fixture(autouse=True)
def few_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
