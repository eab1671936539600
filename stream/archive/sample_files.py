"""Samples of the batches as a Parquet file: one row a sample, one column per feature, every value once.

The rows stand in the order in which the samples were made, those of a session next to each other. It is an IKJT (RecD,
arXiv 2211.05239) over the whole file: of each group, `recd.row.<group>` is the number of each sample's distinct row, in
order of first appearance, and a feature's column holds a value where its row appears first, else null. Plain again, in
any Parquet reader: the column without its nulls, taken at those numbers (`plain_column`).

A list that grows or slides is kept as slices: its ids stand one behind the other, those of a run of rows that overlap
with the first of them, and `<feature>@start` and `<feature>@length` say where in that run a row lies. Where ids are
smaller by number (see id_columns), `<feature>@ids` holds them in the first row, and the feature's column their numbers.

What follows from another column is left out: a sample's id is `dedup_cache.sample_id` of its source partition and
offset, its arrival is `recd.event_time_ms` + `recd.append_delay_ms`.

Letters in shapes: S samples, U distinct rows of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dedup_cache import (
    Batch,
    BatchSchema,
    Group,
    GroupSchema,
    Jagged,
    Rows,
    distinct,
    fingerprints,
    sample_position,
    slice_group,
)
from dedup_cache.arrays import AnyArray, Bool, Int64
from stream.archive.errors import ArchiveError
from stream.archive.id_columns import smallest
from stream.archive.parquet import Encoding, to_bytes

TOPIC, PARTITION, OFFSET, SEQ = "recd.source_topic", "recd.source_partition", "recd.offset", "recd.seq"
EVENT_TIME, DELAY, WEIGHT = "recd.event_time_ms", "recd.append_delay_ms", "recd.weight"
ROW = "recd.row."
LABEL, SCORE = "label.", "score."
START, LENGTH, IDS = "@start", "@length", "@ids"
FORMAT_VERSION = "3"
KIND = "samples"


class _Column(NamedTuple):
    """A column of S rows, and how Parquet writes it."""

    name: str
    array: pa.Array
    encoding: Encoding


class _Chains(NamedTuple):
    """Where the runs of overlapping rows lie in a column's values."""

    heads: Bool
    """bool[U]: the first row of each."""
    bases: Int64
    """int64[U]: where the run of each row begins."""


def encode_samples(batches: Sequence[Batch], schema: BatchSchema) -> bytes:
    """The samples of consecutive batches; all rows must be inline (resolved). ArchiveError for an id of no position."""
    columns = [*_own(batches), *_labels(batches, schema)]
    for group in schema.groups:
        merged = _merged([batch.groups[group.name] for batch in batches], salt=schema.group_salt(group))
        columns += _group_columns(slice_group(merged, group), group)
    metadata = {"recd.kind": KIND, "recd.version": FORMAT_VERSION, "recd.schema_digest": schema.digest()}
    fields = [(pa.field(column.name, column.array.type), column.array) for column in columns]
    return to_bytes(fields, metadata=metadata, encodings={column.name: column.encoding for column in columns})


def plain_column(table: pa.Table, feature: str, *, group: str) -> pa.Array:
    """One value a sample: the lists or numbers of a feature of that group."""
    numbers = table.column(ROW + group).combine_chunks()
    if pa.types.is_list(table.schema.field(feature).type):
        return list_array(stored_list(table, feature)).take(numbers)
    return table.column(feature).combine_chunks().drop_null().take(numbers)


def stored_list(table: pa.Table, feature: str) -> Jagged:
    """The U distinct rows of a list feature."""
    stored = table.column(feature).combine_chunks().drop_null()
    values, sizes = stored.flatten().to_numpy(), np.diff(stored.offsets.to_numpy())
    if feature + IDS in table.column_names:
        values = table.column(feature + IDS).combine_chunks().drop_null().flatten().to_numpy()[values]
    if feature + START not in table.column_names:
        return Jagged.from_lengths(values, sizes)
    starts, lengths = (table.column(feature + of).combine_chunks().drop_null() for of in (START, LENGTH))
    return _unsliced(values, sizes, starts.to_numpy(), lengths.to_numpy())


def list_array(column: Jagged) -> pa.Array:
    """One list a row, none shared."""
    values, lengths = column.compact()
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def _own(batches: Sequence[Batch]) -> list[_Column]:
    sizes = [batch.num_samples for batch in batches]
    partitions = np.repeat([batch.meta.source_partition for batch in batches], sizes).astype(np.int32)
    seqs = [batch.meta.seq + np.arange(batch.num_samples, dtype=np.int64) for batch in batches]
    position = sample_position(np.concatenate([batch.sample_ids for batch in batches]))
    if bool((position.partition != partitions).any()):
        wrong = int(np.argmax(position.partition != partitions))
        raise ArchiveError(
            f"sample {int(np.concatenate(seqs)[wrong])} of source partition {int(partitions[wrong])}: its id is of "
            f"partition {int(position.partition[wrong])}; the batches were not written by this version of the stream"
        )
    event_times = np.concatenate([batch.event_times_ms for batch in batches])
    delays = np.concatenate([batch.append_times_ms for batch in batches]) - event_times
    weights = np.concatenate([batch.weights for batch in batches])
    topics = pa.array(np.repeat([batch.meta.source_topic for batch in batches], sizes), pa.string())
    return [
        _Column(TOPIC, topics, Encoding.DICTIONARY),
        _Column(PARTITION, pa.array(partitions), Encoding.DICTIONARY),
        _Column(SEQ, pa.array(np.concatenate(seqs)), Encoding.DELTA),
        _Column(OFFSET, pa.array(position.offset), Encoding.SPLIT),
        _Column(EVENT_TIME, pa.array(event_times), Encoding.SPLIT),
        _Column(DELAY, pa.array(delays), Encoding.SPLIT),
        _floats(WEIGHT, pa.array(weights)),
    ]


def _labels(batches: Sequence[Batch], schema: BatchSchema) -> list[_Column]:
    labels = np.concatenate([batch.labels for batch in batches])
    scores = np.concatenate([batch.scores for batch in batches])
    columns = [_floats(LABEL + name, pa.array(labels[:, i])) for i, name in enumerate(schema.labels)]
    return columns + [
        _floats(SCORE + name, pa.array(scores[:, i], from_pandas=True)) for i, name in enumerate(schema.labels)
    ]


def _floats(name: str, array: pa.Array) -> _Column:
    """By dictionary, unless most of them are seen once."""
    rare = pc.count_distinct(array).as_py() > (len(array) - array.null_count) / 2
    return _Column(name, array, Encoding.SPLIT if rare else Encoding.DICTIONARY)


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


def _group_columns(group: Group, schema: GroupSchema) -> list[_Column]:
    appears = np.zeros(group.num_samples, np.bool_)
    appears[np.unique(group.inverse, return_index=True)[1]] = True
    places = pa.array(group.inverse, mask=~appears)
    columns = [_Column(ROW + schema.name, pa.array(group.inverse), Encoding.SPLIT)]
    columns += [_floats(name, pa.array(group.rows.dense[:, i]).take(places)) for i, name in enumerate(schema.dense)]
    for name, column in group.rows.lists.items():
        if column.is_contiguous():
            columns += _list_columns(name, column.values, column.lengths, places=places)
            continue
        chains = _chains(column)
        sizes = np.diff(np.append(chains.bases[chains.heads], column.values.shape[0]))
        lengths = np.zeros(column.num_rows, np.int32)
        lengths[chains.heads] = sizes
        inside = np.where(column.lengths > 0, column.starts - chains.bases, 0).astype(np.int32)
        columns += _list_columns(name, column.values, lengths, places=places)
        columns += [
            _Column(name + START, pa.array(inside).take(places), Encoding.DICTIONARY),
            _Column(name + LENGTH, pa.array(column.lengths).take(places), Encoding.DICTIONARY),
        ]
    return columns


def _list_columns(name: str, values: Int64, lengths: AnyArray, *, places: pa.Array) -> list[_Column]:
    """The lists of U rows, each where it appears first; where that is smaller by number, the ids in the first row."""
    stored = smallest(values)
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(stored.values))
    columns = [_Column(name, lists.take(places), stored.encoding)]
    if stored.dictionary is not None:
        whole = Jagged.from_lengths(stored.dictionary, np.array([stored.dictionary.size]))
        first = pa.array(np.zeros(len(places), np.int32), mask=np.arange(len(places)) > 0)
        columns.append(_Column(name + IDS, list_array(whole).take(first), Encoding.DELTA))
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


def _unsliced(values: Int64, sizes: AnyArray, inside: Int64, lengths: Int64) -> Jagged:
    """The U rows of a column that is kept as slices; `sizes` int[U] of the runs, 0 but where one begins."""
    ends = np.cumsum(sizes)
    bases = np.maximum.accumulate(np.where(sizes > 0, ends - sizes, 0))
    starts = np.where(lengths > 0, bases + inside, 0)
    return Jagged(values, starts.astype(np.int32), lengths.astype(np.int32))
