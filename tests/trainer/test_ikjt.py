"""Batches become tensors: slices cut out, ids hashed, the same whatever form the rows had."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dedup_cache import Jagged, Rows, Slicing, decode, encode, expand, slice_group
from stream.config import TableConfig
from tests.trainer.made_batches import FEATURES, MODEL, World, make_config
from trainer.ikjt import GroupSpec, dummy_batch, group_specs, hash_ids, to_group, to_train_batch

SPECS = group_specs(FEATURES, MODEL)


def splitmix64(value: int) -> int:
    """The published generator, in plain integers."""
    mask = 2**64 - 1
    z = (value + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_hash_is_splitmix64_of_the_unsigned_id_modulo_rows():
    ids = np.array([0, 1, -1, 2**63 - 1, -(2**63), 123456789], np.int64)
    for rows in (1, 7, 100_000, 2**31):
        assert hash_ids(ids, rows=rows).tolist() == [splitmix64(int(i) & (2**64 - 1)) % rows for i in ids]


def test_hash_keeps_its_golden_values():
    ids = np.array([0, 1, 2, -1, 4_294_967_296], np.int64)
    assert splitmix64(0) == 0xE220A8397B1DCDAF  # the first output of splitmix64 seeded with 0
    assert hash_ids(ids, rows=100_000).tolist() == [7535, 22465, 48110, 43936, 56]


def test_specs_keep_the_order_of_the_config():
    assert {
        "user": GroupSpec("user", ("age",), {"user": 500, "history": 500}),
        "item": GroupSpec("item", ("price",), {"item": 500, "tags": 50}),
        "context": GroupSpec("context", (), {"hour": 500}),
    } == SPECS


def test_overlapping_slices_are_cut_out():
    rows = Rows(
        np.zeros((3, 1), np.float32),
        {"a": Jagged(np.array([5, 6, 7], np.int64), np.array([0, 1, 0], np.int32), np.array([3, 2, 0], np.int32))},
    )
    group = to_group(rows, np.array([2, 0, 1, 1], np.int32), spec=GroupSpec("g", ("d",), {"a": 2**40}))
    assert group.ids is not None
    expected = hash_ids(np.array([5, 6, 7, 6, 7], np.int64), rows=2**40)
    assert group.ids["a"].values().tolist() == expected.tolist()
    assert group.ids["a"].lengths().tolist() == [3, 2, 0]
    assert group.inverse.tolist() == [2, 0, 1, 1]


@pytest.mark.parametrize("dedup", [True, False])
def test_the_trainer_gets_the_same_tensors_from_slices_and_without(dedup: bool):
    world = World(make_config())
    batch = world.batch()
    (schema,) = (group for group in world.schema.groups if group.name == "user")
    tensors, stored = [], []
    for slicing in (Slicing.ALWAYS, Slicing.NEVER):
        written = replace(schema, slicing=(Slicing.NEVER, slicing))
        plain = slice_group(batch.groups["user"], replace(schema, slicing=(Slicing.NEVER, Slicing.NEVER)))
        made = replace(batch, groups={**batch.groups, "user": slice_group(plain, written)})
        read = decode(encode(made, world.schema), world.schema)
        stored.append(read.groups["user"].rows.lists["history"].values.size)
        tensors.append(to_train_batch(read, specs=SPECS, dedup=dedup).groups["user"])
    assert stored[0] < stored[1]
    assert tensors[0].ids is not None
    assert tensors[1].ids is not None
    assert torch.equal(tensors[0].ids.values(), tensors[1].ids.values())
    assert torch.equal(tensors[0].ids.lengths(), tensors[1].ids.lengths())
    assert torch.equal(tensors[0].inverse, tensors[1].inverse)


@pytest.mark.parametrize("dedup", [True, False])
def test_every_sample_keeps_its_values(dedup: bool):
    config = make_config()
    world = World(config)
    batch = decode(encode(world.batch(), world.schema), world.schema)
    tensors = to_train_batch(batch, specs=SPECS, dedup=dedup)
    assert tensors.labels.numpy().tobytes() == batch.labels.tobytes()
    for name, spec in SPECS.items():
        group, plain = tensors.groups[name], expand(batch.groups[name])
        assert group.ids is not None
        assert group.ids.keys() == list(spec.table_rows)
        np.testing.assert_array_equal(group.dense.numpy()[group.inverse.numpy()], plain.dense)
        for feature, rows in spec.table_rows.items():
            given = [row.tolist() for row in group.ids[feature].to_dense()]
            wanted = [hash_ids(row, rows=rows).tolist() for row in plain.lists[feature].rows()]
            assert [given[i] for i in group.inverse] == wanted
    if not dedup:
        assert all(len(group.dense) == batch.num_samples for group in tensors.groups.values())


def test_reading_a_group_leaves_the_batch_alone_and_owns_its_memory():
    world = World(make_config())
    batch = world.batch()
    tensors = to_train_batch(batch, specs=SPECS, dedup=True)
    before = batch.labels.copy()
    tensors.labels.add_(1)
    tensors.groups["user"].dense.add_(1)
    np.testing.assert_array_equal(batch.labels, before)


def test_the_dummy_is_one_sample_of_nothing():
    dummy = dummy_batch(SPECS, num_labels=2)
    assert dummy.num_samples == 1
    assert float(dummy.weights.sum()) == 0
    assert torch.isnan(dummy.scores).all()
    for name, group in dummy.groups.items():
        assert group.ids is not None
        assert group.ids.lengths().tolist() == [0] * len(SPECS[name].table_rows)


def test_a_group_without_id_features_has_no_ids():
    specs = group_specs(FEATURES[2:3], MODEL)
    group = to_group(Rows(np.ones((2, 1), np.float32), {}), np.zeros(3, np.int32), spec=specs["user"])
    assert group.ids is None
    assert group.dense.tolist() == [[1.0], [1.0]]


def test_table_rows_follow_the_config():
    model = MODEL.__class__(tables={"user": TableConfig(rows=3)}, default_table=TableConfig(rows=9))
    assert group_specs(FEATURES[:2], model)["user"].table_rows == {"user": 3, "history": 9}
