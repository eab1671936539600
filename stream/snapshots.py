"""When the open sessions of a partition are written down, and which part of them: events once, the rest every time.

A decoded event does not change while its session is open, so it is written to one segment, and a later snapshot says
only which events of it are still held. A segment of which fewer than half are held is given up: those that are left
go into the newest segment. So at most two events are written for one that is held, and at most twice as many read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from dedup_cache.arrays import Bool, Int64
from stream.pipeline import PartitionPipeline
from stream.snapshot_format import BlobRef, Head, SnapshotRef, checksum, encode_events, encode_head

OPEN_SHARE = 8
"""The log that a restore replays is at most this fraction of the events that it loads, or `every_events`."""
MOST_SEGMENTS = 256
SEGMENT_EVENTS = 100_000
"""A transaction takes at most so many events into a segment, lest it time out; the rest has to wait for the next."""


@dataclass(frozen=True, slots=True)
class SnapshotLimits:
    """How often, and in records of which size."""

    every_events: int
    """0: never."""
    chunk_bytes: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """One record of the snapshots topic."""

    key: bytes
    value: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Events that were written, and where."""

    ref: BlobRef
    offsets: Int64
    """int64[N], ascending source offsets."""


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """What of a segment is held."""

    segment: Segment
    mask: Bool
    """bool[N]: which of its events."""
    places: Int64
    """Where they stand among all that are held."""


@dataclass(frozen=True, slots=True)
class Restored:
    """The snapshot that a pipeline was restored from, as far as the next ones build on it."""

    position: int
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class SnapshotPart:
    """What goes into a transaction; without `ref` it is the beginning of a snapshot that a later one completes."""

    chunks: tuple[Chunk, ...] = ()
    ref: SnapshotRef | None = None


class Snapshots:
    """The snapshots of one owned partition. What it hands out is taken for committed: after an abort make a new one."""

    def __init__(
        self, partition: int, *, limits: SnapshotLimits, next_offset: int, restored: Restored | None = None
    ) -> None:
        self._partition = partition
        self._limits = limits
        self._segments = list(restored.segments) if restored else []
        self._position = restored.position if restored else 0
        self.next_offset = next_offset
        """Offset in the snapshots topic behind which the next record will stand."""

    def forget(self) -> None:
        """The sessions were closed and begin anew."""
        self._segments = []

    def take(self, pipeline: PartitionPipeline, *, commit: int) -> SnapshotPart:
        """What the commit with this number should hold; nothing while the log to replay is short."""
        if not self._due(pipeline):
            return SnapshotPart()
        held = pipeline.held_offsets()
        kept = self._worth_keeping(held)
        is_new = np.ones(held.shape[0], np.bool_)
        for one in kept:
            is_new[one.places] = False
        fresh = held[is_new]
        part, complete = fresh[:SEGMENT_EVENTS], fresh.shape[0] <= SEGMENT_EVENTS
        chunks: list[Chunk] = []
        self._segments, masks = [one.segment for one in kept], [one.mask for one in kept]
        if part.size:
            ref = self._blob(encode_events(pipeline.held_events(part)), name=f"{commit}/events", chunks=chunks)
            self._segments.append(Segment(ref, part))
            masks.append(np.ones(part.size, np.bool_))
        if not complete:
            return SnapshotPart(tuple(chunks))
        state = pipeline.state()
        head = encode_head(Head(state, tuple(segment.ref for segment in self._segments), tuple(masks)))
        ref = self._blob(head, name=f"{commit}/head", chunks=chunks)
        self._position = state.position
        taken = SnapshotRef(state.position, held.shape[0], state.sessions.keys.shape[0], ref)
        return SnapshotPart(tuple(chunks), taken)

    def _due(self, pipeline: PartitionPipeline) -> bool:
        """Whether the log behind the last snapshot, or behind C where that is later, has become long."""
        if not self._limits.every_events:
            return False
        behind = pipeline.position - max(self._position, pipeline.commit_point().offset)
        return behind >= max(self._limits.every_events, pipeline.open_events // OPEN_SHARE)

    def _worth_keeping(self, held: Int64) -> list[_Kept]:
        """Segments of which at least half is held; of too many the largest half."""
        found = [_find(segment, held) for segment in self._segments]
        kept = [one for one in found if 2 * one.places.shape[0] >= one.mask.shape[0]]
        if len(kept) >= MOST_SEGMENTS:
            kept = sorted(kept, key=lambda one: -one.places.shape[0])[: MOST_SEGMENTS // 2]
        return kept

    def _blob(self, data: bytes, *, name: str, chunks: list[Chunk]) -> BlobRef:
        size = self._limits.chunk_bytes
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        name = f"{self._partition}/{name}"
        chunks += [Chunk(f"{name}/{i}".encode(), piece) for i, piece in enumerate(pieces)]
        return BlobRef(name, self.next_offset, len(pieces), len(data), checksum(data))


def _find(segment: Segment, held: Int64) -> _Kept:
    """Look its events up among `held`, ascending."""
    places = np.searchsorted(held, segment.offsets)
    mask: Bool = np.zeros(segment.offsets.shape[0], np.bool_)
    inside = places < held.shape[0]
    mask[inside] = held[places[inside]] == segment.offsets[inside]
    return _Kept(segment, mask, places[mask])


def chunks_of(refs: Iterable[BlobRef]) -> dict[bytes, tuple[str, int]]:
    """By record key, the blob and the number of each chunk."""
    return {f"{ref.name}/{i}".encode(): (ref.name, i) for ref in refs for i in range(ref.chunks)}
