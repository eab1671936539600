"""Snapshots of open sessions as bytes: what a pipeline remembers, in columns, checksummed.

A snapshot is a head (the open sessions, and which events of which segments they hold) and segments (events as they
were decoded, which never change). Letters in shapes: N events, K sessions, G segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from dedup_cache import BatchError, Jagged
from dedup_cache.arrays import AnyArray, Bool, Int64
from dedup_cache.wire import CHECKSUM_AT, CHECKSUM_END, Wire, read, write
from stream.columns import ImpressionColumns
from stream.events import EVENT, IMPRESSION, EventBlock
from stream.pipeline import PipelineState
from stream.sessions import OpenSessions

FORMAT_VERSION = 1
"""Goes up when these columns change, or what decoding puts into them: older snapshots are then not used."""
MISSING = -1
"""The length of a record key that is none."""
ROW_TYPES = {"i": np.int64, "b": np.bool_}


class SnapshotError(Exception):
    """A snapshot cannot be used; the message says what is wrong with it. The log can be replayed instead."""


class BlobRef(msgspec.Struct, frozen=True, array_like=True):
    """Bytes in the snapshots topic: records with the keys `name/0`, `name/1`, ... at `start` or behind it."""

    name: str
    start: int
    chunks: int
    size: int
    checksum: str


class SnapshotRef(msgspec.Struct, frozen=True):
    """A snapshot as the journal names it."""

    position: int
    """Every record before this offset is in it."""
    events: int
    sessions: int
    head: BlobRef


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """What a snapshot says besides the events' columns."""

    state: PipelineState
    segments: tuple[BlobRef, ...]
    held: tuple[Bool, ...]
    """Per segment bool[N]: which of its events are held; the others have left since it was written."""


def checksum(blob: bytes) -> str:
    """The checksum that a blob carries, in hex."""
    return blob[CHECKSUM_AT:CHECKSUM_END].decode()


def encode_head(head: Head) -> bytes:
    """One blob."""
    state = head.state
    arrays = {f"sessions.{name}": getattr(state.sessions, name) for name in OpenSessions.__slots__}
    arrays |= {f"held.{i}": _words(np.packbits(held)) for i, held in enumerate(head.held)}
    facts = [state.position, state.watermark_ms, state.max_event_time_ms, *(held.size for held in head.held)]
    arrays["facts"] = np.array(facts, np.int64)
    segments = msgspec.json.encode(head.segments).decode()
    return write(arrays, {"format": f"head {FORMAT_VERSION}", "segments": segments})


def decode_head(blob: bytes) -> Head:
    """Raises SnapshotError."""
    wire = _read(blob, "head")
    try:
        segments = msgspec.json.decode(wire.metadata["segments"], type=tuple[BlobRef, ...])
        position, watermark_ms, max_event_time_ms, *sizes = wire.arrays["facts"].tolist()
        held = tuple(_bits(wire.arrays[f"held.{i}"], size) for i, size in enumerate(sizes))
        sessions = OpenSessions(*(_column(wire, f"sessions.{name}", np.int64) for name in OpenSessions.__slots__))
    except (msgspec.MsgspecError, KeyError, ValueError) as error:
        raise SnapshotError(f"head: {type(error).__name__}: {error}") from None
    if len(held) != len(segments):
        raise SnapshotError(f"head: {len(segments)} segments, {len(held)} masks")
    return Head(PipelineState(position, watermark_ms, max_event_time_ms, sessions), segments, held)


def encode_events(events: EventBlock) -> bytes:
    """One segment as a blob."""
    columns = events.impressions
    arrays: dict[str, AnyArray] = {
        f"row.{name}": events.rows[name].astype(_row_type(name), copy=False) for name in EVENT.fields or ()
    }
    arrays["keys"] = events.keys
    arrays["record_keys.lengths"], arrays["record_keys.bytes"] = _pack(events.record_keys)
    arrays["values.lengths"], arrays["values.bytes"] = _pack(events.values)
    arrays |= {name: getattr(columns, name) for name in ("dense", "ids", "has_id", "scores")}
    for i, jagged in enumerate(columns.lists):
        arrays[f"list.{i}.values"], arrays[f"list.{i}.lengths"] = jagged.compact()
    return write(arrays, {"format": f"events {FORMAT_VERSION}"})


def decode_events(blob: bytes, *, like: ImpressionColumns) -> EventBlock:
    """A segment whose impressions have the columns of `like`. Raises SnapshotError."""
    wire = _read(blob, "events")
    try:
        keys = _column(wire, "keys", np.int64)
        rows = np.empty(keys.shape[0], EVENT)
        for name in EVENT.fields or ():
            rows[name] = _column(wire, f"row.{name}", _row_type(name))
        lists = tuple(
            Jagged.from_lengths(
                _column(wire, f"list.{i}.values", np.int64), _column(wire, f"list.{i}.lengths", np.int32)
            )
            for i in range(len(like.lists))
        )
        return EventBlock(
            rows=rows,
            keys=keys,
            record_keys=_unpack(wire, "record_keys"),
            values=_unpack(wire, "values"),
            impressions=ImpressionColumns(
                dense=_matrix(wire, "dense", like.dense),
                ids=_matrix(wire, "ids", like.ids),
                has_id=_matrix(wire, "has_id", like.has_id),
                lists=lists,
                scores=_matrix(wire, "scores", like.scores),
            ),
        )
    except (KeyError, ValueError) as error:
        raise SnapshotError(f"events: {type(error).__name__}: {error}") from None


def select(events: EventBlock, held: Bool) -> EventBlock:
    """The events where `held` bool[N] is true."""
    if held.shape[0] != events.keys.shape[0]:
        raise SnapshotError(f"events: {events.keys.shape[0]} of them, but a mask of {held.shape[0]}")
    if held.all():
        return events
    impressions = np.flatnonzero(held[events.rows["kind"] == IMPRESSION])
    return _taken(events, np.flatnonzero(held), impressions)


def join(blocks: Sequence[EventBlock], *, like: ImpressionColumns) -> EventBlock:
    """All events of all blocks, by offset."""
    if not blocks:
        nothing = np.empty(0, object)
        return EventBlock(np.empty(0, EVENT), np.empty(0, np.int64), nothing, nothing, like)
    columns = [block.impressions for block in blocks]
    if len(blocks) == 1:
        return blocks[0]
    joined = EventBlock(
        rows=np.concatenate([block.rows for block in blocks]),
        keys=np.concatenate([block.keys for block in blocks]),
        record_keys=np.concatenate([block.record_keys for block in blocks]),
        values=np.concatenate([block.values for block in blocks]),
        impressions=ImpressionColumns(
            dense=np.concatenate([one.dense for one in columns]),
            ids=np.concatenate([one.ids for one in columns]),
            has_id=np.concatenate([one.has_id for one in columns]),
            lists=tuple(_joined([one.lists[i] for one in columns]) for i in range(len(like.lists))),
            scores=np.concatenate([one.scores for one in columns]),
        ),
    )
    offsets = joined.rows["offset"]
    if bool((offsets[1:] > offsets[:-1]).all()):
        return joined
    impressions = np.argsort(offsets[joined.rows["kind"] == IMPRESSION])
    return _taken(joined, np.argsort(offsets), impressions)


def _taken(events: EventBlock, places: Int64, impressions: Int64) -> EventBlock:
    columns = events.impressions
    return EventBlock(
        rows=events.rows[places],
        keys=events.keys[places],
        record_keys=events.record_keys[places],
        values=events.values[places],
        impressions=ImpressionColumns(
            dense=columns.dense[impressions],
            ids=columns.ids[impressions],
            has_id=columns.has_id[impressions],
            lists=tuple(jagged.select(impressions) for jagged in columns.lists),
            scores=columns.scores[impressions],
        ),
    )


def _joined(parts: Sequence[Jagged]) -> Jagged:
    compact = [part.compact() for part in parts]
    return Jagged.from_lengths(
        np.concatenate([values for values, _ in compact]), np.concatenate([lengths for _, lengths in compact])
    )


def _read(blob: bytes, kind: str) -> Wire:
    try:
        wire = read(blob)
    except BatchError as error:
        raise SnapshotError(f"{kind}: {error}") from None
    if (found := wire.metadata.get("format")) != f"{kind} {FORMAT_VERSION}":
        raise SnapshotError(f"{kind}: format {found!r}, this worker knows {kind} {FORMAT_VERSION}")
    return wire


def _column(wire: Wire, name: str, dtype: type[np.generic]) -> AnyArray:
    array = wire.arrays[name]
    if array.dtype != dtype or array.ndim != 1:
        raise SnapshotError(f"{name}: {array.dtype} with {array.ndim} dimensions")
    return array


def _matrix(wire: Wire, name: str, like: AnyArray) -> AnyArray:
    array = wire.arrays[name]
    if array.dtype != like.dtype or array.ndim != like.ndim or array.shape[1:] != like.shape[1:]:
        raise SnapshotError(f"{name}: {array.dtype}{array.shape}, the configuration makes {like.dtype}{like.shape}")
    return array


def _row_type(name: str) -> type[np.generic]:
    return ROW_TYPES[EVENT[name].kind]


def _pack(things: AnyArray) -> tuple[AnyArray, AnyArray]:
    """(int32[N] lengths, their bytes one behind the other)."""
    listed = things.tolist()
    lengths = np.fromiter((MISSING if one is None else len(one) for one in listed), np.int32, len(listed))
    joined = b"".join(one for one in listed if one is not None)
    return lengths, _words(np.frombuffer(joined, np.uint8))


def _unpack(wire: Wire, name: str) -> AnyArray:
    """object[N]: bytes, or None."""
    lengths = _column(wire, f"{name}.lengths", np.int32)
    ends = np.cumsum(np.maximum(lengths, 0), dtype=np.int64)
    data = _column(wire, f"{name}.bytes", np.uint32).tobytes()
    if lengths.size and int(ends[-1]) > len(data):
        raise SnapshotError(f"{name}: {len(data)} bytes, expected {ends[-1]}")
    things = np.empty(lengths.shape[0], object)
    begins = (ends - np.maximum(lengths, 0)).tolist()
    things[:] = [data[begin:end] for begin, end in zip(begins, ends.tolist(), strict=True)]
    things[lengths == MISSING] = None
    return things


def _words(data: AnyArray) -> AnyArray:
    """Bytes as uint32, filled up with zeros: the wire has no bytes."""
    return np.concatenate([data, np.zeros(-data.size % 4, np.uint8)]).view(np.uint32)


def _bits(words: AnyArray, size: int) -> Bool:
    return np.unpackbits(words.view(np.uint8), count=size).astype(np.bool_)
