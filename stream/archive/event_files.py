"""Records of one partition as a Parquet file, clustered by session, and back in the order of the log.

The rows of a key stand together, so do the sessions of a user within the file (RecD's O2, arXiv 2211.05239): what
repeats in a session compresses. Each row carries its offset, so that a reader restores the order of the log.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from dedup_cache.arrays import Int64
from stream.archive.json_columns import from_columns, to_columns
from stream.archive.parquet import from_bytes, to_bytes
from stream.records import RecordBlock

OFFSET, TIMESTAMP, KEY = "recd.offset", "recd.timestamp_ms", "recd.key"


def encode_records(blocks: Sequence[RecordBlock], *, cluster: bool = True) -> bytes:
    """The records of consecutive blocks; without `cluster` in the order of the log."""
    block = concat_blocks(blocks)
    order = _by_key(block.keys) if cluster else np.arange(len(block.offsets))
    picked = order.tolist()
    own = (
        _column(OFFSET, pa.array(block.offsets[order])),
        _column(TIMESTAMP, pa.array(block.append_times_ms[order])),
        _column(KEY, pa.array([block.keys[i] for i in picked], pa.binary())),
    )
    columns = to_columns([block.values[i] for i in picked])
    return to_bytes([*own, *columns.values()], metadata={"recd.kind": "records", "recd.version": "1"})


def decode_records(data: bytes, *, partition: int, place: str) -> RecordBlock:
    """The records in the order of the log. Raises FileDamaged."""
    table = from_bytes(data, place=place).sort_by(OFFSET)
    return RecordBlock(
        partition,
        table.column(OFFSET).to_numpy(),
        table.column(TIMESTAMP).to_numpy(),
        table.column(KEY).to_pylist(),
        from_columns(table),
    )


def concat_blocks(blocks: Sequence[RecordBlock]) -> RecordBlock:
    """Consecutive blocks of one partition as one."""
    if len(blocks) == 1:
        return blocks[0]
    return RecordBlock(
        blocks[0].partition,
        np.concatenate([block.offsets for block in blocks]),
        np.concatenate([block.append_times_ms for block in blocks]),
        [key for block in blocks for key in block.keys],
        [value for block in blocks for value in block.values],
    )


def _by_key(keys: Sequence[bytes | None]) -> Int64:
    """Row numbers, keys in order of their first appearance, each one's records in the order of the log."""
    numbers: dict[bytes | None, int] = {}
    of_row = np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)
    return np.argsort(of_row, kind="stable")


def _column(name: str, array: pa.Array) -> tuple[pa.Field, pa.Array]:
    return pa.field(name, array.type), array
