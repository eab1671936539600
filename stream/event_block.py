"""Decoded events as columns.

Letters in shapes: M events of a block, I of these impressions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dedup_cache import Rows
from dedup_cache.arrays import AnyArray, Int64
from stream.columns import ImpressionColumns

IMPRESSION = 0
"""The kind of an impression; the engagement type number k of the configuration is kind k + 1."""

EVENT = np.dtype(
    [
        ("offset", np.int64),
        ("append_ms", np.int64),
        ("time_ms", np.int64),
        ("event_id", np.int64),
        ("item", np.int64),
        ("item_id", np.int64),
        ("target", np.int64),
        ("kind", np.int16),
        ("has_item", np.bool_),
        ("has_target", np.bool_),
    ]
)
"""What an open session keeps of an event. `item` is the identity that joins compare, `item_id` the id that
`session.items` shows (an integer as itself), `target` the impression that an engagement names."""


@dataclass(frozen=True, slots=True, eq=False)
class EventBlock:
    """M events in offset order."""

    rows: AnyArray
    """EVENT[M]"""
    keys: Int64
    """int64[M], hashes of the session keys."""
    record_keys: AnyArray
    """object[M], the records' own keys (bytes or None), where `values` has bytes."""
    values: AnyArray
    """object[M], the records' own bytes; None where nobody kept them: they stand in the log."""
    impressions: ImpressionColumns
    """The I impressions among them, in the same order."""


def in_offset_order(one: EventBlock, other: EventBlock) -> EventBlock:
    """The events of two blocks of one partition."""
    rows = np.concatenate([one.rows, other.rows])
    order = np.argsort(rows["offset"])
    shown = [block.rows["offset"][block.rows["kind"] == IMPRESSION] for block in (one, other)]
    return EventBlock(
        rows=rows[order],
        keys=np.concatenate([one.keys, other.keys])[order],
        record_keys=np.concatenate([one.record_keys, other.record_keys])[order],
        values=np.concatenate([one.values, other.values])[order],
        impressions=_joined(one.impressions, other.impressions, order=np.argsort(np.concatenate(shown))),
    )


def objects(things: Sequence[Any]) -> AnyArray:
    """object[n]"""
    array = np.empty(len(things), object)
    array[:] = things
    return array


def _joined(one: ImpressionColumns, other: ImpressionColumns, *, order: Int64) -> ImpressionColumns:
    parts = [
        Rows(columns.dense, {str(i): column for i, column in enumerate(columns.lists)}) for columns in (one, other)
    ]
    rows = Rows.concat(parts).take(order)
    return ImpressionColumns(
        dense=rows.dense,
        ids=np.concatenate([one.ids, other.ids])[order],
        has_id=np.concatenate([one.has_id, other.has_id])[order],
        lists=tuple(rows.lists.values()),
        scores=np.concatenate([one.scores, other.scores])[order],
    )
