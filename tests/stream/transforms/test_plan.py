"""What a config with transforms makes of the batches, and what it is told when it does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dedup_cache import GroupSchema
from stream.columns import batch_schema
from stream.config import Config, ConfigError, load, to_yaml
from stream.journal import Parameters
from stream.transforms import Ids, Numbers, plan

FEATURES: list[dict[str, Any]] = [
    {"name": "price", "group": "item", "type": "float"},
    {"name": "tags", "group": "item", "type": "list[int]", "max_length": 9},
    {"name": "taste", "group": "user", "type": "list[float]", "length": 3},
    {"name": "history", "group": "user", "type": "list[int]", "max_length": 20},
]


def config(folder: Path, *, derived: list[dict[str, Any]] = [], **transforms: list[Any]) -> Config:  # noqa: B006
    """FEATURES with transforms by name, through a file."""
    features = [{**f, "transforms": transforms.get(f["name"], [])} for f in FEATURES]
    path = folder / "recd.yaml"
    path.write_text(yaml.safe_dump({"features": features, "derived": derived}))
    return load(path)


def test_kinds_and_places_follow_the_transforms(tmp_path: Path) -> None:
    made = config(
        tmp_path,
        price=[{"bucketize": {"borders": [1, 2]}}],
        tags=[{"first_x": {"x": 4}}, {"onehot": {"size": 2}}],
        history=[{"sigrid_hash": {"buckets": 100}}],
        derived=[
            {"name": "pairs", "inputs": ["history"], "transforms": [{"ngram": {"n": 2}}], "in_batch": False},
            {
                "name": "match",
                "inputs": ["pairs", "history"],
                "transforms": [{"compute_score": {"kind": "jaccard"}}],
            },
        ],
    )
    assert batch_schema(made).groups == (
        GroupSchema("item", ("tags.0", "tags.1"), ("price",)),
        GroupSchema("user", ("taste.0", "taste.1", "taste.2", "match"), ("history",)),
    )
    kinds = {feature.name: feature.kind for feature in plan(made.features, made.derived)}
    assert kinds == {
        "price": Ids(1, 3),
        "tags": Numbers(2),
        "taste": Numbers(3),
        "history": Ids(20, 100),
        "pairs": Ids(19),
        "match": Numbers(1),
    }
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(made))
    assert load(again) == made


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            {"price": [{"logit": {}}, {"sigrid_hash": {"buckets": 0}}]},
            r"Expected int >= 1 - at \$\.features\.price\.transforms\[1\]\.sigrid_hash\.buckets",
        ),
        (
            {"price": [{"logit": {}}, {"sigrid_hash": {"buckets": 5}}]},
            r"^sigrid_hash takes ids; got a number - at \$\.features\.price\.transforms\[1\]\.sigrid_hash$",
        ),
        ({"taste": [{"first_x": {"x": 1}}]}, r"got 3 dense columns - at \$\.features\.taste\.transforms\[0\]\.first_x"),
        ({"tags": [{"box_cox": {"lambda": 1}}]}, r"box_cox takes numbers; got a list of ids"),
        ({"tags": [{"clamp": {"low": 0, "high": 1.5}}]}, r"clamp needs integers as the limits of ids, got 0 and 1\.5"),
        ({"tags": [{"sigridhash": {}}]}, r"unknown field sigridhash - at \$\.features\.tags\.transforms\[0\]"),
        ({"tags": [{"cartesian": {}}]}, r"cartesian takes ids, ids; got a list of ids - at"),
        (
            {"derived": [{"name": "x", "inputs": ["tags", "history"], "transforms": [{"cartesian": {}}]}]},
            r"'tags' is of group 'item' and 'history' of group 'user'; .* - at \$\.derived\.x\.inputs\[1\]",
        ),
        (
            {"derived": [{"name": "x", "inputs": ["tag"], "transforms": [{"ngram": {"n": 2}}]}]},
            r"no feature 'tag' stands before this one, there are price, .* - at \$\.derived\.x\.inputs\[0\]",
        ),
        ({"derived": [{"name": "x", "inputs": ["x"]}]}, r"no feature 'x' stands before this one"),
        ({"derived": [{"name": "x", "inputs": []}]}, r"length >= 1 - at \$\.derived\[0\]\.inputs"),
        ({"derived": [{"name": "tags", "inputs": ["price"]}]}, r"feature 'tags' is named twice - at \$\.derived\.tags"),
        (
            {"derived": [{"name": "x", "inputs": ["tags", "tags"]}]},
            r"2 inputs need an operation that makes one of them - at \$\.derived\.x\.transforms",
        ),
        (
            {"derived": [{"name": "x", "inputs": ["tags"], "in_batch": False}]},
            r"neither a batch nor a feature reads it - at \$\.derived\.x\.in_batch",
        ),
        (
            {"derived": [{"name": "taste.1", "inputs": ["tags"]}]},
            r"'taste' has a column 'taste\.1' too - at \$\.derived\.taste\.1\.name",
        ),
        (
            {
                "derived": [
                    {
                        "name": "x",
                        "inputs": ["history", "history", "taste"],
                        "transforms": [{"compute_score": {"kind": "score_sum"}}],
                    }
                ]
            },
            r"compute_score 3 dense columns cannot score a list of up to 20 ids - at",
        ),
        (
            {"derived": [{"name": "x", "inputs": ["tags"], "transforms": [{"ngram": {"n": 1}}]}]},
            r"Expected int >= 2 - at \$\.derived\.x\.transforms\[0\]\.ngram\.n",
        ),
    ],
)
def test_what_does_not_fit_is_named_with_its_path(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError) as refused:
        config(tmp_path, **change)
    assert refused.match(complaint)


def test_tables_may_be_named_after_features_as_the_batches_hold_them(tmp_path: Path) -> None:
    made = config(tmp_path, price=[{"bucketize": {"borders": [1]}}])
    path = tmp_path / "recd.yaml"
    path.write_text(to_yaml(made))
    assert load(path, overrides=("trainer.model.tables={price: {rows: 2}}",))
    with pytest.raises(ConfigError, match="no id feature has this name"):
        load(path, overrides=("trainer.model.tables={taste: {rows: 2}}",))


def test_other_transforms_give_other_fingerprints_and_another_schema(tmp_path: Path) -> None:
    def identity(made: Config) -> tuple[str, bytes, str]:
        schema = batch_schema(made)
        return schema.digest(), schema.group_salt(schema.groups[0]), Parameters.of(made).schema

    made = [
        config(tmp_path),
        config(tmp_path, tags=[{"sigrid_hash": {"buckets": 10}}]),
        config(tmp_path, tags=[{"sigrid_hash": {"buckets": 10, "salt": 1}}]),
        config(tmp_path, derived=[{"name": "x", "inputs": ["tags"], "transforms": [{"ngram": {"n": 2}}]}]),
        config(tmp_path, derived=[{"name": "x", "inputs": ["tags"], "transforms": [{"ngram": {"n": 3}}]}]),
    ]
    for values in zip(*map(identity, made), strict=True):
        assert len(set(values)) == len(made)
