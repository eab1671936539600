"""Files of samples read back: the samples of each source partition, in the order in which they were made.

Letters in shapes: S samples, U distinct rows of a group.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dedup_cache import BatchSchema, GroupSchema, Jagged, Rows
from dedup_cache.arrays import AnyArray, Int64
from stream.archive.errors import FileDamaged, OtherSchema
from stream.archive.parquet import from_bytes
from stream.archive.sample_files import (
    DELAY,
    EVENT_TIME,
    FORMAT_VERSION,
    KIND,
    LABEL,
    OFFSET,
    PARTITION,
    ROW,
    SCORE,
    SEQ,
    TOPIC,
    WEIGHT,
    stored_list,
)
from stream.records import SampleBlock

BLOCK_SAMPLES = 4_096


@dataclass(frozen=True, slots=True)
class ArchivedBlock:
    """Consecutive samples of one source partition, as they left the pipeline: transformed, none by reference."""

    topic: str
    partition: int
    """Of the source."""
    seq: int
    """Samples of the source partition before the first of these."""
    samples: SampleBlock


def decode_samples(data: bytes, schema: BatchSchema, *, place: str) -> Iterator[ArchivedBlock]:
    """The samples of a file, some thousands at a time, those of a source partition in their order.

    Raises FileDamaged, OtherSchema (the file was written for other features, labels or transforms).
    """
    table = from_bytes(data, place=place)
    _check(table, schema, place=place)
    topics = table.column(TOPIC).combine_chunks().dictionary_encode()
    of_topic, partitions = topics.indices.to_numpy(), _numbers(table, PARTITION)
    groups = {group.name: _rows(table, group) for group in schema.groups}
    for topic, partition, places in _sources(of_topic, partitions):
        seqs = _numbers(table, SEQ)[places]
        if bool((np.diff(seqs) != 1).any()):
            raise FileDamaged(f"{place}: the samples of source partition {partition} do not follow one another")
        for first in range(0, len(places), BLOCK_SAMPLES):
            chosen = places[first : first + BLOCK_SAMPLES]
            block = _block(table, schema, groups, chosen)
            yield ArchivedBlock(topics.dictionary[topic].as_py(), partition, int(seqs[first]), block)


def _check(table: pa.Table, schema: BatchSchema, *, place: str) -> None:
    said = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    kind, version = said.get("recd.kind"), said.get("recd.version")
    if kind != KIND or version != FORMAT_VERSION:
        raise FileDamaged(
            f"{place}: holds {kind} of format {version}; this version reads {KIND} of format {FORMAT_VERSION}"
        )
    digest = said.get("recd.schema_digest")
    if digest != schema.digest():
        raise OtherSchema(
            f"{place}: the samples were made for schema {digest}, this configuration has {schema.digest()}: replay "
            "them with the recd.yaml of that time, or replay the archived events"
        )


def _sources(topics: AnyArray, partitions: AnyArray) -> Iterator[tuple[int, int, Int64]]:
    """(number of the topic, partition, its rows int64[S] in order) of every source in the file."""
    sources, numbers = np.unique(topics.astype(np.int64) << 32 | partitions, return_inverse=True)
    for number, source in enumerate(sources.tolist()):
        yield source >> 32, source & 0xFFFFFFFF, np.flatnonzero(numbers == number)


def _rows(table: pa.Table, group: GroupSchema) -> tuple[Rows, AnyArray]:
    """The U distinct rows of a group, and the row int32[S] of each sample."""
    inverse = _numbers(table, ROW + group.name)
    columns = [table.column(name).combine_chunks().drop_null().to_numpy() for name in group.dense]
    dense = np.empty((int(inverse.max(initial=-1)) + 1, len(columns)), np.float32)
    for i, column in enumerate(columns):
        dense[:, i] = column
    return Rows(dense, {name: stored_list(table, name) for name in group.lists}), inverse


def _block(
    table: pa.Table, schema: BatchSchema, groups: dict[str, tuple[Rows, AnyArray]], chosen: Int64
) -> SampleBlock:
    def matrix(kind: str) -> AnyArray:
        filled = np.empty((chosen.size, len(schema.labels)), np.float32)
        for i, name in enumerate(schema.labels):
            filled[:, i] = _numbers(table, kind + name)[chosen]
        return filled

    event_times = _numbers(table, EVENT_TIME)[chosen]
    return SampleBlock(
        offsets=_numbers(table, OFFSET)[chosen],
        event_times_ms=event_times,
        append_times_ms=event_times + _numbers(table, DELAY)[chosen],
        labels=matrix(LABEL),
        weights=_numbers(table, WEIGHT)[chosen],
        scores=matrix(SCORE),
        groups={name: _picked(rows, inverse[chosen]) for name, (rows, inverse) in groups.items()},
    )


def _picked(rows: Rows, wanted: AnyArray) -> Rows:
    """S rows whose lists share the values of those that are equal."""
    used, places = np.unique(wanted, return_inverse=True)
    picked = rows.take(used)
    lists = {name: Jagged(c.values, c.starts[places], c.lengths[places]) for name, c in picked.lists.items()}
    return Rows(picked.dense[places], lists)


def _numbers(table: pa.Table, name: str) -> AnyArray:
    """A column of numbers; null, of a score that was not logged, is NaN."""
    numbers: AnyArray = table.column(name).to_numpy()
    return numbers
