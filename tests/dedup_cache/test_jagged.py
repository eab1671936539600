"""Columns of slices against lists of lists."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dedup_cache import Jagged, RowError, Rows
from tests.dedup_cache.rows_strategies import USER, jaggeds, row_tuples, rows_of


def plain(column: Jagged) -> list[list[int]]:
    return [row.tolist() for row in column.rows()]


@settings(deadline=None)
@given(st.data(), st.integers(0, 8))
def test_take_and_select_are_list_indexing(data: st.DataObject, num_rows: int) -> None:
    column = data.draw(jaggeds(num_rows))
    picks = np.array(data.draw(st.lists(st.integers(0, num_rows - 1))) if num_rows else [], np.int64)
    wanted = [plain(column)[pick] for pick in picks]
    taken, selected = column.take(picks), column.select(picks)
    assert plain(taken) == wanted
    assert plain(selected) == wanted
    assert taken.is_contiguous()
    assert selected.values.size <= min(column.values.size, sum(map(len, wanted)))


@settings(deadline=None)
@given(st.data(), st.integers(0, 8))
def test_trim_keeps_rows_and_drops_what_no_row_uses(data: st.DataObject, num_rows: int) -> None:
    column = data.draw(jaggeds(num_rows))
    used = {at for start, n in zip(column.starts, column.lengths, strict=True) for at in range(start, start + n)}
    trimmed = column.trim()
    assert plain(trimmed) == plain(column)
    assert trimmed.values.size == len(used)
    values, lengths = column.compact()
    assert plain(Jagged.from_lengths(values, lengths)) == plain(column)


@settings(deadline=None)
@given(st.data(), st.lists(st.integers(0, 4), min_size=1, max_size=4))
def test_concat_is_list_addition_and_keeps_slices(data: st.DataObject, sizes: list[int]) -> None:
    parts = [data.draw(rows_of(USER, size)) for size in sizes]
    whole = Rows.concat(parts)
    assert row_tuples(whole) == [row for part in parts for row in row_tuples(part)]
    assert whole.lists["history"].values.size == sum(part.lists["history"].values.size for part in parts)


def test_sliding_history_stays_one_list() -> None:
    values = np.arange(100)
    column = Jagged(values, np.arange(50, dtype=np.int32), np.full(50, 50, np.int32))
    assert column.select(np.arange(10, 30)).values.size == 69


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(RowError, match="add up to 3, but there are 2 values"):
        Jagged.from_lengths(np.array([1, 2]), np.array([3]))
    with pytest.raises(RowError, match="negative"):
        Jagged.from_lengths(np.array([1]), np.array([2, -1]))
    with pytest.raises(RowError, match="nothing"):
        Rows.concat([])
    one = Rows(np.zeros((1, 0), np.float32), {})
    with pytest.raises(RowError, match="different"):
        Rows.concat([one, Rows(np.zeros((1, 2), np.float32), {})])
