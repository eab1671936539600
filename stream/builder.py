"""Samples of one source partition into batches: distinct rows, ids from the shared index, bytes.

Letters in shapes: S samples, U distinct rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from dedup_cache import (
    FORMAT_VERSION,
    Batch,
    BatchMeta,
    BatchSchema,
    BatchStats,
    Group,
    GroupSchema,
    Held,
    Pool,
    Rows,
    batch_stats,
    check_bits,
    encode_sound,
    sample_id,
)
from dedup_cache.arrays import Int64, UInt64
from stream.indexer import NO_GENERATION, Indexed, Indexer, ShippedValue, most_row_bytes, row_bytes
from stream.records import SampleBlock
from stream.transforms import Transforms

ENVELOPE_BYTES = 16 * 1024
"""What a batch of one sample holds besides its rows: the safetensors header and the sample's own columns."""


@dataclass(frozen=True, slots=True)
class BuiltBatch:
    """One record of `batches`, and the values that it names and that have yet to be shipped."""

    payload: bytes
    num_samples: int
    stats: BatchStats
    values: tuple[ShippedValue, ...]
    event_times_ms: Int64
    """int64[S]"""


@dataclass(frozen=True, slots=True)
class LargeSample:
    """A sample that no batch can hold."""

    offset: int
    size: int
    """Bytes of its rows."""


@dataclass(frozen=True, slots=True)
class Added:
    """What adding samples made: full batches, and samples that no batch can hold."""

    batches: list[BuiltBatch] = field(default_factory=list)
    too_large: list[LargeSample] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Where a batch ends."""

    max_samples: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class _Due:
    """Samples that are cut into batches now: their own columns, and what the groups hold for them."""

    columns: SampleBlock
    """Without groups."""
    sample_ids: UInt64
    groups: dict[str, Held]
    indexed: Indexed


class BatchBuilder:
    """Accumulates samples of one source partition and cuts them into batches; `seq` counts what was cut.

    What can be done for all batches of a cut is done once: fingerprints, transforms, ids.
    """

    def __init__(
        self,
        schema: BatchSchema,
        *,
        topic: str,
        partition: int,
        seq: int,
        limits: BatchLimits,
        indexer: Indexer,
        transforms: Transforms,
    ) -> None:
        self._schema = schema
        self._transforms = transforms
        self._topic = topic
        self._partition = partition
        self._limits = limits
        self._indexer = indexer
        self._blocks: list[SampleBlock] = []
        self._num_pending = 0
        self.seq = seq

    def add(self, block: SampleBlock, *, now_ms: int) -> Added:
        """Take samples, in order; cut what fills a batch. Too large is what would be so with every row inline."""
        block, too_large = self._without_too_large(block)
        if block.num_samples:
            self._blocks.append(block)
        self._num_pending += block.num_samples
        full = self._num_pending - self._num_pending % self._limits.max_samples
        return Added(self._cut(full, now_ms=now_ms), too_large)

    def flush(self, *, now_ms: int) -> list[BuiltBatch]:
        """Cut what is left."""
        return self._cut(self._num_pending, now_ms=now_ms)

    def _cut(self, count: int, *, now_ms: int) -> list[BuiltBatch]:
        """The first `count` samples as batches."""
        if not count:
            return []
        due, size = self._due(count), self._limits.max_samples
        return [
            built
            for first in range(0, count, size)
            for built in self._make(due, first, min(first + size, count), now_ms=now_ms)
        ]

    def _due(self, count: int) -> _Due:
        """Take the first `count` samples out of what is pending."""
        taken: list[SampleBlock] = []
        wanted = count
        while wanted:
            block = self._blocks[0]
            taken.append(slice_samples(block, 0, wanted))
            if block.num_samples > wanted:
                self._blocks[0] = slice_samples(block, wanted, block.num_samples)
            else:
                del self._blocks[0]
            wanted -= taken[-1].num_samples
        self._num_pending -= count
        groups = {
            group.name: self._hold([block.groups[group.name] for block in taken], group)
            for group in self._schema.groups
        }
        columns = concat_samples([replace(block, groups={}) for block in taken])
        return _Due(columns, sample_id(self._partition, columns.offsets), groups, self._indexer.index(groups))

    def _hold(self, parts: Sequence[Rows], group: GroupSchema) -> Held:
        salt = self._indexer.salt(group.name)
        if not self._transforms.changes(group.name):
            pool = Pool.of(parts)
            return Held(pool, pool.fingerprints(salt=salt))
        made = self._transforms.distinct(Rows.concat(parts), group=group.name, salt=salt)
        return Held(Pool.of([made.group.rows]), made.fingerprints, made.group.inverse)

    def _make(self, due: _Due, first: int, last: int, *, now_ms: int) -> list[BuiltBatch]:
        """Samples [first, last) as one batch, or as several where one would be too large."""
        batch, values = self._build(due, first, last, now_ms=now_ms)
        payload = encode_sound(batch)
        if len(payload) > self._limits.max_bytes and last - first > 1:
            middle = first + (last - first) // 2
            return self._make(due, first, middle, now_ms=now_ms) + self._make(due, middle, last, now_ms=now_ms)
        self._indexer.ship(values)
        self.seq += batch.num_samples
        return [BuiltBatch(payload, batch.num_samples, batch_stats(batch), tuple(values), batch.event_times_ms)]

    def _build(self, due: _Due, first: int, last: int, *, now_ms: int) -> tuple[Batch, list[ShippedValue]]:
        block = slice_samples(due.columns, first, last)
        groups, named = {}, {}
        for schema in self._schema.groups:
            held = due.groups[schema.name]
            chosen, inverse = held.pick(first, last)
            references = due.indexed.references(schema.name, chosen)
            if references is None:
                groups[schema.name] = Group(held.pool.take(chosen, slicing=schema.slicing), inverse)
                continue
            ids, inline = references
            rows = held.pool.take(chosen, slicing=schema.slicing, inline=inline)
            groups[schema.name] = Group(rows, inverse, ids, check_bits(held.fingerprints[chosen]), inline)
            named[schema.name] = ids[~inline]
        meta = BatchMeta(
            format_version=FORMAT_VERSION,
            schema_digest=self._schema.digest(),
            generation=due.indexed.generation if named else NO_GENERATION,
            source_topic=self._topic,
            source_partition=self._partition,
            first_offset=int(block.offsets.min()),
            last_offset=int(block.offsets.max()),
            seq=self.seq,
            min_event_time_ms=int(block.event_times_ms.min()),
            max_event_time_ms=int(block.event_times_ms.max()),
            written_ms=now_ms,
        )
        batch = Batch(
            labels=block.labels,
            weights=block.weights,
            scores=block.scores,
            sample_ids=due.sample_ids[first:last],
            event_times_ms=block.event_times_ms,
            append_times_ms=block.append_times_ms,
            groups=groups,
            meta=meta,
        )
        return batch, self._indexer.values(due.indexed, named)

    def _without_too_large(self, block: SampleBlock) -> tuple[SampleBlock, list[LargeSample]]:
        room = self._limits.max_bytes - ENVELOPE_BYTES
        if sum(self._most_bytes(block.groups[group.name], group) for group in self._schema.groups) <= room:
            return block, []
        sizes = np.zeros(block.num_samples, np.int64)
        for group in self._schema.groups:
            bound = self._transforms.most_bytes(group.name)
            sizes += row_bytes(block.groups[group.name], group) if bound is None else bound
        doubtful = np.flatnonzero(sizes > room)
        if not doubtful.size:
            return block, []
        sizes[doubtful] = self._sizes(take_samples(block, doubtful))
        large = sizes > room
        if not large.any():
            return block, []
        places = np.flatnonzero(large)
        offenders = [LargeSample(int(block.offsets[i]), int(sizes[i])) for i in places]
        return take_samples(block, np.flatnonzero(~large)), offenders

    def _most_bytes(self, rows: Rows, group: GroupSchema) -> int:
        """No row of the group is larger, after the transforms."""
        bound = self._transforms.most_bytes(group.name)
        return most_row_bytes(rows, group) if bound is None else bound

    def _sizes(self, block: SampleBlock) -> Int64:
        """int64[S]: bytes of each sample's rows, after the transforms."""
        sizes = np.zeros(block.num_samples, np.int64)
        for group in self._schema.groups:
            salt = self._indexer.salt(group.name)
            made = self._transforms.distinct(block.groups[group.name], group=group.name, salt=salt)
            sizes += row_bytes(made.group.rows, group)[made.group.inverse]
        return sizes


def concat_samples(blocks: Sequence[SampleBlock]) -> SampleBlock:
    """The samples of all blocks, in order."""
    if len(blocks) == 1:
        return blocks[0]
    return SampleBlock(
        offsets=np.concatenate([block.offsets for block in blocks]),
        event_times_ms=np.concatenate([block.event_times_ms for block in blocks]),
        append_times_ms=np.concatenate([block.append_times_ms for block in blocks]),
        labels=np.concatenate([block.labels for block in blocks]),
        weights=np.concatenate([block.weights for block in blocks]),
        scores=np.concatenate([block.scores for block in blocks]),
        groups={name: Rows.concat([block.groups[name] for block in blocks]) for name in blocks[0].groups},
    )


def slice_samples(block: SampleBlock, start: int, stop: int) -> SampleBlock:
    """Samples [start, stop), as views."""
    if start == 0 and stop >= block.num_samples:
        return block
    groups = {name: rows.slice(start, stop) for name, rows in block.groups.items()}
    return _picked(block, slice(start, stop), groups)


def take_samples(block: SampleBlock, indices: Int64) -> SampleBlock:
    """Samples `indices`, in that order."""
    return _picked(block, indices, {name: rows.select(indices) for name, rows in block.groups.items()})


def _picked(block: SampleBlock, places: slice | Int64, groups: dict[str, Rows]) -> SampleBlock:
    return SampleBlock(
        offsets=block.offsets[places],
        event_times_ms=block.event_times_ms[places],
        append_times_ms=block.append_times_ms[places],
        labels=block.labels[places],
        weights=block.weights[places],
        scores=block.scores[places],
        groups=groups,
    )
