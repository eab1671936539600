"""Slices: the same rows whichever form they are stored in, and as few ids as lists that slide need."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dedup_cache import BatchError, Jagged, Rows, Slicing, decode, deduplicate, encode, expand, slice_group
from dedup_cache.ikjt import Group
from dedup_cache.schema import BatchSchema, GroupSchema
from dedup_cache.slices import overlapped
from tests.dedup_cache.rows_strategies import SALT, batch_of, row_tuples

SCHEMA = BatchSchema((GroupSchema("g", ("x",), ("a", "b")),), ("click",))


def only(column: Jagged) -> Jagged:
    (sliced,) = overlapped([column])
    return sliced


def slice_column(column: Jagged, slicing: Slicing = Slicing.AUTO) -> Jagged:
    rows = Rows(np.zeros((column.num_rows, 0), np.float32), {"a": column})
    group = Group(rows, np.arange(column.num_rows, dtype=np.int32))
    return slice_group(group, GroupSchema("g", (), ("a",), (slicing,))).rows.lists["a"]


@st.composite
def sliding(draw: st.DrawFn) -> list[list[int]]:
    """Rows that each come from the one before: grown or cut at either end, slid, repeated, or drawn anew."""
    ids = st.integers(0, draw(st.sampled_from([1, 3, 10**12])))
    rows: list[list[int]] = []
    row: list[int] = []
    for _ in range(draw(st.integers(0, 9))):
        moves: list[Callable[[list[int]], list[int]]] = [
            lambda old: old,
            lambda old: [*old, draw(ids)],
            lambda old: [draw(ids), *old],
            lambda old: [*old[1:], draw(ids)],
            lambda old: [draw(ids), *old[:-1]],
            lambda old: old[draw(st.integers(0, 3)) :],
            lambda old: old[: len(old) - draw(st.integers(0, 3))],
            lambda _: draw(st.lists(ids, max_size=6)),
        ]
        row = draw(st.sampled_from(moves))(row)
        rows.append(row)
    return rows


@settings(deadline=None, max_examples=300)
@given(sliding(), sliding(), st.sampled_from(Slicing), st.sampled_from(Slicing))
def test_the_same_samples_come_out_of_every_form(
    a: list[list[int]], b: list[list[int]], on_a: Slicing, on_b: Slicing
) -> None:
    size = min(len(a), len(b))
    plain = Rows(
        np.arange(size, dtype=np.float32)[:, None] // 2,
        {"a": Jagged.from_rows(a[:size]), "b": Jagged.from_rows(b[:size])},
    )
    group = deduplicate(plain, salt=SALT).group
    sliced = slice_group(group, GroupSchema("g", ("x",), ("a", "b"), (on_a, on_b)))
    batch = decode(encode(batch_of({"g": sliced}, size=size, schema=SCHEMA), SCHEMA), SCHEMA)
    assert row_tuples(expand(batch.groups["g"])) == row_tuples(plain)
    again = deduplicate(expand(batch.groups["g"]), salt=SALT)
    assert np.array_equal(again.fingerprints, deduplicate(plain, salt=SALT).fingerprints)
    for name in ("a", "b"):
        assert sliced.rows.lists[name].values.size <= group.rows.lists[name].values.size


@pytest.mark.parametrize("newest_first", [False, True])
def test_a_list_that_slides_costs_one_id_an_event(newest_first: bool) -> None:
    sessions = [[[100 * s + i for i in range(k, k + 8)] for k in range(20)] for s in range(5)]
    rows = [row[::-1] if newest_first else row for session in sessions for row in session]
    column = only(Jagged.from_rows(rows))
    assert [row.tolist() for row in column.rows()] == rows
    assert column.values.size == 5 * (8 + 19)


def test_growing_shrinking_and_repeating_lists_cost_what_is_new() -> None:
    rows = [[], [1], [1, 2], [1, 2, 3], [2, 3], [2, 3], [], [2, 3], [3], [9], [8, 9], [7, 8, 9]]
    column = only(Jagged.from_rows(rows))
    assert [row.tolist() for row in column.rows()] == rows
    assert sorted(column.values.tolist()) == [1, 2, 3, 7, 8, 9]


def test_a_row_never_writes_over_an_earlier_one() -> None:
    """[2, 9] continues [1, 2], but the place behind it is taken by the 3 of the first row."""
    for rows in ([[1, 2, 3], [1, 2], [2, 9]], [[3, 2, 1], [2, 1], [9, 2]]):
        column = only(Jagged.from_rows(rows))
        assert [row.tolist() for row in column.rows()] == rows
        assert column.values.size == 5


def test_many_repeats_within_a_list_are_given_up_on_and_stay_right() -> None:
    rows = [[7] * 50 + [k] for k in range(30)]
    column = only(Jagged.from_rows(rows))
    assert [row.tolist() for row in column.rows()] == rows


def test_auto_leaves_what_does_not_pay_and_what_came_as_slices() -> None:
    anew = Jagged.from_rows([[10 * i + j for j in range(5)] for i in range(20)])
    assert slice_column(anew) is anew
    little = Jagged.from_rows([[1, 2], [2, 3], *([10 * i, 10 * i + 5] for i in range(4, 20))])
    assert slice_column(little) is little
    assert slice_column(little, Slicing.ALWAYS).values.size == little.values.size - 1
    came = Jagged(np.arange(6), np.array([0, 1, 2], np.int32), np.array([4, 4, 4], np.int32))
    assert slice_column(came) is came
    assert slice_column(came, Slicing.NEVER).is_contiguous()
    assert [r.tolist() for r in slice_column(came, Slicing.NEVER).rows()] == [r.tolist() for r in came.rows()]


def test_a_slice_out_of_range_is_refused_by_name() -> None:
    column = only(Jagged.from_rows([[1, 2, 3], [2, 3, 4]]))
    assert column.values.size == 4
    for starts in ([0, 2], [-1, 1]):
        wrong = Jagged(column.values, np.array(starts, np.int32), column.lengths)
        rows = Rows(np.zeros((2, 1), np.float32), {"a": wrong, "b": column})
        with pytest.raises(BatchError, match="group/g/list/a/starts"):
            encode(batch_of({"g": Group(rows, np.arange(2, dtype=np.int32))}, size=2, schema=SCHEMA), SCHEMA)
