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
from dedup_cache.jagged import concat_columns
from dedup_cache.wire import CHECKSUM_AT, CHECKSUM_END, Wire, read, write
from stream.columns import ImpressionColumns
from stream.events import EVENT, IMPRESSION, EventBlock
from stream.pipeline import PipelineState
from stream.sessions import OpenSessions
from stream.snapshot_columns import ColumnError, ColumnReader, ColumnWriter

FORMAT_VERSION = 2
"""Goes up when these columns change, or what decoding puts into them: older snapshots are then not used."""


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
    state, writer = head.state, ColumnWriter()
    writer.integers("facts", np.array([state.position, state.watermark_ms, state.max_event_time_ms], np.int64))
    for name in OpenSessions.__slots__:
        writer.integers(f"sessions.{name}", getattr(state.sessions, name))
    for i, held in enumerate(head.held):
        writer.flags(f"held.{i}", held)
    segments = msgspec.json.encode(head.segments).decode()
    texts = {"format": f"head {FORMAT_VERSION}", "columns": writer.layout(), "segments": segments}
    return write(writer.arrays, texts)


def decode_head(blob: bytes) -> Head:
    """Raises SnapshotError."""
    wire = _read(blob, "head")
    try:
        segments = msgspec.json.decode(wire.metadata["segments"], type=tuple[BlobRef, ...])
        reader = ColumnReader(wire.arrays, wire.metadata["columns"])
        position, watermark_ms, max_event_time_ms = reader.integers("facts").tolist()
        held = tuple(reader.flags(f"held.{i}") for i in range(len(segments)))
        sessions = OpenSessions(*(reader.integers(f"sessions.{name}") for name in OpenSessions.__slots__))
        for name in OpenSessions.__slots__:
            _check_rows(f"sessions.{name}", getattr(sessions, name), rows=sessions.keys.shape[0])
    except (msgspec.MsgspecError, KeyError, ValueError) as error:
        raise SnapshotError(f"head: {type(error).__name__}: {error}") from None
    return Head(PipelineState(position, watermark_ms, max_event_time_ms, sessions), segments, held)


def encode_events(events: EventBlock) -> bytes:
    """One segment as a blob.

    Records' own bytes are written of engagements only, which may come to be `unmatched`; of an impression, which leaves
    as a reject only where sessions merge, they are read again from the log.
    """
    rows, columns, writer = events.rows, events.impressions, ColumnWriter()
    for name in EVENT.fields or ():
        _write_vector(writer, f"row.{name}", rows[name])
    writer.integers("keys", events.keys)
    engagements = rows["kind"] != IMPRESSION
    writer.texts("record_keys", events.record_keys[engagements])
    writer.texts("values", events.values[engagements])
    for name in ("ids", "has_id"):
        matrix = getattr(columns, name)
        for j in range(matrix.shape[1]):
            _write_vector(writer, f"{name}.{j}", matrix[:, j])
    for i, jagged in enumerate(columns.lists):
        writer.lists(f"list.{i}", jagged)
    arrays = writer.arrays | {"dense": columns.dense, "scores": columns.scores}
    return write(arrays, {"format": f"events {FORMAT_VERSION}", "columns": writer.layout(), "shape": _shape(columns)})


def decode_events(blob: bytes, *, like: ImpressionColumns) -> EventBlock:
    """A segment whose impressions have the columns of `like`; values are None but of engagements.

    Raises SnapshotError.
    """
    wire = _read(blob, "events")
    if (found := wire.metadata.get("shape")) != (made := _shape(like)):
        raise SnapshotError(f"events: {found}, the configuration makes {made}")
    try:
        reader = ColumnReader(wire.arrays, wire.metadata["columns"])
        keys = reader.integers("keys")
        rows = np.empty(keys.shape[0], EVENT)
        for name in EVENT.fields or ():
            rows[name] = _read_vector(reader, f"row.{name}", EVENT[name], rows=keys.shape[0])
        engagements = rows["kind"] != IMPRESSION
        shown = keys.shape[0] - int(np.count_nonzero(engagements))
        return EventBlock(
            rows=rows,
            keys=keys,
            record_keys=_read_texts(reader, "record_keys", engagements),
            values=_read_texts(reader, "values", engagements),
            impressions=ImpressionColumns(
                dense=_matrix(wire, "dense", like.dense, rows=shown),
                ids=_read_matrix(reader, "ids", like.ids, rows=shown),
                has_id=_read_matrix(reader, "has_id", like.has_id, rows=shown),
                lists=tuple(_read_lists(reader, f"list.{i}", rows=shown) for i in range(len(like.lists))),
                scores=_matrix(wire, "scores", like.scores, rows=shown),
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
            lists=tuple(concat_columns([one.lists[i] for one in columns]) for i in range(len(like.lists))),
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


def _read(blob: bytes, kind: str) -> Wire:
    try:
        wire = read(blob)
    except BatchError as error:
        raise SnapshotError(f"{kind}: {error}") from None
    if (found := wire.metadata.get("format")) != f"{kind} {FORMAT_VERSION}":
        raise SnapshotError(f"{kind}: format {found!r}, this worker knows {kind} {FORMAT_VERSION}")
    return wire


def _matrix(wire: Wire, name: str, like: AnyArray, *, rows: int) -> AnyArray:
    array = wire.arrays[name]
    if array.dtype != like.dtype or array.ndim != like.ndim or array.shape[1:] != like.shape[1:]:
        raise SnapshotError(f"{name}: {array.dtype}{array.shape}, the configuration makes {like.dtype}{like.shape}")
    _check_rows(name, array, rows=rows)
    return array


def _check_rows(name: str, array: AnyArray, *, rows: int) -> None:
    """Kernels look at no bounds, and numpy would spread one value over all rows."""
    if array.shape[0] != rows:
        raise ColumnError(f"{name}: {array.shape[0]} rows, expected {rows}")


def _shape(columns: ImpressionColumns) -> str:
    """What has to agree with the configuration, for people too."""
    widths = {name: getattr(columns, name).shape[1] for name in ("dense", "ids", "scores")}
    return ", ".join(f"{count} {name}" for name, count in (*widths.items(), ("lists", len(columns.lists))))


def _write_vector(writer: ColumnWriter, name: str, vector: AnyArray) -> None:
    if vector.dtype == np.bool_:
        writer.flags(name, vector)
    else:
        writer.integers(name, vector)


def _read_vector(reader: ColumnReader, name: str, dtype: np.dtype[np.generic], *, rows: int) -> AnyArray:
    vector: AnyArray = reader.flags(name) if dtype == np.bool_ else reader.integers(name)
    _check_rows(name, vector, rows=rows)
    return vector


def _read_texts(reader: ColumnReader, name: str, where: Bool) -> AnyArray:
    """object[N], None where not `where` bool[N]."""
    texts, found = np.empty(where.shape[0], object), reader.texts(name)
    _check_rows(name, found, rows=int(np.count_nonzero(where)))
    texts[where] = found
    return texts


def _read_lists(reader: ColumnReader, name: str, *, rows: int) -> Jagged:
    column = reader.lists(name)
    _check_rows(name, column.starts, rows=rows)
    return column


def _read_matrix(reader: ColumnReader, name: str, like: AnyArray, *, rows: int) -> AnyArray:
    """The columns of a matrix [rows, as many as `like`]."""
    matrix = np.empty((rows, like.shape[1]), like.dtype)
    for j in range(like.shape[1]):
        matrix[:, j] = _read_vector(reader, f"{name}.{j}", like.dtype, rows=rows)
    return matrix
