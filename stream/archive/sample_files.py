"""Samples of the batches as a Parquet file: one row a sample, one column per feature, every value once.

The rows stand in the order in which the samples were made, those of a session next to each other. It is an IKJT (RecD,
arXiv 2211.05239) over the whole file: of each group, `recd.row.<group>` is the number of each sample's distinct row, in
order of first appearance, and a feature's column holds a value where its row appears first, else null. Plain again, in
any Parquet reader: the column without its nulls, taken at those numbers (`plain_column`).

A list that grows or slides is kept as slices: its ids stand one behind the other, those of a run of rows that overlap
with the first of them, and `<feature>@start` and `<feature>@length` say where in that run a row lies.

Letters in shapes: S samples, U distinct rows of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dedup_cache import Batch, BatchSchema, Group, GroupSchema, Jagged, Rows, distinct, fingerprints, slice_group
from dedup_cache.arrays import Bool, Int64
from stream.archive.parquet import to_bytes

SAMPLE_ID, PARTITION, SEQ = "recd.sample_id", "recd.source_partition", "recd.seq"
EVENT_TIME, APPEND_TIME, WEIGHT = "recd.event_time_ms", "recd.append_time_ms", "recd.weight"
ROW = "recd.row."
LABEL, SCORE = "label.", "score."
START, LENGTH = "@start", "@length"
FORMAT_VERSION = "2"
SMALL_ID = 1 << 24


class _Chains(NamedTuple):
    """Where the runs of overlapping rows lie in a column's values."""

    heads: Bool
    """bool[U]: the first row of each."""
    bases: Int64
    """int64[U]: where the run of each row begins."""


def encode_samples(batches: Sequence[Batch], schema: BatchSchema) -> bytes:
    """The samples of consecutive batches; all rows must be inline (resolved)."""
    columns = [*_own(batches), *_labels(batches, schema)]
    for group in schema.groups:
        merged = _merged([batch.groups[group.name] for batch in batches], salt=schema.group_salt(group))
        columns += _group_columns(slice_group(merged, group), group)
    metadata = {"recd.kind": "samples", "recd.version": FORMAT_VERSION, "recd.schema_digest": schema.digest()}
    fields = [(pa.field(name, array.type), array) for name, array in columns]
    return to_bytes(fields, metadata=metadata, small_ids=[name for name, array in columns if _is_small(array)])


def plain_column(table: pa.Table, feature: str, *, group: str) -> pa.Array:
    """One value a sample: the lists or numbers of a feature of that group."""
    numbers = table.column(ROW + group)
    stored = table.column(feature).combine_chunks().drop_null()
    if feature + START in table.column_names:
        starts, lengths = (table.column(feature + of).combine_chunks().drop_null() for of in (START, LENGTH))
        stored = list_array(_unsliced(stored, starts.to_numpy(), lengths.to_numpy()))
    return stored.take(numbers.combine_chunks())


def _is_small(array: pa.Array) -> bool:
    """Whether all ids of a list column fit into three bytes."""
    if not pa.types.is_list(array.type):
        return False
    bounds = pc.min_max(array.flatten()).as_py()
    return bounds["max"] is not None and bounds["min"] >= 0 and bounds["max"] < SMALL_ID


def list_array(column: Jagged) -> pa.Array:
    """One list a row, none shared."""
    values, lengths = column.compact()
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def _own(batches: Sequence[Batch]) -> list[tuple[str, pa.Array]]:
    sizes = [batch.num_samples for batch in batches]
    seqs = [batch.meta.seq + np.arange(batch.num_samples, dtype=np.int64) for batch in batches]
    return [
        (SAMPLE_ID, pa.array(np.concatenate([batch.sample_ids for batch in batches]))),
        (PARTITION, pa.array(np.repeat([batch.meta.source_partition for batch in batches], sizes).astype(np.int32))),
        (SEQ, pa.array(np.concatenate(seqs))),
        (EVENT_TIME, pa.array(np.concatenate([batch.event_times_ms for batch in batches]))),
        (APPEND_TIME, pa.array(np.concatenate([batch.append_times_ms for batch in batches]))),
        (WEIGHT, pa.array(np.concatenate([batch.weights for batch in batches]))),
    ]


def _labels(batches: Sequence[Batch], schema: BatchSchema) -> list[tuple[str, pa.Array]]:
    labels = np.concatenate([batch.labels for batch in batches])
    scores = np.concatenate([batch.scores for batch in batches])
    columns = [(LABEL + name, pa.array(labels[:, i])) for i, name in enumerate(schema.labels)]
    return columns + [(SCORE + name, pa.array(scores[:, i], from_pandas=True)) for i, name in enumerate(schema.labels)]


def _merged(parts: Sequence[Group], *, salt: bytes) -> Group:
    """Distinct over all batches, the rows in the order in which samples first need them."""
    bases = np.cumsum([0, *(part.rows.num_rows for part in parts)])
    rows = Rows.concat([part.rows for part in parts])
    found = distinct(fingerprints(rows, salt=salt))
    of_sample = found.inverse[np.concatenate([part.inverse + base for part, base in zip(parts, bases, strict=False)])]
    used, firsts = np.unique(of_sample, return_index=True)
    order = used[np.argsort(firsts)]
    numbers = np.zeros(found.first.size, np.int32)
    numbers[order] = np.arange(order.size, dtype=np.int32)
    return Group(rows.take(found.first[order]), numbers[of_sample])


def _group_columns(group: Group, schema: GroupSchema) -> list[tuple[str, pa.Array]]:
    appears = np.zeros(group.num_samples, np.bool_)
    appears[np.unique(group.inverse, return_index=True)[1]] = True
    places = pa.array(group.inverse, mask=~appears)
    columns = [(ROW + schema.name, pa.array(group.inverse))]
    columns += [(name, pa.array(group.rows.dense[:, i]).take(places)) for i, name in enumerate(schema.dense)]
    for name, column in group.rows.lists.items():
        if column.is_contiguous():
            columns.append((name, list_array(column).take(places)))
            continue
        chains = _chains(column)
        sizes = np.diff(np.append(chains.bases[chains.heads], column.values.shape[0]))
        lengths = np.zeros(column.num_rows, np.int32)
        lengths[chains.heads] = sizes
        inside = np.where(column.lengths > 0, column.starts - chains.bases, 0).astype(np.int32)
        columns += [
            (name, list_array(Jagged.from_lengths(column.values, lengths)).take(places)),
            (name + START, pa.array(inside).take(places)),
            (name + LENGTH, pa.array(column.lengths).take(places)),
        ]
    return columns


def _chains(column: Jagged) -> _Chains:
    """A run begins with a row behind everything before it, when no later row reaches back; empty rows begin none."""
    filled = np.flatnonzero(column.lengths)
    starts = column.starts[filled].astype(np.int64)
    reached = np.concatenate([[0], np.maximum.accumulate(starts + column.lengths[filled])[:-1]])
    lowest = np.minimum.accumulate(starts[::-1])[::-1]
    heads = np.zeros(column.num_rows, np.bool_)
    heads[filled] = lowest >= reached
    begins = np.zeros(column.num_rows, np.int64)
    begins[filled] = reached
    return _Chains(heads, np.maximum.accumulate(np.where(heads, begins, 0)))


def _unsliced(stored: pa.ListArray, inside: Int64, lengths: Int64) -> Jagged:
    """The U rows of a column that is kept as slices."""
    sizes = np.diff(stored.offsets.to_numpy())
    ends = np.cumsum(sizes)
    bases = np.maximum.accumulate(np.where(sizes > 0, ends - sizes, 0))
    starts = np.where(lengths > 0, bases + inside, 0)
    return Jagged(stored.flatten().to_numpy(), starts.astype(np.int32), lengths.astype(np.int32))
