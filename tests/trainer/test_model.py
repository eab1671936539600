"""The model by itself: the same with and without dedup, and loud where a batch does not fit it."""

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from stream.config import ConfigError, FeatureConfig, ModelConfig, TableConfig
from tests.trainer.made_batches import FEATURES, LABELS, MODEL, World, make_config
from tests.trainer.reference import Reference, new_model, tensors
from trainer.ikjt import GroupTensors, TrainBatch, dummy_batch
from trainer.model import GroupedDLRM, KeyOrderError, squash
from trainer.sharding import tables_of

CONFIG = make_config()


def test_one_logit_per_sample_and_label():
    batch = World(CONFIG).batch()
    assert new_model(CONFIG)(tensors(batch, config=CONFIG)).shape == (batch.num_samples, 2)


def test_distinct_rows_give_the_logits_of_all_rows():
    model, batch = new_model(CONFIG), World(CONFIG).batch()
    on, off = (model(tensors(batch, config=CONFIG, dedup=dedup)) for dedup in (True, False))
    torch.testing.assert_close(on, off)
    assert on.std() > 0


def test_tables_and_dense_layers_see_each_distinct_row_once():
    model, batch = new_model(CONFIG), World(CONFIG).batch()
    seen: dict[str, int] = {}
    for name, module in model.dense_archs.items():
        module.register_forward_hook(lambda _m, args, _o, name=name: seen.__setitem__(name, len(args[0])))
    for name, module in model.embeddings.items():
        module.register_forward_hook(lambda _m, args, _o, name=name: seen.__setitem__(name + "/ids", args[0].stride()))
    model(tensors(batch, config=CONFIG))
    distinct = {name: group.rows.num_rows for name, group in batch.groups.items()}
    assert seen == {
        "g_user": distinct["user"],
        "g_item": distinct["item"],
        "g_user/ids": distinct["user"],
        "g_item/ids": distinct["item"],
        "g_context/ids": distinct["context"],
    }
    assert distinct["context"] < batch.num_samples


def test_another_order_of_features_is_refused():
    batch = tensors(World(CONFIG).batch(), config=CONFIG)
    ids = batch.groups["user"].ids
    assert ids is not None
    swapped = KeyedJaggedTensor(keys=ids.keys()[::-1], values=ids.values(), lengths=ids.lengths())
    user = GroupTensors(swapped, batch.groups["user"].dense, batch.groups["user"].inverse)
    groups = {**batch.groups, "user": user}
    with pytest.raises(KeyOrderError, match=r"group user: the batch has \['history', 'user'\]"):
        new_model(CONFIG)(TrainBatch(groups, batch.labels, batch.weights, batch.scores))


def test_every_table_and_layer_learns():
    reference = Reference(CONFIG)
    before = reference.weights()
    world = World(CONFIG)
    losses = [reference.step([tensors(batch, config=CONFIG)]) for batch in world.batches(150)]
    after = reference.weights()
    assert [key for key in before if (before[key] == after[key]).all()] == []
    assert sum(losses[-20:]) < 0.9 * sum(losses[:20])


def test_first_values_of_tables_do_not_depend_on_the_dense_layers():
    one, other = Reference(CONFIG).weights(), Reference(make_config(seed=1)).weights()
    tables = [key for key in one if "embedding_bags" in key]
    assert len(tables) == 5
    assert all((one[key] != other[key]).any() for key in one)


def test_the_dummy_passes_and_moves_nothing():
    reference = Reference(CONFIG)
    before = reference.weights()
    assert reference.step([dummy_batch(reference.model.specs, num_labels=2)]) == 0.0
    assert [key for key, value in reference.weights().items() if (value != before[key]).any()] == []


def test_squash_is_odd_and_finite_everywhere():
    given = torch.tensor([0.0, 1.0, -1.0, 1e30, float("inf"), float("-inf"), float("nan")])
    squashed = squash(given)
    assert squashed[:3].tolist() == pytest.approx([0.0, 0.6931472, -0.6931472])
    assert torch.isfinite(squashed).all()
    assert squashed[6] == 0


def test_a_table_of_another_dimension_is_refused_with_its_path():
    model = ModelConfig(dim=16, tables={"item": TableConfig(dim=8)})
    with pytest.raises(ConfigError, match=r"needs 16 .* got 8 - at \$.trainer.model.tables.item.dim"):
        GroupedDLRM(FEATURES, labels=LABELS, config=model)


def test_a_dimension_that_no_kernel_takes_is_refused():
    with pytest.raises(ConfigError, match=r"multiple of 4, got 6 - at \$.trainer.model.dim"):
        GroupedDLRM(FEATURES, labels=LABELS, config=ModelConfig(dim=6))


def test_no_feature_at_all_is_refused():
    with pytest.raises(ConfigError, match="at least one feature"):
        GroupedDLRM((), labels=LABELS, config=MODEL)


def test_any_name_of_the_config_can_be_a_group_and_a_table():
    features = (
        FeatureConfig(name="user.id", group="items"),
        FeatureConfig(name="weight", group="keys"),
        FeatureConfig(name="training", group="a.b"),
        FeatureConfig(name="pop", group="type", type="float"),
    )
    model = GroupedDLRM(features, labels=LABELS, config=MODEL)
    assert set(tables_of(model.state_dict())) == {"t_user:id", "t_weight", "t_training"}
    assert model(dummy_batch(model.specs, num_labels=2)).shape == (1, 2)


@pytest.mark.parametrize("features", [FEATURES[:1], FEATURES[2:3]])
def test_a_single_feature_is_enough(features: tuple[FeatureConfig, ...]):
    model = GroupedDLRM(features, labels=LABELS[:1], config=ModelConfig(dim=4, dense_arch=(), over_arch=()))
    assert model(dummy_batch(model.specs, num_labels=1)).shape == (1, 1)
