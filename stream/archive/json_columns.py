"""JSON records as columns, one per field, and back to the very same bytes.

A record that is an object is taken apart into its fields; its shape (their order, and the text between their values)
stands beside them. A column has the type of its values where they can be written back byte for byte
(numbers, texts, and lists of them), else it holds their JSON text. A record that cannot be put together again exactly
as it was, or is no JSON object, stands as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import msgspec
import pyarrow as pa

SHAPE, RAW = "recd.shape", "recd.raw"
OWN = "recd."
"""Columns whose names begin so are the archive's; a field of that name leaves its record as it is."""
CODEC = b"recd.json"
MAX_FIELDS = 500
MAX_SHAPES = 4096
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_NULL = b"null"


@dataclass(frozen=True, slots=True)
class _Codec:
    """How a value becomes JSON text again."""

    name: bytes
    separator: bytes
    encode: Callable[[Any], bytes]


def _spaced(value: Any) -> bytes:
    return json.dumps(value).encode()


COMPACT = _Codec(b"compact", b",", msgspec.json.encode)
SPACED = _Codec(b"spaced", b", ", _spaced)
TEXT, BYTES = b"text", b"bytes"
CODECS = {codec.name: codec for codec in (COMPACT, SPACED)}
TYPES: tuple[tuple[Any, pa.DataType], ...] = (
    (int, pa.int64()),
    (float, pa.float64()),
    (str, pa.string()),
    (bool, pa.bool_()),
    (list[int], pa.list_(pa.int64())),
    (list[float], pa.list_(pa.float64())),
    (list[str], pa.list_(pa.string())),
)


@dataclass(slots=True)
class _Taken:
    """Tokens by field, and what is needed to put records together again."""

    rows: dict[str, list[int]] = field(default_factory=dict)
    tokens: dict[str, list[bytes]] = field(default_factory=dict)
    shapes: list[str | None] = field(default_factory=list)
    raw: list[bytes | None] = field(default_factory=list)


def to_columns(values: Sequence[bytes | None]) -> dict[str, tuple[pa.Field, pa.Array]]:
    """Columns of E rows by name, RAW and SHAPE among them."""
    taken = _Taken()
    for number, value in enumerate(values):
        _take_apart(taken, number, value)
    columns = {
        SHAPE: _own(SHAPE, pa.array(taken.shapes, pa.string())),
        RAW: _own(RAW, pa.array(taken.raw, pa.binary())),
    }
    for name, tokens in taken.tokens.items():
        columns[name] = _column(name, tokens, rows=taken.rows[name], num_rows=len(values))
    return columns


def from_columns(table: pa.Table) -> list[bytes | None]:
    """The values that `to_columns` was given."""
    shapes: list[str | None] = table.column(SHAPE).to_pylist()
    raw: list[bytes | None] = table.column(RAW).to_pylist()
    fields = [table.schema.field(i) for i in range(table.num_columns)]
    cells = {f.name: _texts(f, table.column(f.name)) for f in fields if not f.name.startswith(OWN)}
    values: list[bytes | None] = []
    for row, shape in enumerate(shapes):
        if shape is None:
            values.append(raw[row])
        else:
            names, texts = _layout(shape)
            parts = [part for text, name in zip(texts, names, strict=False) for part in (text, cells[name][row])]
            values.append(b"".join([*parts, texts[-1]]))
    return values


def _take_apart(taken: _Taken, row: int, value: bytes | None) -> None:
    shape = None
    if value is not None:
        try:
            tokens = {name: bytes(token) for name, token in _OBJECT.decode(value).items()}
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            tokens = None
        if tokens is not None:
            shape = _shape(tokens, value, known=taken.tokens)
    taken.shapes.append(shape)
    taken.raw.append(value if shape is None else None)
    if shape is not None and tokens is not None:
        for name, token in tokens.items():
            taken.rows.setdefault(name, []).append(row)
            taken.tokens.setdefault(name, []).append(token)


def _shape(tokens: dict[str, bytes], value: bytes, *, known: dict[str, list[bytes]]) -> str | None:
    """The shape under which the tokens give `value` again; None where none does."""
    if any(name.startswith(OWN) for name in tokens):
        return None
    if len(known) + len(tokens) > MAX_FIELDS and len(known.keys() | tokens.keys()) > MAX_FIELDS:
        return None
    texts, at = [], 0
    for name, token in tokens.items():
        key = value.find(msgspec.json.encode(name), at)
        start = value.find(token, key + len(name) + 2)
        if key < 0 or start < 0:
            return None
        texts.append(value[at:start])
        at = start + len(token)
    shape = _shape_text(tuple(tokens), (*texts, value[at:]))
    return shape if shape is not None and _together(shape, tokens.values()) == value else None


@lru_cache(MAX_SHAPES)
def _shape_text(names: tuple[str, ...], texts: tuple[bytes, ...]) -> str | None:
    try:
        return json.dumps([names, [text.decode() for text in texts]])
    except UnicodeDecodeError:
        return None


@lru_cache(MAX_SHAPES)
def _layout(shape: str) -> tuple[tuple[str, ...], tuple[bytes, ...]]:
    """(field names, the text before each value and behind the last)."""
    names, texts = json.loads(shape)
    return tuple(names), tuple(text.encode() for text in texts)


def _together(shape: str, tokens: Iterable[bytes]) -> bytes:
    _, texts = _layout(shape)
    return b"".join([part for pair in zip(texts, tokens, strict=False) for part in pair] + [texts[-1]])


def _own(name: str, array: pa.Array) -> tuple[pa.Field, pa.Array]:
    return pa.field(name, array.type), array


def _column(name: str, tokens: list[bytes], *, rows: list[int], num_rows: int) -> tuple[pa.Field, pa.Array]:
    """A typed column where that is exact, else JSON text."""
    for kind, arrow in TYPES:
        for codec in (COMPACT, SPACED):
            values = _exact(tokens, kind, codec)
            if values is not None:
                try:
                    array = pa.array(_spread(values, rows, num_rows), arrow)
                except (pa.ArrowInvalid, OverflowError):
                    continue
                return pa.field(name, arrow, metadata={CODEC: codec.name}), array
    try:
        texts = [token.decode() for token in tokens]
    except UnicodeDecodeError:
        return pa.field(name, pa.binary(), metadata={CODEC: BYTES}), pa.array(_spread(tokens, rows, num_rows))
    return pa.field(name, pa.string(), metadata={CODEC: TEXT}), pa.array(_spread(texts, rows, num_rows))


def _exact(tokens: list[bytes], kind: Any, codec: _Codec) -> list[Any] | None:
    """The values of the tokens, if the codec makes the same tokens of them."""
    text = b"[" + codec.separator.join(tokens) + b"]"
    try:
        values: list[Any] = msgspec.json.decode(text, type=list[kind | None])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return values if len(values) == len(tokens) and codec.encode(values) == text else None


def _spread(values: list[Any], rows: list[int], num_rows: int) -> list[Any]:
    if len(rows) == num_rows:
        return values
    spread: list[Any] = [None] * num_rows
    for row, value in zip(rows, values, strict=True):
        spread[row] = value
    return spread


def _texts(column: pa.Field, data: pa.ChunkedArray) -> list[bytes]:
    """The JSON text of every cell; of no meaning where the record has no such field."""
    codec = (column.metadata or {})[CODEC]
    values: list[Any] = data.to_pylist()
    if codec == BYTES:
        return values
    if codec == TEXT:
        return [_NULL if value is None else value.encode() for value in values]
    encode = CODECS[codec].encode
    return [encode(value) for value in values]
