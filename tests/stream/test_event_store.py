"""The store of open events: lists that share values are given back as they were, whatever is released in between."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dedup_cache import Jagged
from stream.columns import ImpressionColumns
from stream.event_block import EVENT, EventBlock
from stream.event_store import EventStore

ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=12)


@given(blocks=st.lists(st.tuples(ROWS, st.booleans()), min_size=1, max_size=4), data=st.data())
def test_rows_that_share_values_outlive_those_that_go(
    blocks: list[tuple[list[tuple[int, int]], bool]], data: st.DataObject
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stream.event_store.SLACK", 0)
        store, expected = EventStore(columns(Jagged.from_rows([]))), dict[int, list[int]]()
        for first, (slices, shared) in zip(range(0, 1_000, 100), blocks, strict=False):
            values = np.arange(10 * first, 10 * first + 8)
            starts, lengths = np.array(slices, np.int32).T
            column = Jagged(values, starts, lengths)
            rows = [row.tolist() for row in column.rows()]
            expected |= dict(enumerate(rows, first))
            store.append(events(first, column if shared else Jagged.from_lengths(*column.compact())))
            gone = data.draw(st.sets(st.sampled_from(sorted(expected))))
            store.release(np.array(sorted(gone), np.int64))
            expected = {offset: row for offset, row in expected.items() if offset not in gone}
            held = store.held()
            assert held.tolist() == sorted(expected)
            for ask in (held, held[::2]):
                (found,) = store.block(ask).impressions.lists
                assert [row.tolist() for row in found.rows()] == [expected[o] for o in ask.tolist()]


def columns(column: Jagged) -> ImpressionColumns:
    none = np.empty((column.num_rows, 0), np.float32)
    ids = np.empty((column.num_rows, 0), np.int64)
    return ImpressionColumns(dense=none, ids=ids, has_id=ids.astype(np.bool_), lists=(column,), scores=none)


def events(first: int, column: Jagged) -> EventBlock:
    rows = np.zeros(column.num_rows, EVENT)
    rows["offset"] = np.arange(first, first + column.num_rows)
    nothing = np.full(column.num_rows, None, object)
    return EventBlock(rows, rows["offset"].copy(), nothing, nothing, columns(column))
