"""A request meets the very transforms that training met: no skew between the two."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from serving.model import ServedModel
from stream.config import Config
from tests.serving.served_world import CONFIG, new_model, published, request, trained_batch, trainer_scores
from trainer.ikjt import group_specs

TRANSFORMS = {
    "user": [{"sigrid_hash": {"buckets": 40, "salt": 3}}],
    "age": [{"bucketize": {"borders": [18, 30, 30, 41, 65]}}],
    "history": [{"first_x": {"x": 2}}],
    "taste": [{"clamp": {"low": -1, "high": 1}}, {"box_cox": {"lambda": 0.5, "shift": 2}}],
    "price": [{"logit": {"eps": 0.01}}],
    "tags": [{"map_id": {"table": [["news", 1], ["sport", 2]], "default": 0}}, {"onehot": {"size": 3}}],
    "seen": [{"positive_modulus": {"modulus": 11}}],
}
DERIVED = [
    {"name": "steps", "inputs": ["history"], "transforms": [{"ngram": {"n": 2}}, {"sigrid_hash": {"buckets": 30}}]},
    {"name": "who_what", "inputs": ["user", "history"], "transforms": [{"cartesian": {}}]},
    {"name": "places", "inputs": ["seen"], "transforms": [{"enumerate": {}}]},
]


def transformed() -> Config:
    tree = msgspec.to_builtins(CONFIG, str_keys=True)
    for feature in tree["features"]:
        feature["transforms"] = TRANSFORMS.get(feature["name"], [])
    return msgspec.convert({**tree, "derived": DERIVED}, Config)


def test_a_request_is_transformed_as_its_sample_was(tmp_path: Path) -> None:
    config = transformed()
    model = new_model(4, config)
    version = published(model, tmp_path, config)
    answer = ServedModel(version).score(msgspec.json.encode(request()))
    expected = trainer_scores(model, trained_batch(config), config)
    for label, scores in expected.items():
        assert len(set(scores)) > 3
        np.testing.assert_allclose(answer.scores[label], scores[2:], rtol=0, atol=1e-6)


def test_tables_are_as_large_as_the_transforms_need() -> None:
    """Ids that a transform keeps below the table's size are its rows as they are; all others are hashed."""
    config = transformed()
    specs = group_specs(config.features, config.trainer.model, derived=config.derived)
    assert specs["user"].table_rows == {"user": 40, "age": 6, "history": 50, "steps": 30, "who_what": 50}
    assert specs["user"].direct == {"user", "age", "steps"}
    assert specs["session"].table_rows == {"seen": 11, "places": 50}
    assert specs["item"].dense == ("price", "tags.0", "tags.1", "tags.2")
    small = msgspec.convert({"tables": {"user": {"rows": 39}, "age": {"rows": 6}}}, type(config.trainer.model))
    spec = group_specs(config.features, small, derived=config.derived)["user"]
    assert (spec.table_rows["user"], spec.table_rows["age"]) == (39, 6)
    assert spec.direct == {"age", "steps"}
