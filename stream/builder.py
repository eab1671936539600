"""Samples of one source partition into batches: distinct rows, ids from the shared index, bytes.

Letters in shapes: S samples, U distinct rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dedup_cache import (
    FORMAT_VERSION,
    Batch,
    BatchMeta,
    BatchSchema,
    BatchStats,
    Deduplicated,
    GroupSchema,
    Rows,
    batch_stats,
    encode,
    sample_id,
    slice_group,
)
from dedup_cache.arrays import Int64
from stream.indexer import Indexer, ShippedValue, row_bytes
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


class BatchBuilder:
    """Accumulates samples of one source partition and cuts them into batches; `seq` counts what was cut."""

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
        if self._num_pending < self._limits.max_samples:
            return Added([], too_large)
        pending = concat_samples(self._blocks)
        full = self._num_pending - self._num_pending % self._limits.max_samples
        batches = [
            built
            for at in range(0, full, self._limits.max_samples)
            for built in self._cut(slice_samples(pending, at, at + self._limits.max_samples), now_ms=now_ms)
        ]
        self._blocks = [slice_samples(pending, full, pending.num_samples)] if full < pending.num_samples else []
        self._num_pending -= full
        return Added(batches, too_large)

    def flush(self, *, now_ms: int) -> list[BuiltBatch]:
        """Cut what is left."""
        if not self._num_pending:
            return []
        pending = concat_samples(self._blocks)
        self._blocks, self._num_pending = [], 0
        return self._cut(pending, now_ms=now_ms)

    def _cut(self, block: SampleBlock, *, now_ms: int) -> list[BuiltBatch]:
        """One batch, or several where one would be too large."""
        batch, values = self._build(block, now_ms=now_ms)
        payload = encode(batch, self._schema)
        if len(payload) > self._limits.max_bytes and block.num_samples > 1:
            middle = block.num_samples // 2
            first = self._cut(slice_samples(block, 0, middle), now_ms=now_ms)
            return first + self._cut(slice_samples(block, middle, block.num_samples), now_ms=now_ms)
        self._indexer.ship(values)
        self.seq += block.num_samples
        return [BuiltBatch(payload, block.num_samples, batch_stats(batch), tuple(values), block.event_times_ms)]

    def _build(self, block: SampleBlock, *, now_ms: int) -> tuple[Batch, list[ShippedValue]]:
        distinct = {group.name: self._distinct(block, group) for group in self._schema.groups}
        indexed = self._indexer.index(distinct)
        meta = BatchMeta(
            format_version=FORMAT_VERSION,
            schema_digest=self._schema.digest(),
            generation=indexed.generation,
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
            sample_ids=sample_id(self._partition, block.offsets),
            event_times_ms=block.event_times_ms,
            append_times_ms=block.append_times_ms,
            groups={group.name: slice_group(indexed.groups[group.name], group) for group in self._schema.groups},
            meta=meta,
        )
        return batch, indexed.values

    def _without_too_large(self, block: SampleBlock) -> tuple[SampleBlock, list[LargeSample]]:
        room = self._limits.max_bytes - ENVELOPE_BYTES
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

    def _sizes(self, block: SampleBlock) -> Int64:
        """int64[S]: bytes of each sample's rows, after the transforms."""
        sizes = np.zeros(block.num_samples, np.int64)
        for group in self._schema.groups:
            made = self._distinct(block, group)
            sizes += row_bytes(made.group.rows, group)[made.group.inverse]
        return sizes

    def _distinct(self, block: SampleBlock, group: GroupSchema) -> Deduplicated:
        rows, salt = block.groups[group.name], self._indexer.salt(group.name)
        return self._transforms.distinct(rows, group=group.name, salt=salt)


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
    """Samples [start, stop)."""
    if start == 0 and stop >= block.num_samples:
        return block
    return take_samples(block, np.arange(start, min(stop, block.num_samples)))


def take_samples(block: SampleBlock, indices: Int64) -> SampleBlock:
    """Samples `indices`, in that order."""
    return SampleBlock(
        offsets=block.offsets[indices],
        event_times_ms=block.event_times_ms[indices],
        append_times_ms=block.append_times_ms[indices],
        labels=block.labels[indices],
        weights=block.weights[indices],
        scores=block.scores[indices],
        groups={name: rows.select(indices) for name, rows in block.groups.items()},
    )
