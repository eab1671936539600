"""Avro records with a schema registry, in Confluent's wire format: a zero byte, the schema's id in four, the body.

The body is read with the schema that it was written with; the fields that the configuration names are then held to the
same types as those of a JSON record. So an added field passes, and one that is missing is a fault of the record.
Source: docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop (wire format).
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import msgspec

from stream.config import ConfigError, EventsConfig
from stream.event_errors import Fault, one_line, validation_fault

MAGIC = 0
HEAD = struct.Struct(">BI")
MICROS, NANOS = "timestamp-micros", "timestamp-nanos"
MOST_UNKNOWN = 10_000
Reader = Callable[[io.BytesIO, Any], Any]
SchemaOf = Callable[[int], Sequence[str] | None]
"""An id -> the texts of the schemas that it refers to, each behind those of its own, and last its own text; None where
there is none. May raise where that cannot be known now."""


class _FaultError(Exception):
    """The record is at fault."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.fault = Fault(reason, detail)


@dataclass(frozen=True, slots=True)
class WriterSchema:
    """One schema of the registry, ready to read with; or why it cannot be."""

    parsed: Any
    read: Reader
    per_ms: int = 1
    """What one millisecond is in the time field."""
    fault: Fault | None = None


class AvroRecords:
    """Decodes single records into the struct that the configuration asks for. Raises ConfigError without fastavro."""

    def __init__(self, config: EventsConfig, *, into: type[msgspec.Struct], schema_of: SchemaOf) -> None:
        self._time = config.fields.time
        self._struct = into
        self._schema_of = schema_of
        self._schemas: dict[int, WriterSchema] = {}
        self._unknown: set[int] = set()
        _check_installed()

    def decode(self, value: bytes) -> msgspec.Struct | Fault:
        """The record's struct, or what is wrong with it. Raises what `schema_of` raises."""
        try:
            return self._decode(value)
        except _FaultError as error:
            return error.fault

    def _decode(self, value: bytes) -> msgspec.Struct:
        if len(value) < HEAD.size or value[0] != MAGIC:
            begins = value[: HEAD.size].hex() or "nothing"
            raise _FaultError("malformed", f"$: no Avro record of a schema registry, it begins with {begins}")
        schema_id = HEAD.unpack_from(value)[1]
        schema = self._schemas.get(schema_id) or self._fetched(schema_id)
        if schema.fault is not None:
            raise _FaultError(*schema.fault)
        found = self._body(value, schema, schema_id)
        if schema.per_ms != 1:
            _to_ms(found, self._time.split("."), schema.per_ms)
        try:
            return msgspec.convert(found, self._struct)
        except msgspec.ValidationError as error:
            raise _FaultError(*self.named(validation_fault(error, time_path=self._time), value)) from None

    def _body(self, value: bytes, schema: WriterSchema, schema_id: int) -> Any:
        body = io.BytesIO(value)
        body.seek(HEAD.size)
        try:
            found = schema.read(body, schema.parsed)
        except Exception as error:  # noqa: BLE001 - whatever the reader stumbles over, the bytes are at fault
            why = one_line(f"$: no body of schema {schema_id}: {type(error).__name__} {error}")
            raise _FaultError("malformed", why) from None
        if left := len(value) - body.tell():
            raise _FaultError("malformed", f"$: {left} bytes behind the body of schema {schema_id}")
        return found

    def named(self, fault: Fault, value: bytes) -> Fault:
        """The fault with the id of the schema that the record was written with."""
        return Fault(fault.reason, f"{fault.detail} (schema {HEAD.unpack_from(value)[1]})")

    def _fetched(self, schema_id: int) -> WriterSchema:
        """From the registry; an id that it does not know is asked for again only when the process begins anew."""
        texts = self._schema_of(schema_id)
        schema = _unknown(schema_id) if texts is None else writer_schema(texts, schema_id, time_path=self._time)
        if texts is None:
            self._unknown.add(schema_id)
            if len(self._unknown) > MOST_UNKNOWN:
                return schema
        self._schemas[schema_id] = schema
        return schema


def writer_schema(texts: Sequence[str], schema_id: int, *, time_path: str) -> WriterSchema:
    """Parse a schema behind those that it refers to; logical types are left out, so that times stay numbers."""
    from fastavro import parse_schema
    from fastavro.schema import SchemaParseException

    try:
        *others, plain = map(json.loads, texts)
        names: dict[str, dict[str, Any]] = {}
        for other in others:
            parse_schema(_without_logical_types(other), named_schemas=names)
        parsed = parse_schema(_without_logical_types(plain), named_schemas=names)
        per_ms = _time_unit(plain, time_path.split("."), _by_name(others))
        return WriterSchema(parsed, _reader_of([plain, *others]), per_ms)
    except (SchemaParseException, ValueError, TypeError, KeyError, RecursionError, AttributeError) as error:
        why = one_line(f"$: schema {schema_id} is no Avro schema: {type(error).__name__} {error}")
        return WriterSchema(None, _unread, fault=Fault("malformed", why))


def _unread(_body: io.BytesIO, _schema: Any) -> Any:
    raise AssertionError("a schema with a fault is not read with")


def _unknown(schema_id: int) -> WriterSchema:
    return WriterSchema(None, _unread, fault=Fault("malformed", f"$: the registry knows no schema {schema_id}"))


def _without_logical_types(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_without_logical_types(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {name: value for name, value in schema.items() if name not in ("logicalType", "default", "doc")}
    for name in ("type", "items", "values", "fields"):
        if name in kept:
            kept[name] = _without_logical_types(kept[name])
    return kept


def _by_name(schemas: Sequence[Any]) -> dict[str, Any]:
    """Schemas by their last names, without namespaces."""
    return {_last_name(schema.get("name")): schema for schema in schemas if isinstance(schema, dict)}


def _last_name(name: object) -> str:
    return str(name).rpartition(".")[2]


def _time_unit(schema: Any, path: list[str], named: dict[str, Any]) -> int:
    """What a millisecond is at `path`: 1000 where the schema says micros, a million for nanos, else 1."""
    if isinstance(schema, list):
        return max((_time_unit(one, path, named) for one in schema), default=1)
    if isinstance(schema, str) and path:
        schema = named.get(_last_name(schema))
    if not isinstance(schema, dict):
        return 1
    if not path:
        return {MICROS: 1_000, NANOS: 1_000_000}.get(str(schema.get("logicalType")), 1)
    if "fields" in schema:
        below = [field for field in schema["fields"] if field.get("name") == path[0]]
        return max((_time_unit(field["type"], path[1:], named) for field in below), default=1)
    return _time_unit(schema.get("type"), path, named)


def _to_ms(found: Any, path: list[str], per_ms: int) -> None:
    *parents, leaf = path
    for parent in parents:
        found = found.get(parent) if isinstance(found, dict) else None
    if isinstance(found, dict) and type(found.get(leaf)) is int:
        found[leaf] //= per_ms


def _is_recursive(schema: Any, above: frozenset[str] = frozenset()) -> bool:
    """Whether a type may hold itself; a name that only looks the same counts too, which costs speed and no more."""
    if isinstance(schema, str):
        return _last_name(schema) in above
    if isinstance(schema, list):
        return any(_is_recursive(one, above) for one in schema)
    if not isinstance(schema, dict):
        return False
    if "fields" in schema:
        inside = above | {_last_name(schema.get("name"))}
        return any(_is_recursive(field.get("type"), inside) for field in schema["fields"])
    return any(_is_recursive(schema.get(name), above) for name in ("type", "items", "values"))


def _reader_of(schemas: Sequence[Any]) -> Reader:
    """The compiled reader, but for recursive types: there a deep record makes it overflow the stack of the process.

    Seen with fastavro 1.13: 60,000 levels end in a segmentation fault; the Python reader raises RecursionError.
    """
    if any(map(_is_recursive, schemas)):
        from fastavro._read_py import schemaless_reader as read
    else:
        from fastavro import schemaless_reader as read
    return lambda body, parsed: read(body, parsed, None)


def _check_installed() -> None:
    if find_spec("fastavro") is None:
        raise ConfigError("events.format: avro needs the extra: pip install 'recd-stream[avro]'")
