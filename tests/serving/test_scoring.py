"""A request is scored as training scores the same sample; what does not fit is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from serving.errors import RequestError, ScoringError
from serving.model import ServedModel
from stream.hashing import hash_strings
from tests.serving.served_world import ITEMS, expected_scores, new_model, published, request, snapshot
from trainer.versions import TableShard, VersionError, VersionStore


def body(value: Any) -> bytes:
    return msgspec.json.encode(value)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    return ServedModel(published(new_model(1), tmp_path_factory.mktemp("versions")))


def test_scores_are_those_of_the_trainer(tmp_path: Path) -> None:
    version = published(new_model(1), tmp_path)
    answer = ServedModel(version).score(body(request()))
    expected = expected_scores(version)
    assert answer.version == 1
    assert list(answer.scores) == ["click", "like"]
    for label, scores in expected.items():
        assert len(set(scores)) == 3
        np.testing.assert_allclose(answer.scores[label], scores, rtol=0, atol=1e-6)


def test_a_missing_value_counts_as_it_does_in_training(tmp_path: Path) -> None:
    """The second item has no price, and null says the same, also against a shared value."""
    version = published(new_model(2), tmp_path)
    asked = request()
    asked["candidates"][1]["price"] = None
    asked["features"]["price"] = 12.5
    for i in (0, 3):
        del asked["candidates"][i]["price"]
    answer = ServedModel(version).score(body(asked))
    for label, scores in expected_scores(version).items():
        np.testing.assert_allclose(answer.scores[label], scores, rtol=0, atol=1e-6)


def test_each_row_is_computed_once(served: ServedModel) -> None:
    asked = request()
    answer = served.score(body(asked))
    assert answer.candidates == 4
    assert answer.rows == 3 * 4
    assert answer.distinct == 1 + 1 + 3, "one user row, one session row, three distinct items"
    asked["candidates"][2]["age"] = 20.0
    assert served.score(body(asked)).distinct == 2 + 1 + 3


def test_what_a_candidate_says_goes_before_what_is_shared(served: ServedModel) -> None:
    asked = request()
    everything = {"candidates": [{**asked["features"], **candidate} for candidate in asked["candidates"]]}
    spread = served.score(body(everything))
    shared = served.score(body(asked))
    for label in ("click", "like"):
        np.testing.assert_allclose(spread.scores[label], shared.scores[label], rtol=0, atol=1e-6)
    assert spread.distinct == shared.distinct
    asked["features"].update(item=ITEMS[0]["item_id"], price=99.0)
    overridden = served.score(body(asked))
    np.testing.assert_allclose(overridden.scores["click"][2], shared.scores["click"][2], rtol=0, atol=1e-6)


def test_items_of_a_session_are_of_the_kind_that_events_have(served: ServedModel, tmp_path: Path) -> None:
    """`item_id` is read as an int feature, so an event with a string there goes to quarantine: nor may a request."""
    asked = request()
    as_numbers = served.score(body(asked))
    asked["features"]["seen"] = ["4"]
    with pytest.raises(RequestError, match=r"Expected int, got str - at \$\.features\.seen\[0\]"):
        served.score(body(asked))
    made = snapshot(new_model(1))
    store = VersionStore(str(tmp_path), keep=10)
    either = ServedModel(store.load(store.publish(replace(made, config={**made.config, "items": "id"}))))
    asked["features"]["seen"] = ["a", "b"]
    assert either.score(body(asked)).scores != as_numbers.scores
    asked["features"]["seen"] = ["dropped", 1, *(item["item_id"] for item in ITEMS[:2])]
    assert either.score(body(asked)).scores == as_numbers.scores, "only the last max_length count"
    texts = ServedModel(store.load(store.publish(replace(made, config={**made.config, "items": "string"}))))
    with pytest.raises(RequestError, match=r"Expected str, got int - at \$\.features\.seen\[1\]"):
        texts.score(body(asked))
    hashed = hash_strings(["a", "b"]).tolist()
    asked["features"]["seen"] = ["a", "b"]
    scores = texts.score(body(asked)).scores
    asked["features"]["seen"] = hashed
    assert served.score(body(asked)).scores == scores


def test_no_candidates_no_scores(served: ServedModel) -> None:
    answer = served.score(b'{"candidates": []}')
    assert (answer.scores, answer.candidates, answer.rows) == ({"click": [], "like": []}, 0, 0)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"candidates": [{"item": 1}, {"item": "x"}]}, r"Expected int \| null, got str - at \$\.candidates\[1\]\.item"),
        ({"candidates": [{"item": 2**63}]}, r"\$\.candidates\[0\]\.item"),
        ({"candidates": [{"item": 1, "prize": 1}]}, r"unknown field prize - at \$\.candidates\[0\]"),
        ({"candidates": [{"item": 1, "tags": ["a", 3]}]}, r"got int - at \$\.candidates\[0\]\.tags\[1\]"),
        ({"candidates": [{"item": 1, "price": 1e39}]}, r"\$\.candidates\[0\]\.price"),
        ({"candidates": [{"item": 1}, {"price": 1}]}, r"item is required, but missing - at \$\.candidates\[1\]\.item"),
        ({"candidates": [{}]}, r"item is required, but missing - at \$\.features\.item"),
        ({"features": {"age": 3}}, r"user is required, but missing - at \$\.features\.user"),
        ({"features": {"user": 5}}, r"Expected str \| null, got int - at \$\.features\.user"),
        ({"features": {"user": "a", "taste": [1.0]}}, r"length >= 2 - at \$\.features\.taste"),
        ({"features": {"user": "a", "seen": [1.5]}}, r"\$\.features\.seen\[0\]"),
        ({"candidates": None}, r"Expected array, got null - at \$\.candidates"),
        ({"candidates": [{"item": 1}] * 10_001}, r"length <= 10000 - at \$\.candidates"),
        ({"more": 1}, "unknown field more"),
    ],
)
def test_what_does_not_fit_is_named_with_its_path(served: ServedModel, change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        served.score(body(request() | change))


@pytest.mark.parametrize(
    "raw", [b"", b"[", b"\xff", b"[]", b'{"features": {}}', b"{" * 100_000, b"[" * 100_000, b'{"candidates": "x"}']
)
def test_what_is_no_request_is_refused(served: ServedModel, raw: bytes) -> None:
    with pytest.raises(RequestError):
        served.score(raw)


def test_a_lone_surrogate_is_refused(served: ServedModel) -> None:
    with pytest.raises(RequestError):
        served.score(b'{"features": {"user": "\\ud800"}, "candidates": [{"item": 1}]}')


def test_a_version_that_makes_no_model_is_refused(tmp_path: Path) -> None:
    store = VersionStore(str(tmp_path), keep=10)
    good = snapshot(new_model(1))
    wrong_type = {**good.config, "model": {**good.config["model"], "dim": "x"}}
    other_model = {**good.config, "model": {**good.config["model"], "over_arch": [5]}}
    no_features = {**good.config, "features": []}
    for config, complaint in (
        (wrong_type, r"config: Expected int, got str - at \$\.model\.dim"),
        (other_model, "does not fit: .*over_arch"),
        (no_features, "at least one feature"),
        ({}, "missing required field features"),
    ):
        version = store.publish(replace(good, config=config))
        with pytest.raises(VersionError, match=f"version {version}: .*{complaint}"):
            ServedModel(store.load(version))


def test_a_model_that_gives_no_number_is_refused_or_says_so(tmp_path: Path) -> None:
    store = VersionStore(str(tmp_path), keep=10)
    good = snapshot(new_model(1))
    bias = next(key for key in good.dense if key.startswith("heads.") and key.endswith(".bias"))
    broken = replace(good, dense={**good.dense, bias: np.full_like(good.dense[bias], np.nan)})
    with pytest.raises(VersionError, match="not finite"):
        ServedModel(store.load(store.publish(broken)))
    shards = [TableShard(s.table, s.rows, s.dim, 0, 0, np.full_like(s.weights, np.inf)) for s in good.shards]
    served = ServedModel(store.load(store.publish(replace(good, shards=shards))))
    with pytest.raises(ScoringError, match="not finite"):
        served.score(body(request()))
