"""Feature columns, groups and the schema of batches."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from dedup_cache import BatchSchema, GroupSchema, Jagged, SchemaError, Slicing
from stream.columns import GroupAssembler, ImpressionReader, batch_schema
from stream.config import Config, DedupConfig, EventsConfig, FeatureConfig, LabelConfig
from stream.event_schema import EventSchema
from stream.hashing import hash_strings

FEATURES = (
    FeatureConfig(name="country", group="user", type="string"),
    FeatureConfig(name="price", group="item", type="float", default=2.5),
    FeatureConfig(name="seen", group="user", source="session.items"),
    FeatureConfig(name="number", group="item"),
    FeatureConfig(name="vector", group="item", type="list[float]", length=2, default=-1.0),
    FeatureConfig(name="tags", group="item", type="list[string]", max_length=2),
    FeatureConfig(name="shown", group="item", source="session.impressions"),
)
CONFIG = Config(features=FEATURES)


def test_the_batch_schema_keeps_the_order_of_the_config() -> None:
    schema = batch_schema(CONFIG)
    assert schema.groups == (
        GroupSchema("user", (), ("country", "seen")),
        GroupSchema("item", ("price", "vector.0", "vector.1", "shown"), ("number", "tags")),
    )
    assert schema.labels == ("click",)


@pytest.mark.parametrize(
    "changed",
    [
        Config(features=FEATURES, dedup=DedupConfig(salt="2")),
        Config(features=(*FEATURES[:-2], msgspec.structs.replace(FEATURES[-2], max_length=3), FEATURES[-1])),
        Config(features=(FEATURES[0], msgspec.structs.replace(FEATURES[1], default=0.0), *FEATURES[2:])),
        Config(features=(msgspec.structs.replace(FEATURES[0], field="land"), *FEATURES[1:])),
    ],
)
def test_whatever_changes_values_changes_the_salt(changed: Config) -> None:
    assert batch_schema(changed).salt != batch_schema(CONFIG).salt
    assert batch_schema(changed).groups == batch_schema(CONFIG).groups


def test_the_form_in_which_lists_are_stored_is_no_part_of_the_schema() -> None:
    sliced = tuple(msgspec.structs.replace(feature, slices="never") for feature in FEATURES)
    one, other = batch_schema(CONFIG), batch_schema(Config(features=sliced))
    assert one.digest() == other.digest()
    assert [g.slicing for g in other.groups] == [(Slicing.NEVER,) * len(g.lists) for g in one.groups]


def test_no_features_make_no_groups() -> None:
    assert batch_schema(Config()) == BatchSchema((), ("click",), batch_schema(Config()).salt)


def test_names_that_a_batch_cannot_carry_are_refused() -> None:
    with pytest.raises(SchemaError):
        batch_schema(msgspec.structs.replace(CONFIG, labels=(LabelConfig(name="", engagements=()),)))


def test_impressions_become_groups() -> None:
    schema = EventSchema(EventsConfig(), features=FEATURES, labels=())
    base = {"event_id": 1, "user_id": 1, "event_time_ms": 1, "type": "impression", "item_id": 1}
    bodies = [
        base | {"country": "DE", "price": 1, "number": 2**63 - 1, "vector": [1, 2], "tags": ["a", "b", "c"]},
        base | {"country": None, "number": None, "tags": []},
        base | {"country": "", "price": -0.5, "vector": [0.1, 3e38], "number": -5, "tags": ["c"]},
    ]
    decoded = [schema.decoder.decode(msgspec.json.encode(body)) for body in bodies]
    columns = ImpressionReader(schema, features=FEATURES, labels=()).read(decoded)
    groups = GroupAssembler(FEATURES).assemble(
        columns,
        dense={"shown": np.array([7, 8, 9], np.float32)},
        lists={"seen": Jagged(np.array([4, 5]), np.array([0, 0, 1], np.int32), np.array([0, 2, 1], np.int32))},
    )
    assert list(groups) == ["user", "item"]
    a, b, c, empty, land = hash_strings(["a", "b", "c", "", "DE"]).tolist()
    assert [row.tolist() for row in groups["user"].lists["country"].rows()] == [[land], [], [empty]]
    assert [row.tolist() for row in groups["user"].lists["seen"].rows()] == [[], [4, 5], [5]]
    assert [row.tolist() for row in groups["item"].lists["number"].rows()] == [[2**63 - 1], [], [-5]]
    assert [row.tolist() for row in groups["item"].lists["tags"].rows()] == [[b, c], [], [c]]
    np.testing.assert_array_equal(
        groups["item"].dense,
        np.array([[1, 1, 2, 7], [2.5, -1, -1, 8], [-0.5, 0.1, 3e38, 9]], np.float32),
    )
    assert groups["user"].dense.shape == (3, 0)
    assert a not in (b, c)


def test_string_hashes_are_xxh3_64_of_utf_8() -> None:
    assert hash_strings(["", "böb"]).view(np.uint64).tolist() == [0x2D06800538D394C2, 5063793918448113593]
