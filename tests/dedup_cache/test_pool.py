"""Rows taken from a pool: those of the samples, in the same form whether loops are compiled or plain."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dedup_cache import Held, Jagged, Pool, RowError, Rows, Slicing, compiled, deduplicate
from dedup_cache.fingerprint import fingerprints
from dedup_cache.slices import overlapped
from stream.compiled import warm
from tests.dedup_cache.rows_strategies import CONTEXT, SALT, USER, row_tuples, rows_of

SLICINGS = st.tuples(st.sampled_from(Slicing), st.sampled_from(Slicing))


@st.composite
def windows(draw: st.DrawFn, num_rows: int) -> Jagged:
    """Rows of one after the other, or windows that slide over few ids, some of them backwards, some empty."""
    ids = draw(st.lists(st.integers(0, draw(st.sampled_from([1, 3, 10**12]))), min_size=8, max_size=8))
    start, rows = 0, []
    for _ in range(num_rows):
        start = max(0, min(7, start + draw(st.integers(-1, 2))))
        rows.append((start, draw(st.integers(0, min(4, 8 - start)))))
    if draw(st.booleans()):
        return Jagged.from_rows([ids[start : start + length] for start, length in rows])
    starts, lengths = (np.array([row[i] for row in rows], np.int32) for i in (0, 1))
    return Jagged(np.array(ids, np.int64), starts, lengths)


@st.composite
def parts_of(draw: st.DrawFn) -> list[Rows]:
    parts = []
    for size in draw(st.lists(st.integers(0, 9), min_size=1, max_size=3)):
        if draw(st.booleans()):
            parts.append(draw(rows_of(USER, size)))
        else:
            dense = np.zeros((size, len(USER.dense)), np.float32)
            parts.append(Rows(dense, {name: draw(windows(size)) for name in USER.lists}))
    return parts


@settings(deadline=None, max_examples=120)
@given(parts_of(), SLICINGS, st.data())
def test_what_is_taken_is_what_was_put_in(parts: list[Rows], slicing: tuple[Slicing, ...], data: st.DataObject) -> None:
    pool, whole = Pool.of(parts), Rows.concat(parts)
    assert np.array_equal(pool.fingerprints(salt=SALT), fingerprints(whole, salt=SALT))
    chosen = np.array(data.draw(st.lists(st.integers(0, pool.num_rows - 1))) if pool.num_rows else [], np.int64)
    inline = np.array(data.draw(st.lists(st.booleans(), min_size=chosen.size, max_size=chosen.size)), np.bool_)
    warm.compile_now()
    quick, quick_inline = pool.take(chosen, slicing=slicing), pool.take(chosen, slicing=slicing, inline=inline)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "ready", lambda: False)
        plain, plain_inline = pool.take(chosen, slicing=slicing), pool.take(chosen, slicing=slicing, inline=inline)
    tuples = row_tuples(whole)
    assert row_tuples(quick) == [tuples[i] for i in chosen]
    for one, other in ((quick, plain), (quick_inline, plain_inline)):
        assert row_tuples(one) == row_tuples(other)
        for name, column in one.lists.items():
            for part in ("values", "starts", "lengths"):
                assert getattr(column, part).tolist() == getattr(other.lists[name], part).tolist(), (name, part)
    blank = row_tuples(
        Rows(np.zeros((1, len(USER.dense)), np.float32), {n: Jagged.from_rows([[]]) for n in USER.lists})
    )
    expected = [tuples[row] if here else blank[0] for row, here in zip(chosen, inline, strict=True)]
    assert row_tuples(quick_inline) == expected


@settings(deadline=None)
@given(st.data(), st.integers(0, 12))
def test_picking_a_stretch_finds_its_distinct_rows(data: st.DataObject, size: int) -> None:
    rows = data.draw(rows_of(USER, size))
    first = data.draw(st.integers(0, size))
    last = data.draw(st.integers(first, size))
    pool = Pool.of([rows])
    prints = pool.fingerprints(salt=SALT)
    wanted = deduplicate(rows.slice(first, last), salt=SALT)
    made = deduplicate(rows, salt=SALT)
    for held in (Held(pool, prints), Held(Pool.of([made.group.rows]), made.fingerprints, made.group.inverse)):
        picked = held.pick(first, last)
        assert picked.inverse.tolist() == wanted.group.inverse.tolist()
        taken = held.pool.take(picked.chosen, slicing=(Slicing.AUTO, Slicing.AUTO))
        assert row_tuples(taken) == row_tuples(wanted.group.rows)


def wandering(seed: int) -> list[list[int]]:
    """Rows that each come from the one before: grown, cut or slid at either end, or drawn anew."""
    random = np.random.default_rng(seed)
    top, row, rows = [2, 4, 10**9][seed % 3], [0], []
    for _ in range(12):
        new = int(random.integers(0, top))
        moves = ([*row, new], [new, *row], [*row[1:], new], [new, *row[:-1]], row[1:], row[:-1], [new, new + 1])
        row = moves[int(random.integers(0, len(moves)))]
        rows.append(row)
    return rows


def test_compiled_chains_are_the_plain_ones() -> None:
    cases = [wandering(seed) for seed in range(300)]
    cases += [[[1, 2, 3], [1, 2], [2, 9]], [[3, 2, 1], [2, 1], [9, 2]], [[7] * 50 + [k] for k in range(9)]]
    warm.compile_now()
    for rows in cases:
        column = Jagged.from_rows(rows)
        everyone = np.arange(len(rows))
        taken = Pool.of([Rows(np.zeros((len(rows), 0), np.float32), {"a": column})])
        chained = taken.take(everyone, slicing=(Slicing.ALWAYS,)).lists["a"]
        (plain,) = overlapped([column])
        if plain.values.size == column.values.size:
            plain = column
        assert [row.tolist() for row in chained.rows()] == rows
        assert (chained.values.tolist(), chained.starts.tolist()) == (plain.values.tolist(), plain.starts.tolist())


def test_a_group_without_lists() -> None:
    rows = Rows(np.arange(3, dtype=np.float32)[:, None], {})
    assert Pool.of([rows, rows]).take(np.array([4, 0]), slicing=()).dense.tolist() == [[1], [0]]
    assert CONTEXT.lists == ()


def test_a_slice_beyond_the_pool_is_refused() -> None:
    warm.compile_now()
    for start, length in ((0, 3), (-1, 1), (2, 1)):
        column = Jagged(np.arange(2), np.array([start], np.int32), np.array([length], np.int32))
        pool = Pool.of([Rows(np.zeros((1, 0), np.float32), {"a": column})])
        with pytest.raises(IndexError):
            pool.take(np.array([0]), slicing=(Slicing.AUTO,))


@pytest.mark.parametrize("ready", [True, False])
def test_what_does_not_fit_the_pool_is_named(ready: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    warm.compile_now()
    monkeypatch.setattr(compiled, "ready", lambda: ready)
    lists = {name: Jagged.from_rows([[1], [2, 3]]) for name in "ab"}
    pool, both = Pool.of([Rows(np.zeros((2, 0), np.float32), lists)]), np.array([0, 1])
    auto = (Slicing.AUTO, Slicing.AUTO)
    for slicing in (auto[:1], (*auto, Slicing.AUTO)):
        with pytest.raises(RowError, match=f"slicing: {len(slicing)} of them for 2 lists"):
            pool.take(both, slicing=slicing)
    for chosen in ([0, 2], [-1, 1]):
        with pytest.raises(RowError, match=rf"chosen: rows {chosen[0]} to {chosen[1]} of a pool of 2"):
            pool.take(np.array(chosen), slicing=auto)
    with pytest.raises(RowError, match="inline: 1 flags for 2 rows"):
        pool.take(both, slicing=auto, inline=np.ones(1, np.bool_))
