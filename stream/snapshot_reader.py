"""A snapshot back from its topic."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from stream.columns import ImpressionColumns
from stream.config import KafkaConfig
from stream.events import EventBlock
from stream.kafka import OffsetOutOfRange, Reader
from stream.pipeline import PipelineState
from stream.snapshot_format import (
    BlobRef,
    SnapshotError,
    SnapshotRef,
    checksum,
    decode_events,
    decode_head,
    join,
    select,
)
from stream.snapshots import Restored, Segment, chunks_of

POLL_MS = 50
PATIENCE_S = 3.0
"""How long chunks are waited for that the journal names: the outcome of a transaction arrives topic by topic."""
MAX_CHUNKS = 16
SKIP_RECORDS = 8
"""Records that are rather read and dropped than jumped over."""


@dataclass(frozen=True, slots=True, eq=False)
class LoadedSnapshot:
    """Everything a pipeline held, and on what the next snapshots build."""

    state: PipelineState
    events: EventBlock
    restored: Restored


def load_snapshot(
    kafka: KafkaConfig,
    topic: str,
    *,
    topic_partition: int,
    ref: SnapshotRef,
    like: ImpressionColumns,
    on_wait: Callable[[], object] = lambda: None,
) -> LoadedSnapshot:
    """Read the head and its segments; `like` are impressions as the configuration makes them.

    Raises SnapshotError (missing, damaged, of another format), TopicMissing.
    """
    blocks, segments = [], []
    try:
        with Reader(kafka, topic=topic, positions={topic_partition: ref.head.start}, bulk=True) as reader:
            blobs = _Blobs(reader, topic_partition, on_wait)
            (head_blob,) = blobs.read([ref.head])
            head = decode_head(head_blob)
            parts = sorted(zip(head.segments, head.held, strict=True), key=lambda part: part[0].start)
            for (segment, held), blob in zip(parts, blobs.read([segment for segment, _ in parts]), strict=True):
                # The client fetches and decompresses what comes next in threads of its own.
                block = decode_events(blob, like=like)
                segments.append(Segment(segment, block.rows["offset"].copy()))
                blocks.append(select(block, held))
    except OffsetOutOfRange as error:
        raise SnapshotError(f"no longer in the topic: {error}") from None
    if head.state.position != ref.position:
        raise SnapshotError(f"head: of position {head.state.position}, the journal says {ref.position}")
    return LoadedSnapshot(head.state, join(blocks, like=like), Restored(ref.position, tuple(segments)))


class _Blobs:
    """Reads blobs in the order of their starts, with one consumer."""

    def __init__(self, reader: Reader, partition: int, on_wait: Callable[[], object]) -> None:
        self._reader = reader
        self._partition = partition
        self._on_wait = on_wait

    def read(self, refs: Sequence[BlobRef]) -> Iterator[bytes]:
        """The bytes of each, which must ascend by `start`."""
        if not refs:
            return
        self._reader.seek(self._partition, refs[0].start)
        wanted = chunks_of(refs)
        parts: dict[str, list[bytes | None]] = {ref.name: [None] * ref.chunks for ref in refs}
        for ref in refs:
            yield self._one(ref, wanted, parts)

    def _one(self, ref: BlobRef, wanted: dict[bytes, tuple[str, int]], parts: dict[str, list[bytes | None]]) -> bytes:
        mine = parts[ref.name]
        if not any(mine) and ref.start - self._reader.positions()[self._partition] > SKIP_RECORDS:
            self._reader.seek(self._partition, ref.start)
        deadline = time.monotonic() + PATIENCE_S
        while None in mine:
            self._on_wait()
            messages = self._reader.poll(max_messages=MAX_CHUNKS, timeout_ms=POLL_MS)
            for message in messages:
                place = wanted.get(message.key or b"")
                if place is not None and place[0] in parts:
                    parts[place[0]][place[1]] = message.value
            if messages:
                deadline = time.monotonic() + PATIENCE_S
            elif time.monotonic() > deadline:
                raise SnapshotError(f"{ref.name}: {mine.count(None)} of {ref.chunks} records are not in the topic")
        data = b"".join(part or b"" for part in parts.pop(ref.name))
        if len(data) != ref.size or checksum(data) != ref.checksum:
            raise SnapshotError(f"{ref.name}: {len(data)} bytes that are not those the journal names")
        return data
