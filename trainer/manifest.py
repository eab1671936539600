"""The files of a version: what a manifest says, how tables lie in it, and how both are written and put together."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np
import safetensors.numpy
import xxhash

MANIFEST = "manifest.json"
DENSE = "dense.safetensors"
END = b'"}'
DIGEST_CHARS = 32
FILE_BYTES = 256 << 20
"""A file of tables is closed when it has grown beyond this: bounds what writing holds twice."""

FileName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_\-][A-Za-z0-9_.\-]*$", max_length=250)]
Count = Annotated[int, msgspec.Meta(ge=0)]


class VersionError(Exception):
    """A version cannot be written, read or used; the message names version, file and what is wrong with it."""


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A JSON object; unknown keys are refused."""


class FileEntry(Record, frozen=True):
    """What a file must be: its length and the xxh3-128 digest of its bytes, in hex."""

    bytes: Count
    xxh3_128: str


class ShardEntry(Record, frozen=True):
    """Where a part of a table lies, and the row and column of the table at which it begins."""

    file: FileName
    tensor: str
    row: Count
    col: Count


class TableEntry(Record, frozen=True):
    """A table of `rows` by `dim`, which its shards cover exactly once."""

    name: str
    rows: Count
    dim: Count
    shards: tuple[ShardEntry, ...]


class Manifest(Record, frozen=True):
    """All that a version says about itself. Another `kind` (deltas) gets a type of its own beside this one."""

    format: Literal[1]
    version: Count
    kind: Literal["full"]
    step: int
    samples: int
    stream_time_ms: int
    weights_ms: int
    published_ms: int
    config: dict[str, Any]
    files: dict[FileName, FileEntry]
    tables: tuple[TableEntry, ...]
    digest: str
    """xxh3-128 of the manifest's own bytes before this value, which ends it."""


@dataclass(frozen=True)
class TableShard:
    """A rectangle of one embedding table, as one rank holds it."""

    table: str
    rows: int
    """Of the full table."""
    dim: int
    """Of the full table."""
    row: int
    """Where the rectangle begins in the full table."""
    col: int
    weights: np.ndarray
    """float32[shard rows, shard columns]"""


@dataclass(frozen=True)
class Snapshot:
    """The weights of one moment, on the host, and what they stand for."""

    step: int
    samples: int
    """Trained since the beginning."""
    stream_time_ms: int
    """Greatest event time among them."""
    weights_ms: int
    """Wall clock when the weights were taken."""
    dense: dict[str, np.ndarray]
    """By the module's state_dict name."""
    shards: list[TableShard]
    config: dict[str, Any]
    """What a server builds the model from, as plain JSON values: features, derived, labels, model."""


def version_files(snapshot: Snapshot, *, version: int) -> Iterator[tuple[str, bytes]]:
    """All files of a version in the order of writing, one at a time in memory, the manifest last."""
    parts = _parts(snapshot.shards)
    tables = _table_entries(parts)
    tensors = {DENSE: {key: np.ascontiguousarray(value) for key, value in snapshot.dense.items()}}
    tensors |= {file: {_tensor(s): np.ascontiguousarray(s.weights) for s in shards} for file, shards in parts.items()}
    entries: dict[str, FileEntry] = {}
    for file, content in tensors.items():
        data = safetensors.numpy.save(content)
        entries[file] = FileEntry(bytes=len(data), xxh3_128=xxhash.xxh3_128_hexdigest(data))
        yield file, data
    manifest = Manifest(
        format=1,
        version=version,
        kind="full",
        step=snapshot.step,
        samples=snapshot.samples,
        stream_time_ms=snapshot.stream_time_ms,
        weights_ms=snapshot.weights_ms,
        published_ms=time.time_ns() // 1_000_000,
        config=snapshot.config,
        files=entries,
        tables=tables,
        digest="",
    )
    yield MANIFEST, _with_digest(msgspec.json.encode(manifest))


def check_digest(data: bytes, *, what: str) -> None:
    """VersionError unless a manifest's bytes are those that were written."""
    body = data[: -DIGEST_CHARS - len(END)]
    if data != body + xxhash.xxh3_128_hexdigest(body).encode() + END:
        raise VersionError(f"{what}: its bytes do not match their digest")


def _with_digest(data: bytes) -> bytes:
    body = data.removesuffix(END)
    return body + xxhash.xxh3_128_hexdigest(body).encode() + END


def _parts(shards: Sequence[TableShard]) -> dict[str, list[TableShard]]:
    """The shards by the file that they go to."""
    parts: dict[str, list[TableShard]] = {}
    room = 0
    for shard in shards:
        if room <= 0:
            part = parts.setdefault(f"tables-{len(parts):04d}.safetensors", [])
            room = FILE_BYTES
        part.append(shard)
        room -= shard.weights.nbytes
    return parts


def _table_entries(parts: dict[str, list[TableShard]]) -> tuple[TableEntry, ...]:
    shapes: dict[str, tuple[int, int]] = {}
    entries: dict[str, list[ShardEntry]] = {}
    areas: dict[str, list[Area]] = {}
    for file, shards in parts.items():
        for shard in shards:
            if shard.weights.dtype != np.float32 or shard.weights.ndim != 2:
                raise VersionError(f"table {shard.table}: expected float32[rows, columns], got {shard.weights.dtype}")
            if shapes.setdefault(shard.table, (shard.rows, shard.dim)) != (shard.rows, shard.dim):
                raise VersionError(f"table {shard.table}: its shards do not agree on its shape")
            entry = ShardEntry(file=file, tensor=_tensor(shard), row=shard.row, col=shard.col)
            entries.setdefault(shard.table, []).append(entry)
            areas.setdefault(shard.table, []).append(Area(shard.row, shard.col, *shard.weights.shape))
    for table, (rows, dim) in shapes.items():
        _check_cover(table, Area(0, 0, rows, dim), areas[table])
    return tuple(
        TableEntry(name=table, rows=rows, dim=dim, shards=tuple(entries[table]))
        for table, (rows, dim) in shapes.items()
    )


class Area(NamedTuple):
    """A rectangle of a table."""

    row: int
    col: int
    rows: int
    cols: int

    def overlaps(self, other: Area) -> bool:
        """Whether both hold some element."""
        return max(self.row, other.row) < min(self.row + self.rows, other.row + other.rows) and max(
            self.col, other.col
        ) < min(self.col + self.cols, other.col + other.cols)

    def within(self, other: Area) -> bool:
        """Whether all of it lies in the other."""
        return (
            self.row >= other.row
            and self.col >= other.col
            and self.row + self.rows <= other.row + other.rows
            and self.col + self.cols <= other.col + other.cols
        )


def _check_cover(table: str, whole: Area, parts: list[Area]) -> None:
    """Every element of the table stands in exactly one shard."""
    if any(not part.within(whole) for part in parts):
        raise VersionError(f"table {table}: a shard lies outside of its {whole.rows} x {whole.cols}")
    if any(a.overlaps(b) for a, b in itertools.combinations(parts, 2)):
        raise VersionError(f"table {table}: two shards overlap")
    if sum(part.rows * part.cols for part in parts) != whole.rows * whole.cols:
        raise VersionError(f"table {table}: its shards do not cover its {whole.rows} x {whole.cols}")


def assemble(table: TableEntry, tensors: Mapping[str, Mapping[str, np.ndarray]]) -> np.ndarray:
    parts = [(shard, tensors[shard.file][shard.tensor]) for shard in table.shards]
    if any(part.ndim != 2 or part.dtype != np.float32 for _, part in parts):
        raise VersionError(f"table {table.name}: a shard is not float32[rows, columns]")
    areas = [Area(shard.row, shard.col, *part.shape) for shard, part in parts]
    _check_cover(table.name, Area(0, 0, table.rows, table.dim), areas)
    if len(parts) == 1:
        return parts[0][1]
    full = np.empty((table.rows, table.dim), dtype=np.float32)
    for area, (_, part) in zip(areas, parts, strict=True):
        full[area.row : area.row + area.rows, area.col : area.col + area.cols] = part
    return full


def _tensor(shard: TableShard) -> str:
    return f"{shard.table}@{shard.row},{shard.col}"
