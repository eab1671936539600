"""Deduplication against a dictionary."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dedup_cache import Jagged, RowError, Rows, check_bits, deduplicate, distinct, expand, refer, resolve
from dedup_cache.group_checks import check_group
from tests.dedup_cache.rows_strategies import CONTEXT, ITEM, SALT, USER, row_tuples, rows_of


@settings(deadline=None)
@given(st.data(), st.sampled_from([USER, ITEM, CONTEXT]), st.integers(0, 10))
def test_expand_gives_the_rows_back(data: st.DataObject, schema: object, num_rows: int) -> None:
    rows = data.draw(rows_of(schema, num_rows))
    made = deduplicate(rows, salt=SALT)
    assert row_tuples(expand(made.group)) == row_tuples(rows)
    places: dict[object, int] = {}
    wanted = [places.setdefault(row, len(places)) for row in row_tuples(rows)]
    assert made.group.inverse.tolist() == wanted
    assert row_tuples(made.group.rows) == list(places)
    assert made.fingerprints.shape == (len(places), 2)
    check_group(made.group, "group")
    for name, column in made.group.rows.lists.items():
        assert column.values.size <= rows.lists[name].values.size


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=30))
def test_distinct_tells_keys_with_one_equal_half_apart(keys: list[tuple[int, int]]) -> None:
    first, inverse = distinct(np.array(keys, np.uint64).reshape(-1, 2))
    places: dict[tuple[int, int], int] = {}
    assert inverse.tolist() == [places.setdefault(key, len(places)) for key in keys]
    assert first.tolist() == [keys.index(key) for key in places]


def test_slices_are_not_blown_up() -> None:
    """Fifty growing windows over one history cost one id per event."""
    windows = np.arange(50, dtype=np.int32)
    column = Jagged(np.arange(100), np.repeat(windows, 2), np.full(100, 50, np.int32))
    group = deduplicate(Rows(np.zeros((100, 0), np.float32), {"history": column}), salt=SALT).group
    assert group.rows.num_rows == 50
    assert group.rows.lists["history"].values.size == 99


@settings(deadline=None)
@given(st.data(), st.integers(0, 8))
def test_refer_then_resolve_is_the_same_group(data: st.DataObject, num_rows: int) -> None:
    made = deduplicate(data.draw(rows_of(USER, num_rows)), salt=SALT)
    size = made.group.rows.num_rows
    inline = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)), np.bool_)
    ids = 10 + np.arange(size, dtype=np.int64)
    short = refer(made.group, ids=ids, checks=check_bits(made.fingerprints), inline=inline)
    check_group(short, "group")
    missing = short.missing()
    assert missing.tolist() == np.flatnonzero(~inline).tolist()
    if missing.size:
        with pytest.raises(RowError, match="resolve"):
            expand(short)
    order = np.array(data.draw(st.permutations(missing.tolist())), np.int64)
    whole = resolve(short, made.group.rows.take(order), order)
    assert row_tuples(expand(whole)) == row_tuples(expand(made.group))
    assert whole.ids is not None
    assert whole.ids.tolist() == ids.tolist()


def test_resolve_refuses_what_does_not_fit() -> None:
    rows = Rows(np.zeros((2, 0), np.float32), {"history": Jagged.from_rows([[1], [2]])})
    group = deduplicate(rows, salt=SALT).group
    with pytest.raises(RowError, match="1 rows fetched for 2 places"):
        resolve(group, rows.take(np.array([0])), np.array([0, 1]))
    with pytest.raises(RowError, match="already"):
        resolve(group, rows, np.array([0, 1]))
