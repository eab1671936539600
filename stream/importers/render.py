"""Imported events as JSON records, under the field names of the configuration."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from json.encoder import encode_basestring_ascii as quoted

import msgspec

from stream.config import EventsConfig
from stream.event_json import FieldLayout, time_text
from stream.importers.rows import ImportedEvent


def event_writer(config: EventsConfig) -> Callable[[ImportedEvent], bytes]:
    """A function that writes an event as JSON; further fields keep their own names, but never take a configured one.

    `impression_id` and `request_id` are written where the event has them and the configuration names them.
    """
    fields = config.fields
    core = {
        "event_id": fields.event_id,
        "key": fields.key,
        "time": fields.time,
        "type": fields.type,
        "item": fields.item,
    }

    @cache
    def layout(names: tuple[str, ...]) -> FieldLayout:
        return FieldLayout(core | {name: getattr(fields, name) for name in names})

    roots = layout(("impression_id", "request_id")).roots
    time_of = time_text(config)
    encode = msgspec.json.Encoder().encode

    def write(event: ImportedEvent) -> bytes:
        names: tuple[str, ...] = ()
        texts = {
            "event_id": quoted(event.id),
            "key": quoted(event.key),
            "time": time_of(event.time_ms),
            "type": quoted(event.type),
            "item": quoted(event.item),
        }
        if event.impression_id is not None:
            names = ("impression_id",)
            texts["impression_id"] = quoted(event.impression_id)
        if event.request_id is not None:
            names = (*names, "request_id")
            texts["request_id"] = quoted(event.request_id)
        head = layout(names).render(**texts).encode()
        extra = event.extra
        if not roots.isdisjoint(extra):
            extra = {name: value for name, value in extra.items() if name not in roots}
        return head + b"," + encode(extra)[1:] if extra else head + b"}"

    return write
