"""Transforms on distinct rows: what every sample gets is what transforming its own row would have given."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dedup_cache import Jagged, MemoryStore, Rows, decode, expand
from stream.builder import BatchBuilder, BatchLimits
from stream.columns import batch_schema
from stream.config import Config
from stream.indexer import Indexer, ReferencePolicy
from stream.records import SampleBlock
from stream.transforms import Transforms

CONFIG = msgspec.convert(
    {
        "features": [
            {"name": "price", "group": "g", "type": "float", "transforms": [{"bucketize": {"borders": [0, 1, 1]}}]},
            {"name": "seen", "group": "g", "type": "list[int]", "in_batch": False, "max_length": 6},
            {"name": "tags", "group": "g", "type": "list[int]", "max_length": 6, "transforms": [{"first_x": {"x": 2}}]},
            {"name": "rate", "group": "g", "type": "list[float]", "length": 2, "transforms": [{"logit": {}}]},
            {"name": "plain", "group": "other", "type": "int"},
        ],
        "derived": [
            {
                "name": "common",
                "inputs": ["seen", "tags"],
                "transforms": [{"id_list_transform": {"operation": "union"}}, {"sigrid_hash": {"buckets": 9}}],
            },
            {"name": "match", "inputs": ["common", "tags"], "transforms": [{"compute_score": {"kind": "jaccard"}}]},
        ],
    },
    Config,
)
TRANSFORMS = Transforms(CONFIG.features, CONFIG.derived)
SCHEMA = batch_schema(CONFIG)


def rows(given_rows: list[tuple[list[float], list[int], list[int]]]) -> Rows:
    """Of group `g`, as events give them: (price, rate.0, rate.1), seen, tags."""
    return Rows(
        np.array([numbers for numbers, _, _ in given_rows], np.float32).reshape(len(given_rows), 3),
        {
            "seen": Jagged.from_rows([seen for _, seen, _ in given_rows]),
            "tags": Jagged.from_rows([tags for _, _, tags in given_rows]),
        },
    )


def plain(made: Rows) -> list[Any]:
    lists = {name: [row.tolist() for row in column.rows()] for name, column in made.lists.items()}
    return [(made.dense[i].tolist(), {name: column[i] for name, column in lists.items()}) for i in range(made.num_rows)]


IDS = st.lists(st.integers(0, 4), max_size=6)
ROW = st.tuples(st.lists(st.sampled_from([0.0, 0.25, 1.0, 2.0]), min_size=3, max_size=3), IDS, IDS)


@settings(deadline=None)
@given(st.lists(st.tuples(ROW, st.integers(1, 3)), max_size=8))
def test_distinct_rows_give_what_all_rows_give(repeated: list[tuple[Any, int]]) -> None:
    everything = rows([row for row, times in repeated for _ in range(times)])
    made = TRANSFORMS.distinct(everything, group="g", salt=b"1")
    one_by_one = [
        plain(TRANSFORMS.rows(everything.take(np.array([i])), group="g"))[0] for i in range(everything.num_rows)
    ]
    assert plain(expand(made.group)) == one_by_one
    assert len(set(map(repr, plain(made.group.rows)))) == made.group.rows.num_rows, "equal rows are one"
    assert np.unique(made.fingerprints, axis=0).shape == (made.group.rows.num_rows, 2)


@settings(deadline=None)
@given(st.lists(ROW, min_size=2, max_size=8))
def test_a_row_has_one_fingerprint_whatever_stands_beside_it(given_rows: list[Any]) -> None:
    """Other batches and workers know it again by that, also where it was made of another row."""
    everything = rows(given_rows)
    together = TRANSFORMS.distinct(everything, group="g", salt=b"1")
    known: dict[str, list[int]] = {}
    for i in range(everything.num_rows):
        alone = TRANSFORMS.distinct(everything.take(np.array([i])), group="g", salt=b"1")
        (print_,) = alone.fingerprints.tolist()
        assert together.fingerprints[together.group.inverse[i]].tolist() == print_
        assert known.setdefault(repr(plain(alone.group.rows)), print_) == print_


def test_a_row_in_the_order_of_the_schema() -> None:
    made = TRANSFORMS.rows(rows([([1.0, 0.5, 0.5], [7, 8, 7], [8, 9, 10])]), group="g")
    (group,) = [group for group in SCHEMA.groups if group.name == "g"]
    assert (group.dense, group.lists) == (("rate.0", "rate.1", "match"), ("price", "tags", "common"))
    assert tuple(made.lists) == group.lists
    assert made.dense.shape == (1, 3)
    assert [made.lists[name].rows()[0].tolist() for name in ("price", "tags")] == [[2], [8, 9]]
    assert made.lists["common"].lengths.tolist() == [3]


def test_rows_without_samples_and_groups_without_transforms() -> None:
    assert TRANSFORMS.rows(rows([]), group="g").num_rows == 0
    assert TRANSFORMS.distinct(rows([]), group="g", salt=b"").group.num_samples == 0
    untouched = Rows(np.empty((2, 0), np.float32), {"plain": Jagged.from_rows([[1], [1]])})
    assert TRANSFORMS.rows(untouched, group="other") is untouched
    assert not TRANSFORMS.changes("other")


def block(given_rows: list[tuple[list[float], list[int], list[int]]]) -> SampleBlock:
    count = len(given_rows)
    other = Rows(np.empty((count, 0), np.float32), {"plain": Jagged.from_rows([[1]] * count)})
    return SampleBlock(
        offsets=np.arange(count),
        event_times_ms=np.arange(count),
        append_times_ms=np.arange(count),
        labels=np.zeros((count, 1), np.float32),
        weights=np.ones(count, np.float32),
        scores=np.full((count, 1), np.nan, np.float32),
        groups={"g": rows(given_rows), "other": other},
    )


def builder(*, config: Config = CONFIG, max_bytes: int = 1 << 20) -> BatchBuilder:
    schema = batch_schema(config)
    return BatchBuilder(
        schema,
        topic="t",
        partition=0,
        seq=0,
        limits=BatchLimits(4, max_bytes),
        indexer=Indexer(schema, store=MemoryStore(), policy=ReferencePolicy(0, 10**6)),
        transforms=Transforms(config.features, config.derived),
    )


def test_a_batch_holds_the_transformed_rows_once() -> None:
    """Two rows differ in what `first_x` cuts off: one row of the batch, one value that is shipped."""
    row = ([2.0, 0.5, 0.5], [1, 2], [3, 4, 5])
    (built,) = builder().add(block([row, (row[0], row[1], [3, 4, 6]), row, row]), now_ms=0).batches
    batch = decode(built.payload, SCHEMA)
    assert batch.groups["g"].rows.num_rows == 1
    assert batch.groups["g"].inverse.tolist() == [0] * 4
    assert [value.group for value in built.values] == ["g", "other"]


def test_a_sample_is_too_large_by_what_its_transforms_make_of_it() -> None:
    """The product of two lists of 200 ids is 320,000 bytes; the lists themselves would fit."""
    config = msgspec.convert(
        {
            "features": [
                {"name": name, "group": "g", "type": "list[int]", "max_length": 300, "in_batch": keep}
                for name, keep in (("seen", False), ("tags", True))
            ]
            + [{"name": "plain", "group": "other"}],
            "derived": [
                {"name": "pairs", "inputs": ["seen", "tags"], "transforms": [{"cartesian": {"max_pairs": 65536}}]}
            ],
        },
        Config,
    )
    made = builder(config=config, max_bytes=100_000)
    many = list(range(200))
    samples = block([([0.0] * 3, [1], [1]), ([0.0] * 3, many, many), ([0.0] * 3, many, [1])])
    for name, group in samples.groups.items():
        samples.groups[name] = Rows(np.empty((3, 0), np.float32), group.lists)
    added = made.add(samples, now_ms=0)
    assert [(large.offset, large.size > 320_000) for large in added.too_large] == [(1, True)]
    assert sum(built.num_samples for built in made.flush(now_ms=0)) == 2
