"""The model by itself: the same with and without dedup, and loud where a batch does not fit it."""

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from stream.config import ConfigError, DistinctConfig, FeatureConfig, ModelConfig, SequenceConfig, TableConfig
from tests.trainer.made_batches import FEATURES, LABELS, MODEL, VARIANTS, World, make_config
from tests.trainer.reference import Reference, new_model, tensors
from trainer.group_tower import squash
from trainer.ikjt import GroupTensors, TrainBatch, dummy_batch
from trainer.lookup import KeyOrderError, Sequences
from trainer.model import GroupedDLRM
from trainer.sharding import tables_of

CONFIG = make_config()


def test_one_logit_per_sample_and_label():
    batch = World(CONFIG).batch()
    assert new_model(CONFIG)(tensors(batch, config=CONFIG)).shape == (batch.num_samples, 2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_distinct_rows_give_the_logits_of_all_rows(variant: str):
    config = make_config(model=VARIANTS[variant])
    model, batch = new_model(config), World(config).batch()
    on, off = (model(tensors(batch, config=config, dedup=dedup)) for dedup in (True, False))
    torch.testing.assert_close(on, off)
    assert on.std() > 0


@pytest.mark.parametrize("variant", ["dot", "cross", "transformer", "shared sequence", "dimensions"])
@pytest.mark.parametrize("lookups", ["grouped", "off"])
@pytest.mark.parametrize("layers", [True, False])
@pytest.mark.parametrize("jagged_select", [True, False])
def test_every_switch_leaves_logits_and_gradients_alone(variant: str, lookups: str, layers: bool, jagged_select: bool):
    switched = DistinctConfig(lookups=lookups, layers=layers, jagged_select=jagged_select)
    made = []
    for distinct in (DistinctConfig(), switched):
        config = make_config(model=VARIANTS[variant], distinct=distinct)
        model, batch = new_model(config), World(config).batch()
        logits = model(tensors(batch, config=config))
        logits.square().sum().backward()
        made.append((logits, [parameter.grad for parameter in model.parameters()]))
    (logits, gradients), (other_logits, other_gradients) = made
    torch.testing.assert_close(logits, other_logits)
    torch.testing.assert_close(gradients, other_gradients, atol=1e-4, rtol=1e-4)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize("layers", [True, False])
@pytest.mark.parametrize("lookups", ["grouped", "off"])
def test_steps_see_distinct_rows_where_they_are_on(lookups: str, layers: bool):
    config = make_config(model=VARIANTS["transformer"], distinct=DistinctConfig(lookups=lookups, layers=layers))
    model, batch = new_model(config), World(config).batch()
    seen: dict[str, int] = {}

    def watch(name: str, module: torch.nn.Module | None) -> None:
        if module is not None:
            module.register_forward_hook(lambda _m, args, _o: seen.__setitem__(name, _rows(args[0])))

    for name, lookup in model.embeddings.items():
        watch(f"{name} ids", lookup.bags)
    for name, tower in model.towers.items():
        watch(f"{name} dense", tower.dense_arch)
    watch("g_user list", model.towers["g_user"].poolings["g_history"])
    model(tensors(batch, config=config))
    distinct = {name: group.rows.num_rows for name, group in batch.groups.items()}
    assert distinct["context"] < distinct["item"] < batch.num_samples
    ids = distinct if lookups == "grouped" else dict.fromkeys(distinct, batch.num_samples)
    dense = distinct if layers else dict.fromkeys(distinct, batch.num_samples)
    assert seen == {
        "g_user ids": ids["user"],
        "g_item ids": ids["item"],
        "g_context ids": ids["context"],
        "g_user dense": dense["user"],
        "g_item dense": dense["item"],
        "g_user list": dense["user"],
    }


def _rows(given: KeyedJaggedTensor | Sequences | torch.Tensor) -> int:
    if isinstance(given, KeyedJaggedTensor):
        return given.stride()
    return len(given.lengths if isinstance(given, Sequences) else given)


def test_another_order_of_features_is_refused():
    batch = tensors(World(CONFIG).batch(), config=CONFIG)
    ids = batch.groups["user"].ids
    assert ids is not None
    swapped = KeyedJaggedTensor(keys=ids.keys()[::-1], values=ids.values(), lengths=ids.lengths())
    user = GroupTensors(swapped, batch.groups["user"].dense, batch.groups["user"].inverse)
    groups = {**batch.groups, "user": user}
    with pytest.raises(KeyOrderError, match=r"group user: the batch has \['history', 'user'\]"):
        new_model(CONFIG)(TrainBatch(groups, batch.labels, batch.weights, batch.scores))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_table_and_layer_learns(variant: str):
    config = make_config(model=VARIANTS[variant])
    reference = Reference(config)
    before = reference.weights()
    world = World(config)
    losses = [reference.step([tensors(batch, config=config)]) for batch in world.batches(150)]
    after = reference.weights()
    assert [key for key in before if (before[key] == after[key]).all()] == []
    assert sum(losses[-20:]) < 0.96 * sum(losses[:20])


def test_first_values_of_tables_do_not_depend_on_the_dense_layers():
    one, other = Reference(CONFIG).weights(), Reference(make_config(seed=1)).weights()
    tables = [key for key in one if ".t_" in key]
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


def test_features_that_share_a_table_have_one():
    for variant in ("shared bag", "shared sequence"):
        model = new_model(make_config(model=VARIANTS[variant]))
        assert set(tables_of(model.state_dict())) == {"t_user", "t_item", "t_tags", "t_hour"}
        assert list(model.embeddings) == ["g_user+item", "g_context"]


@pytest.mark.parametrize(
    ("tables", "error"),
    [
        ({"history": TableConfig(shares="nothing")}, r"no id feature .* at \$.trainer.model.tables.history.shares"),
        (
            {"history": TableConfig(shares="item"), "item": TableConfig(shares="tags")},
            r"'item' shares a table itself.* at \$.trainer.model.tables.history.shares",
        ),
        ({"item": TableConfig(dim=6)}, r"multiple of 4, got 6 - at \$.trainer.model.tables.item.dim"),
        ({"history": TableConfig(pooling="transformer", dim=4)}, r"3 heads do not divide 4 columns of 'history'"),
    ],
)
def test_tables_that_do_not_fit_are_refused_with_their_path(tables: dict[str, TableConfig], error: str):
    model = ModelConfig(dim=16, tables=tables, sequence=SequenceConfig(heads=3))
    with pytest.raises(ConfigError, match=error):
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
