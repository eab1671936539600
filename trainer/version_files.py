"""The files of a version: how tables lie in them, how they are written and put together."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import safetensors.numpy
import xxhash

from trainer.manifest import (
    DENSE,
    MANIFEST,
    FileEntry,
    Manifest,
    ShardEntry,
    Snapshot,
    TableEntry,
    TableShard,
    VersionError,
    with_digest,
)

IDS = "#ids"
FILE_BYTES = 256 << 20
"""A file of tables is closed when it has grown beyond this: bounds what writing holds twice."""


def version_files(snapshot: Snapshot, *, version: int) -> Iterator[tuple[str, bytes]]:
    """All files of a version in the order of writing, one at a time in memory, the manifest last."""
    parts = _parts(shard for shard in snapshot.shards if shard.ids is None or len(shard.ids))
    tables = _table_entries(snapshot, parts)
    tensors = {DENSE: {key: np.ascontiguousarray(value) for key, value in snapshot.dense.items()}}
    tensors |= {file: _tensors(shards) for file, shards in parts.items()}
    entries: dict[str, FileEntry] = {}
    for file, content in tensors.items():
        data = safetensors.numpy.save(content)
        entries[file] = FileEntry(bytes=len(data), xxh3_128=xxhash.xxh3_128_hexdigest(data))
        yield file, data
    manifest = Manifest(
        format=2,
        version=version,
        kind=snapshot.kind,
        lineage=snapshot.lineage,
        base=snapshot.base,
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
    yield MANIFEST, with_digest(msgspec.json.encode(manifest))


def _parts(shards: Iterable[TableShard]) -> dict[str, list[TableShard]]:
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


def _table_entries(snapshot: Snapshot, parts: Mapping[str, Sequence[TableShard]]) -> tuple[TableEntry, ...]:
    entries: dict[str, list[ShardEntry]] = {}
    for file, shards in parts.items():
        for shard in shards:
            name = tensor_name(shard)
            ids = "" if shard.ids is None else f"{name}{IDS}"
            entry = ShardEntry(file=file, tensor=name, row=shard.row, col=shard.col, ids=ids)
            entries.setdefault(shard.table, []).append(entry)
    return tuple(
        TableEntry(name=table, rows=rows, dim=dim, shards=tuple(entries.get(table, ())))
        for table, (rows, dim) in _checked_shapes(snapshot).items()
    )


def _checked_shapes(snapshot: Snapshot) -> dict[str, tuple[int, int]]:
    """Rows and dimension by table; VersionError unless the shards are what a version of this kind may hold."""
    shapes: dict[str, tuple[int, int]] = {}
    shards: dict[str, list[TableShard]] = {}
    for shard in snapshot.shards:
        what = f"table {shard.table}"
        if shard.weights.dtype != np.float32 or shard.weights.ndim != 2:
            raise VersionError(f"{what}: expected float32[rows, columns], got {shard.weights.dtype}")
        if shapes.setdefault(shard.table, (shard.rows, shard.dim)) != (shard.rows, shard.dim):
            raise VersionError(f"{what}: its shards do not agree on its shape")
        if (shard.ids is None) != (snapshot.kind == "full"):
            raise VersionError(f"{what}: a {snapshot.kind} version with a shard of another kind")
        shards.setdefault(shard.table, []).append(shard)
    for table, (rows, dim) in shapes.items():
        if snapshot.kind == "full":
            areas = [Area(shard.row, shard.col, *shard.weights.shape) for shard in shards[table]]
            _check_cover(table, Area(0, 0, rows, dim), areas)
        else:
            _check_rows(table, shards[table], rows=rows, dim=dim)
    return shapes


def _check_rows(table: str, shards: Sequence[TableShard], *, rows: int, dim: int) -> None:
    """Every touched row comes with all of its columns."""
    every, widths = [], []
    for shard in shards:
        ids, width = shard.ids, shard.weights.shape[1]
        if ids is None or ids.dtype != np.int64 or ids.shape != shard.weights.shape[:1]:
            raise VersionError(f"table {table}: a delta's shard needs int64[n] ids for its float32[n, columns]")
        if len(ids) and (ids[0] < 0 or ids[-1] >= rows or bool((np.diff(ids) <= 0).any())):
            raise VersionError(f"table {table}: a delta's ids must ascend within 0 to {rows - 1}")
        if len(ids):
            every.append(ids)
            widths.append(np.full(len(ids), width))
    if len(every) == 1:
        covered = bool((widths[0] == dim).all())
    else:
        _, places = np.unique(np.concatenate(every or [np.zeros(0)]), return_inverse=True)
        covered = bool((np.bincount(places, weights=np.concatenate(widths or [np.zeros(0)])) == dim).all())
    if not covered:
        raise VersionError(f"table {table}: a touched row does not have its {dim} columns, each once")


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


Tensors = Mapping[str, Mapping[str, np.ndarray]]
"""By file and tensor."""


def assemble(table: TableEntry, tensors: Tensors) -> np.ndarray:
    """A full version's table, float32[rows, dim]; KeyError for what is not there, VersionError."""
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


def tensor_name(shard: TableShard) -> str:
    """Where its weights stand in a file; its ids stand at the same name with `#ids`."""
    return f"{shard.table}@{shard.row},{shard.col}"


def _tensors(shards: Sequence[TableShard]) -> dict[str, np.ndarray]:
    weights = {tensor_name(shard): np.ascontiguousarray(shard.weights) for shard in shards}
    ids = {f"{tensor_name(shard)}{IDS}": shard.ids for shard in shards if shard.ids is not None}
    return weights | ids
