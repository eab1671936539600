"""Writing Avro: the schema that a configuration describes, and records of the generator and the importers in it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from stream.avro import HEAD, MAGIC
from stream.config import Config, ConfigError
from stream.event_schema import feature_path

NAMESPACE = "recd"
AVRO_TYPES: dict[str, Any] = {
    "id": ["null", "string", "long"],
    "string": ["null", "string"],
    "int": ["null", "long", "string"],
    "float": ["null", "double"],
    "list[int]": ["null", {"type": "array", "items": "long"}],
    "list[string]": ["null", {"type": "array", "items": "string"}],
    "list[float]": ["null", {"type": "array", "items": "double"}],
}
REQUIRED: dict[str, Any] = {"id": ["string", "long"], "time[ms]": "long", "time[s]": "double", "string": "string"}


def avro_schema(config: Config) -> str:
    """The schema of the events of a configuration: nested records along dotted paths, optional fields null by default.

    Fields that nobody configured are not part of it. Raises ConfigError where paths contradict each other.
    """
    fields = config.events.fields
    required = {fields.key: "id", fields.time: f"time[{config.events.time_unit}]", fields.type: "string"}
    if fields.event_id:
        required[fields.event_id] = "id"
    optional = {fields.item: "id"}
    optional |= {path: "id" for path in (fields.impression_id, fields.request_id) if path}
    optional |= {feature_path(f): f.type for f in config.features if f.source is None}
    optional |= {label.score_field: "float" for label in config.labels if label.score_field}
    tree: dict[str, Any] = {}
    for path, kind in optional.items():
        _place(tree, path, _Leaf(AVRO_TYPES[kind], is_optional=True))
    for path, kind in required.items():
        _place(tree, path, _Leaf(REQUIRED[kind]))
    return json.dumps(_record("Event", tree))


def record_encoder(config: Config) -> Callable[[bytes], bytes]:
    """What turns a JSON event into a record of the configured format; JSON stays as it is.

    For Avro the schema is registered under the topic's subject first. Raises RegistryUnavailable, ConfigError.
    """
    if config.events.format == "json":
        return lambda value: value
    from fastavro import parse_schema, schemaless_writer

    from stream.kafka.registry import registry_of

    text = avro_schema(config)
    schema = parse_schema(json.loads(text))
    schema_id = registry_of(config.events.registry).register(f"{config.topics.interactions}-value", text)
    head, decode = HEAD.pack(MAGIC, schema_id), msgspec.json.decode

    def encode(value: bytes) -> bytes:
        body = io.BytesIO(head)
        body.seek(len(head))
        try:
            schemaless_writer(body, schema, decode(value))
        except (msgspec.DecodeError, ValueError, TypeError, KeyError, AttributeError):
            return value
        return body.getvalue()

    return encode


class _Leaf(NamedTuple):
    """The type of a value, and whether it is null by default."""

    type: Any
    is_optional: bool = False


def _place(tree: Any, path: str, field: _Leaf) -> None:
    *parents, leaf = path.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"events: the path '{path}' leads through a value")
    if isinstance(tree.get(leaf), dict):
        raise ConfigError(f"events: the path '{path}' is read as a value and as an object")
    tree[leaf] = field


def _record(name: str, tree: dict[str, Any]) -> dict[str, Any]:
    fields = []
    for field, below in tree.items():
        if isinstance(below, _Leaf):
            default = {"default": None} if below.is_optional else {}
            fields.append({"name": field, "type": below.type, **default})
        else:
            fields.append({"name": field, "type": _record(f"{name}_{field}", below)})
    return {"type": "record", "name": name, "namespace": NAMESPACE, "fields": fields}
