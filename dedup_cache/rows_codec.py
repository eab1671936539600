"""Single rows as small checksummed blobs, for the `values` topic and for Redis.

A blob is little-endian 4-byte words: format and group digest (2 words), the D dense numbers, one length per list, the
ids of all lists one behind the other (2 words each), and xxh3-64 over everything before it (2 words). All blobs of a
call are built, and read, as one array of words.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xxhash

from dedup_cache import compiled
from dedup_cache.arrays import Bool, Int64, UInt32
from dedup_cache.errors import RowError
from dedup_cache.jagged import Jagged, Rows
from dedup_cache.schema import GroupSchema

ROW_FORMAT = 0x31574F52  # the letters ROW1
HEAD_WORDS = 2
TAIL_WORDS = 2
WORD_BYTES = 4


def encode_rows(rows: Rows, group: GroupSchema) -> list[bytes]:
    """Return one self-contained blob per row; the same row gives the same bytes in any company."""
    columns = _columns(rows, group)
    lengths_KU = np.stack([column.lengths for column in columns]) if columns else np.empty((0, rows.num_rows), np.int32)
    fixed = HEAD_WORDS + len(group.dense) + len(columns)
    sizes = fixed + 2 * lengths_KU.sum(axis=0, dtype=np.int64)
    ends = np.cumsum(sizes)
    starts = ends - sizes
    words = np.empty(int(ends[-1]) if ends.size else 0, np.uint32)
    head = np.empty((rows.num_rows, fixed), np.uint32)
    head[:, 0], head[:, 1] = ROW_FORMAT, group.digest_32
    head[:, HEAD_WORDS : HEAD_WORDS + len(group.dense)] = np.ascontiguousarray(rows.dense).view(np.uint32)
    head[:, fixed - len(columns) :] = lengths_KU.T
    words[starts[:, None] + np.arange(fixed)] = head
    at = starts + fixed
    for column in columns:
        values, lengths = column.compact()
        _put(words, at, np.ascontiguousarray(values).view(np.uint32), 2 * lengths.astype(np.int64))
        at += 2 * lengths
    return _sealed(words.tobytes(), WORD_BYTES * starts, WORD_BYTES * ends)


def decode_rows(blobs: Sequence[bytes], group: GroupSchema) -> Rows:
    """Return the rows in the order of `blobs`. RowError names the first blob that is not a whole row of this group."""
    bodies = [_unsealed(blob, number, group) for number, blob in enumerate(blobs)]
    words = np.frombuffer(b"".join(bodies), np.uint32)
    sizes = np.fromiter((len(body) // WORD_BYTES for body in bodies), np.int64, len(bodies))
    starts = np.cumsum(sizes) - sizes
    width, num_lists = len(group.dense), len(group.lists)
    fixed = HEAD_WORDS + width + num_lists
    _refuse(sizes < fixed, group, "too short")
    head = words[starts[:, None] + np.arange(fixed)]
    _refuse(head[:, 0] != ROW_FORMAT, group, "not a row of this format")
    _refuse(head[:, 1] != group.digest_32, group, "a row of other features")
    lengths_UK = head[:, HEAD_WORDS + width :].astype(np.int64)
    _refuse(fixed + 2 * lengths_UK.sum(axis=1) != sizes, group, "lengths that do not fit its size")
    at = starts + fixed
    lists = {}
    for place, name in enumerate(group.lists):
        lengths = lengths_UK[:, place]
        values = words[_places(at, 2 * lengths)].view(np.int64)
        lists[name] = Jagged.from_lengths(values, lengths)
        at += 2 * lengths
    return Rows(head[:, HEAD_WORDS : HEAD_WORDS + width].copy().view(np.float32), lists)


def _columns(rows: Rows, group: GroupSchema) -> list[Jagged]:
    if rows.dense.shape[1] != len(group.dense) or tuple(rows.lists) != group.lists:
        raise RowError(
            f"group '{group.name}': rows with {rows.dense.shape[1]} dense columns and lists {tuple(rows.lists)}, "
            f"the schema has {len(group.dense)} and {group.lists}"
        )
    return list(rows.lists.values())


def _put(words: UInt32, at: Int64, data: UInt32, lengths: Int64) -> None:
    """Bring `data`, slices one behind the other, to the words from `at` on."""
    if compiled.ready() and data.flags.carray:
        from dedup_cache.compiled.rows import put_slices

        put_slices(data, at, np.cumsum(lengths) - lengths, lengths, words)
        return
    words[_places(at, lengths)] = data


def _places(starts: Int64, lengths: Int64) -> Int64:
    """Word numbers of the slices, one behind the other."""
    ends = np.cumsum(lengths)
    places: Int64 = np.repeat(starts - (ends - lengths), lengths) + np.arange(int(ends[-1]) if ends.size else 0)
    return places


def _sealed(data: bytes, starts: Int64, ends: Int64) -> list[bytes]:
    bodies = [data[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
    return [body + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little") for body in bodies]


def _unsealed(blob: bytes, number: int, group: GroupSchema) -> bytes:
    body = blob[: -WORD_BYTES * TAIL_WORDS]
    if len(blob) % WORD_BYTES or xxhash.xxh3_64_intdigest(body).to_bytes(8, "little") != blob[len(body) :]:
        raise RowError(f"group '{group.name}', row {number} of {len(blob)} bytes: damaged or cut off")
    return body


def _refuse(wrong: Bool, group: GroupSchema, reason: str) -> None:
    if bool(wrong.any()):
        raise RowError(f"group '{group.name}', row {int(np.argmax(wrong))}: {reason}")
