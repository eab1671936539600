"""Columns in few bytes, without a loop: integers as narrow as their range, flags as bits, equal lists once.

The bytes of an event are what a takeover reads, copies and unpacks; a compressor alone would save the network its work,
not the worker. Letters in shapes: N values, U rows of lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec
import numpy as np

from dedup_cache import Jagged, RowError, Rows, distinct, fingerprints
from dedup_cache.arrays import AnyArray, AnyInt, Bool, Int64

WIDTHS = (1, 2, 4, 8)
MISSING = -1
"""The length of a text that is none."""
SALT = b"snapshot"


class _Packed(msgspec.Struct, frozen=True, array_like=True):
    """How one column of integers stands in its words."""

    count: Annotated[int, msgspec.Meta(ge=0)]
    base: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
    width: int
    sparse: bool
    """Only what differs from `base` stands there, behind a bit for each of the `count` values."""


class ColumnError(ValueError):
    """Columns that are not as they were packed; the message names one."""


class ColumnWriter:
    """Collects columns by name; `arrays` and `layout` are what ColumnReader needs."""

    def __init__(self) -> None:
        self.arrays: dict[str, AnyArray] = {}
        self._packed: dict[str, _Packed] = {}

    def layout(self) -> str:
        """How the columns stand in the arrays, as text."""
        return msgspec.json.encode(self._packed).decode()

    def integers(self, name: str, values: AnyInt) -> None:
        """int[N] of any type, at most 64 bits signed."""
        wide: Int64 = values.astype(np.int64, copy=False)
        base, width = _range(wide)
        differs = wide != base
        sparse = 2 * int(np.count_nonzero(differs)) < wide.shape[0]
        parts = [np.packbits(differs)] if sparse else []
        kept = wide[differs] if sparse else wide
        parts.append((kept - base).astype(_narrow(width)).view(np.uint8))
        self._packed[name] = _Packed(wide.shape[0], base, width, sparse)
        self.arrays[name] = words(parts)

    def flags(self, name: str, values: Bool) -> None:
        """bool[N]"""
        self._packed[name] = _Packed(values.shape[0], 0, 0, sparse=True)
        self.arrays[name] = words([np.packbits(values)])

    def texts(self, name: str, texts: AnyArray) -> None:
        """object[N] of bytes or None."""
        listed = texts.tolist()
        lengths = np.fromiter((MISSING if one is None else len(one) for one in listed), np.int64, len(listed))
        self.integers(f"{name}.lengths", lengths)
        joined = b"".join(one for one in listed if one is not None)
        self.arrays[f"{name}.bytes"] = words([np.frombuffer(joined, np.uint8)])

    def lists(self, name: str, column: Jagged) -> None:
        """U rows; those of a session repeat, and each distinct one is written once."""
        prints = fingerprints(Rows(np.empty((column.num_rows, 0), np.float32), {name: column}), salt=SALT)
        first, inverse = distinct(prints)
        values, lengths = column.take(first).compact()
        self.integers(f"{name}.values", values)
        self.integers(f"{name}.lengths", lengths)
        self.integers(f"{name}.inverse", inverse)


class ColumnReader:
    """Columns out of what a ColumnWriter collected. Every method raises ColumnError, KeyError."""

    def __init__(self, arrays: Mapping[str, AnyArray], layout: str) -> None:
        self._arrays = arrays
        try:
            self._packed = msgspec.json.decode(layout, type=dict[str, _Packed])
        except msgspec.MsgspecError as error:
            raise ColumnError(f"layout: {error}") from None

    def integers(self, name: str) -> Int64:
        """int64[N]"""
        packed = self._packed[name]
        if packed.width not in WIDTHS:
            raise ColumnError(f"{name}: integers of {packed.width} bytes")
        data = _bytes(self._arrays[name])
        count = packed.count
        if packed.sparse:
            differs, data = _bits(name, data, packed.count)
            count = int(np.count_nonzero(differs))
        if data.size < count * packed.width:
            raise ColumnError(f"{name}: {data.size} bytes for {count} integers of {packed.width}")
        found = data[: count * packed.width].view(_narrow(packed.width)).astype(np.int64)
        found += packed.base
        if not packed.sparse:
            return found
        values = np.full(packed.count, packed.base, np.int64)
        values[differs] = found
        return values

    def flags(self, name: str) -> Bool:
        """bool[N]"""
        return _bits(name, _bytes(self._arrays[name]), self._packed[name].count)[0]

    def texts(self, name: str) -> AnyArray:
        """object[N]: bytes, or None."""
        lengths = self.integers(f"{name}.lengths")
        ends = np.cumsum(np.maximum(lengths, 0))
        data = self._arrays[f"{name}.bytes"].tobytes()
        if lengths.size and (int(lengths.max()) > len(data) or int(ends[-1]) > len(data)):
            raise ColumnError(f"{name}: {len(data)} bytes, expected {ends[-1]}")
        begins = (ends - np.maximum(lengths, 0)).tolist()
        texts = np.empty(lengths.shape[0], object)
        texts[:] = [data[begin:end] for begin, end in zip(begins, ends.tolist(), strict=True)]
        texts[lengths == MISSING] = None
        return texts

    def lists(self, name: str) -> Jagged:
        """U rows; equal ones are the same slice."""
        inverse = self.integers(f"{name}.inverse")
        values, lengths = self.integers(f"{name}.values"), self.integers(f"{name}.lengths")
        if lengths.size and int(lengths.max()) > values.shape[0]:  # their sum could go round
            raise ColumnError(f"{name}: a list of {lengths.max()} ids among {values.shape[0]}")
        try:
            rows = Jagged.from_lengths(values, lengths)
        except RowError as error:
            raise ColumnError(f"{name}: {error}") from None
        if inverse.size and not 0 <= int(inverse.min()) <= int(inverse.max()) < rows.num_rows:
            raise ColumnError(f"{name}: rows {inverse.min()} to {inverse.max()} of {rows.num_rows}")
        return Jagged(rows.values, rows.starts[inverse], rows.lengths[inverse])


def words(parts: list[AnyArray]) -> AnyArray:
    """uint8 arrays one behind the other as uint32, filled up with zeros: the wire has no bytes."""
    size = sum(part.size for part in parts)
    return np.concatenate([*parts, np.zeros(-size % 4, np.uint8)]).view(np.uint32)


def _range(values: Int64) -> tuple[int, int]:
    """(the least value, bytes that the others need above it); (0, 8) where they need all."""
    if not values.size:
        return 0, 1
    least, most = int(values.min()), int(values.max())
    width = next((width for width in WIDTHS[:-1] if most - least < 1 << 8 * width), WIDTHS[-1])
    return (0, width) if width == WIDTHS[-1] else (least, width)


def _narrow(width: int) -> np.dtype[np.integer]:
    return np.dtype(f"<u{width}" if width < WIDTHS[-1] else "<i8")


def _bytes(array: AnyArray) -> AnyArray:
    return array.reshape(-1).view(np.uint8)


def _bits(name: str, data: AnyArray, count: int) -> tuple[Bool, AnyArray]:
    """(bool[count], what stands behind them)."""
    size = (count + 7) // 8
    if data.size < size:
        raise ColumnError(f"{name}: {data.size} bytes for {count} bits")
    return np.unpackbits(data[:size], count=count).view(np.bool_), data[size:]
