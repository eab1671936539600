"""One training batch: per-sample columns, deduplicated feature groups, and where it came from.

Letters in shapes: B samples, U distinct rows of a group, N ids, L labels, D dense columns.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

import numpy as np

from dedup_cache import wire
from dedup_cache.arrays import AnyArray, Float32, Int64, UInt64
from dedup_cache.errors import BatchError
from dedup_cache.group_checks import check_group
from dedup_cache.ikjt import Group
from dedup_cache.jagged import Jagged, Rows
from dedup_cache.schema import BatchSchema, GroupSchema

FORMAT_VERSION = 1
INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")


@dataclass(frozen=True, slots=True)
class BatchMeta:
    """Where a batch came from.

    Offsets are those of the records of the sampled impressions; `seq` is the number of samples of the partition emitted
    before this batch; `written_ms` is the wall clock that the writer was handed.
    """

    format_version: int
    schema_digest: str
    generation: str
    source_topic: str
    source_partition: int
    first_offset: int
    last_offset: int
    seq: int
    min_event_time_ms: int
    max_event_time_ms: int
    written_ms: int


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Columns of B samples, and the feature groups by name.

    labels float32[B, L], weights float32[B], scores float32[B, L] (a probability logged for comparison, NaN: none),
    sample_ids uint64[B], event_times_ms and append_times_ms int64[B].
    """

    labels: Float32
    weights: Float32
    scores: Float32
    sample_ids: UInt64
    event_times_ms: Int64
    append_times_ms: Int64
    groups: dict[str, Group]
    meta: BatchMeta

    @property
    def num_samples(self) -> int:
        """Number of samples B."""
        return int(self.labels.shape[0])


def encode(batch: Batch, schema: BatchSchema) -> bytes:
    """Return the batch as safetensors bytes (see `wire`), the same bytes for the same batch.

    BatchError names the field that a reader would refuse.
    """
    _assemble(wire.Wire(_metadata(batch.meta), batch_arrays(batch)), schema)
    return encode_sound(batch)


def encode_sound(batch: Batch) -> bytes:
    """The same for a batch that is sound because of how it was made: looking at it costs as much as writing it."""
    return wire.write(batch_arrays(batch), _metadata(batch.meta))


def decode(data: bytes, schema: BatchSchema) -> Batch:
    """Return the batch in `data`, its arrays read-only views of the bytes.

    BatchError names the field of anything that was not written exactly so by `encode` for this schema.
    """
    return _assemble(wire.read(data), schema)


def batch_arrays(batch: Batch) -> dict[str, AnyArray]:
    """Return every array of the batch by its name on the wire."""
    arrays = sample_arrays(batch)
    for group_name, group in batch.groups.items():
        field = f"group/{group_name}/"
        arrays |= {field + name: array for name, array in group_arrays(group).items()}
    return arrays


def sample_arrays(batch: Batch) -> dict[str, AnyArray]:
    """Return the arrays that do not belong to a group, by their names on the wire."""
    return {
        "labels": batch.labels,
        "weights": batch.weights,
        "scores": batch.scores,
        "sample_ids": batch.sample_ids,
        "event_times_ms": batch.event_times_ms,
        "append_times_ms": batch.append_times_ms,
    }


def _metadata(meta: BatchMeta) -> dict[str, str]:
    return {name: str(getattr(meta, name)) for name in BatchMeta.__slots__}


def group_arrays(group: Group) -> dict[str, AnyArray]:
    """Return the arrays of a group by their names within it."""
    arrays: dict[str, AnyArray] = {"inverse": group.inverse, "dense": group.rows.dense}
    for name, column in group.rows.lists.items():
        arrays[f"list/{name}/values"] = column.values
        arrays[f"list/{name}/starts"] = column.starts
        arrays[f"list/{name}/lengths"] = column.lengths
    if group.ids is not None:
        arrays["ids"] = group.ids
    if group.checks is not None:
        arrays["checks"] = group.checks
    if group.inline is not None:
        arrays["inline"] = group.inline
    return arrays


def _assemble(parts: wire.Wire, schema: BatchSchema) -> Batch:
    """Build a batch from arrays by name, checking everything; used by the writer as well as by the reader."""
    meta = _meta(parts.metadata, schema)
    take = _Arrays(parts.arrays)
    labels = take("labels", np.float32, (None, len(schema.labels)))
    size = labels.shape[0]
    batch = Batch(
        labels=labels,
        weights=take("weights", np.float32, (size,)),
        scores=take("scores", np.float32, labels.shape),
        sample_ids=take("sample_ids", np.uint64, (size,)),
        event_times_ms=take("event_times_ms", np.int64, (size,)),
        append_times_ms=take("append_times_ms", np.int64, (size,)),
        groups={group.name: _group(take, group, size) for group in schema.groups},
        meta=meta,
    )
    take.finish()
    _check_samples(batch)
    for name, group in batch.groups.items():
        check_group(group, f"group/{name}")
    return batch


def _group(take: _Arrays, schema: GroupSchema, num_samples: int) -> Group:
    field = f"group/{schema.name}"
    inverse = take(f"{field}/inverse", np.int32, (num_samples,))
    dense = take(f"{field}/dense", np.float32, (None, len(schema.dense)))
    num_rows = dense.shape[0]
    lists = {
        name: Jagged(
            take(f"{field}/list/{name}/values", np.int64, (None,)),
            take(f"{field}/list/{name}/starts", np.int32, (num_rows,)),
            take(f"{field}/list/{name}/lengths", np.int32, (num_rows,)),
        )
        for name in schema.lists
    }
    rows = Rows(dense, lists)
    if not any(f"{field}/{part}" in take.arrays for part in ("ids", "checks", "inline")):
        return Group(rows, inverse)
    ids = take(f"{field}/ids", np.int64, (num_rows,))
    checks = take(f"{field}/checks", np.uint32, (num_rows,))
    return Group(rows, inverse, ids, checks, take(f"{field}/inline", np.bool_, (num_rows,)))


class _Arrays:
    """Hands out arrays by name, checked; `finish` refuses what nobody asked for."""

    def __init__(self, arrays: dict[str, AnyArray]) -> None:
        self.arrays = arrays

    def __call__(self, name: str, dtype: type[np.generic], shape: tuple[int | None, ...]) -> AnyArray:
        array = self.arrays.pop(name, None)
        if array is None:
            raise BatchError(name, "missing")
        if array.dtype != dtype:
            raise BatchError(name, f"expected {np.dtype(dtype)}, got {array.dtype}")
        wanted = [size if size is not None else got for size, got in zip(shape, array.shape, strict=False)]
        if len(array.shape) != len(shape) or list(array.shape) != wanted:
            raise BatchError(name, f"expected shape {_shape_text(shape)}, got {_shape_text(array.shape)}")
        return array

    def finish(self) -> None:
        """Raise BatchError if an array is left over."""
        for name in sorted(self.arrays):
            raise BatchError(name, "the schema has no such array")


def _shape_text(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"


def _meta(metadata: dict[str, str], schema: BatchSchema) -> BatchMeta:
    version = metadata.get("format_version", "none")
    if version != str(FORMAT_VERSION):
        raise BatchError("format_version", f"this reader knows version {FORMAT_VERSION}, the batch has {version!r}")
    if metadata.get("schema_digest") != schema.digest():
        digest = metadata.get("schema_digest", "none")
        raise BatchError(
            "schema_digest", f"the batch was made for schema {digest!r}, the reader has {schema.digest()!r}"
        )
    names = {item.name for item in fields(BatchMeta)}
    for name in sorted(names ^ metadata.keys()):
        raise BatchError(name, "missing" if name in names else "the format has no such metadata")
    integers = {
        name: _integer(name, metadata[name]) for name in names - {"schema_digest", "generation", "source_topic"}
    }
    meta = BatchMeta(
        schema_digest=metadata["schema_digest"],
        generation=metadata["generation"],
        source_topic=metadata["source_topic"],
        **integers,
    )
    for name in ("source_partition", "seq"):
        if integers[name] < 0:
            raise BatchError(name, f"{integers[name]} is below 0")
    return meta


def _integer(name: str, text: str) -> int:
    value = int(text) if INTEGER.fullmatch(text) else 2**63
    if not -(2**63) <= value < 2**63:
        raise BatchError(name, f"expected a 64-bit integer, got {text[:40]!r}")
    return value


def _check_samples(batch: Batch) -> None:
    if not bool(np.isfinite(batch.labels).all()):
        raise BatchError("labels", "a label that is not a finite number")
    if not bool((np.isfinite(batch.weights) & (batch.weights >= 0)).all()):
        raise BatchError("weights", "a weight that is not a finite number of at least 0")
    scores = batch.scores
    if not bool((np.isnan(scores) | ((scores >= 0) & (scores <= 1))).all()):
        raise BatchError("scores", "a score that is neither NaN nor a probability")
