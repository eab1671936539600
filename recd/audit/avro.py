"""The audit's own reading of Avro records, by Apache's library: the stream has another."""

from __future__ import annotations

import io
import json
import struct
from typing import Any

from stream.config import Config
from stream.kafka.registry import registry_of

HEAD = struct.Struct(">bi")
PER_MS = {"timestamp-micros": 1_000, "timestamp-nanos": 1_000_000}


class AvroReader:
    """Reads records in Confluent's wire format."""

    def __init__(self, config: Config) -> None:
        self._registry = registry_of(config.events.registry)
        self._time = config.events.fields.time
        self._schemas: dict[int, tuple[Any, int] | None] = {}

    def read(self, value: bytes) -> dict[str, Any] | None:
        """The record's fields, None where the bytes are none. Raises RegistryUnavailable."""
        from avro.io import BinaryDecoder, DatumReader

        if len(value) < HEAD.size or value[0] != 0:
            return None
        number = HEAD.unpack_from(value)[1]
        if number not in self._schemas:
            self._schemas[number] = self._schema(number)
        if (known := self._schemas[number]) is None:
            return None
        schema, per_ms = known
        body = io.BytesIO(value[HEAD.size :])
        try:
            found = DatumReader(schema).read(BinaryDecoder(body))
        except Exception:  # noqa: BLE001 - whatever the library stumbles over, the bytes are at fault
            return None
        if body.read(1) or not isinstance(found, dict):
            return None
        if per_ms != 1 and type(found.get(self._time)) is int:
            found[self._time] //= per_ms
        return found

    def _schema(self, number: int) -> tuple[Any, int] | None:
        from avro.errors import AvroException
        from avro.name import Names
        from avro.schema import make_avsc_object

        texts = self._registry.schema(number)
        if texts is None:
            return None
        try:
            *others, plain = map(json.loads, texts)
            fields = plain.get("fields", ()) if isinstance(plain, dict) else ()
            kinds = [str(field.get("type")) for field in fields if field.get("name") == self._time]
            per_ms = next((factor for name, factor in PER_MS.items() if kinds and name in kinds[0]), 1)
            names = Names(validate_names=False)
            for other in others:
                make_avsc_object(_plain(other), names, validate_names=False)
            return make_avsc_object(_plain(plain), names, validate_names=False), per_ms
        except (AvroException, ValueError):
            return None


def _plain(schema: Any) -> Any:
    """Without logical types: a time is the number that it is stored as."""
    if isinstance(schema, list):
        return [_plain(one) for one in schema]
    if isinstance(schema, dict):
        return {name: _plain(value) for name, value in schema.items() if name not in ("logicalType", "default", "doc")}
    return schema
