"""RecD's figure: three samples, a plain feature, a group of one and a group of two."""

import numpy as np

from dedup_cache import Jagged, Rows, batch_stats, decode, deduplicate, encode, expand
from dedup_cache.schema import BatchSchema, GroupSchema
from tests.dedup_cache.rows_strategies import SALT, batch_of

PLAIN = {
    "a": [[1, 2], [], [1, 2]],
    "b": [[3, 4, 5], [4, 5, 6], [3, 4, 5]],
    "c": [[7, 8], [7, 8], [10]],
    "d": [[9], [9], [11]],
}


def rows(*names: str) -> Rows:
    return Rows(np.zeros((3, 0), np.float32), {name: Jagged.from_rows(PLAIN[name]) for name in names})


def assert_column(column: Jagged, values: list[int], lengths: list[int]) -> None:
    got_values, got_lengths = column.compact()
    assert (got_values.tolist(), got_lengths.tolist()) == (values, lengths)


def test_plain_feature() -> None:
    assert_column(rows("a").lists["a"], [1, 2, 1, 2], [2, 0, 2])


def test_group_of_one() -> None:
    group = deduplicate(rows("b"), salt=SALT).group
    assert_column(group.rows.lists["b"], [3, 4, 5, 4, 5, 6], [3, 3])
    assert group.inverse.tolist() == [0, 1, 0]


def test_group_of_two_shares_one_inverse() -> None:
    group = deduplicate(rows("c", "d"), salt=SALT).group
    assert group.inverse.tolist() == [0, 0, 1]
    assert_column(group.rows.lists["c"], [7, 8, 10], [2, 1])
    assert_column(group.rows.lists["d"], [9, 11], [1, 1])


def test_through_bytes_and_back_to_plain() -> None:
    schema = BatchSchema(tuple(GroupSchema(n, (), tuple(n)) for n in ("a", "b", "cd")), ("click",), "v1")
    groups = {name: deduplicate(rows(*name), salt=SALT).group for name in ("a", "b", "cd")}
    batch = decode(encode(batch_of(groups, size=3, schema=schema), schema), schema)
    for name in ("a", "b", "cd"):
        plain = expand(batch.groups[name])
        assert {key: [row.tolist() for row in column.rows()] for key, column in plain.lists.items()} == {
            key: PLAIN[key] for key in name
        }
    stats = batch_stats(batch)
    assert (stats.rows_in, stats.rows_distinct, stats.ids_in, stats.ids_stored) == (9, 6, 4 + 9 + 8, 2 + 6 + 5)
