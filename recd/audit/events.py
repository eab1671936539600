"""The audit's own reading of `interactions`: JSON into events, and which rules a record breaks."""

from __future__ import annotations

import re
from collections.abc import Callable
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

from recd.audit.avro import AvroReader
from recd.audit.fields import Reasons, fields_of, path_of
from recd.audit.repeats import Repeats
from stream.config import Config

MAX_DEPTH = 512
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"?', re.DOTALL)

Getter = Callable[[Any], Any]


class Event(NamedTuple):
    """One accepted event. Ids are texts: an integer counts as its decimal text."""

    offset: int
    time_ms: int
    key: str
    type: str
    is_impression: bool
    event_id: str
    item: str | None
    target: str | None
    """The impression that an engagement names."""


class EventReader:
    """Reads records by the rules of the configuration."""

    def __init__(self, config: Config) -> None:
        events, fields = config.events, config.events.fields
        self._events = events
        self._impressions = frozenset(events.impressions)
        self._types = self._impressions | frozenset(events.engagements)
        demands = fields_of(config)
        self._repeats = Repeats(demands)
        paths = dict.fromkeys(one.path for one in demands)
        struct, attributes = _struct([tuple(path.split(".")) for path in paths])
        self._struct = struct
        self._avro = AvroReader(config) if events.format == "avro" else None
        self._decode = msgspec.json.Decoder(struct).decode
        getters = {path: _getter(attributes[tuple(path.split("."))]) for path in paths}
        self._key, self._time, self._type, self._item = (
            getters[path] for path in (fields.key, fields.time, fields.type, fields.item)
        )
        self._event_id = getters[fields.event_id] if fields.event_id else None
        self._target = getters[fields.impression_id] if fields.impression_id and fields.event_id else None
        self._demands = [(getters[one.path], one.fits, one.is_required, one.reasons) for one in demands]
        self._required = [getters[path_of(f)] for f in config.features if f.source is None and f.required]

    def read(self, value: bytes | None, *, offset: int, latest_ms: int) -> Event | Reasons:
        """The event of a record, whose time may be `latest_ms` at most, or what is wrong with it."""
        if value is not None and len(value) > self._events.max_bytes:
            return frozenset({"too_large"})
        if self._avro is None:
            return self._read_json(value, offset=offset, latest_ms=latest_ms)
        return self._read_avro(value, self._avro, offset=offset, latest_ms=latest_ms)

    def _read_json(self, value: bytes | None, *, offset: int, latest_ms: int) -> Event | Reasons:
        if value is None or _is_too_deep(value):
            return frozenset({"malformed"})
        try:
            found = self._decode(value)
        except msgspec.ValidationError:
            return frozenset({"schema", "time"} | _malformed(value))
        except (msgspec.DecodeError, UnicodeDecodeError):
            return frozenset({"malformed"})
        reasons = self._unfit(found)
        if self._repeats.may_be_in(value):
            reasons |= self._repeats.broken_rules(value)
        reasons = reasons or self._refused(found, latest_ms=latest_ms)
        if reasons:
            return frozenset(reasons | _malformed(value))
        return self._event(found, offset=offset)

    def _read_avro(self, value: bytes | None, avro: AvroReader, *, offset: int, latest_ms: int) -> Event | Reasons:
        record = None if value is None else avro.read(value)
        if record is None:
            return frozenset({"malformed"})
        try:
            found = msgspec.convert(record, self._struct)
        except msgspec.ValidationError:
            return frozenset({"schema", "time"})
        reasons = self._unfit(found) or self._refused(found, latest_ms=latest_ms)
        return frozenset(reasons) if reasons else self._event(found, offset=offset)

    def _event(self, found: Any, *, offset: int) -> Event:
        kind = self._type(found)
        item = self._item(found)
        target = self._target(found) if self._target else None
        return Event(
            offset=offset,
            time_ms=self._time_ms(self._time(found)),
            key=str(self._key(found)),
            type=kind,
            is_impression=kind in self._impressions,
            event_id=str(self._event_id(found)) if self._event_id else f"\0{offset}",
            item=None if item is None else str(item),
            target=None if target is None else str(target),
        )

    def _unfit(self, found: Any) -> set[str]:
        """What is wrong with the fields, each by itself."""
        reasons: set[str] = set()
        for get, fits, is_required, why in self._demands:
            value = get(found)
            if is_required if value is None else not fits(value):
                reasons |= why
        return reasons

    def _refused(self, found: Any, *, latest_ms: int) -> set[str]:
        """What is wrong with an event whose fields fit."""
        reasons: set[str] = set()
        kind, item = self._type(found), self._item(found)
        is_impression = kind in self._impressions
        if kind not in self._types:
            reasons.add("type")
        if self._time_ms(self._time(found)) > latest_ms:
            reasons.add("ahead")
        target = self._target(found) if self._target else None
        if item is None and (is_impression or target is None):
            reasons.add("schema")
        if is_impression and any(get(found) is None for get in self._required):
            reasons.add("schema")
        return reasons

    def _time_ms(self, time: Any) -> int:
        return int(time) if self._events.time_unit == "ms" else round(float(time) * 1000)


def _malformed(value: bytes) -> set[str]:
    """`malformed` where the JSON is broken anywhere, in fields that nobody reads too."""
    try:
        msgspec.json.decode(value)
    except msgspec.ValidationError:
        return set()
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {"malformed"}
    return set()


def _is_too_deep(value: bytes) -> bool:
    if value.count(b"[") + value.count(b"{") <= MAX_DEPTH:
        return False
    depth = deepest = 0
    for sign in _STRINGS.sub(b"", value):
        if sign in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif sign in b"]}":
            depth -= 1
    return deepest > MAX_DEPTH


def _struct(
    paths: list[tuple[str, ...]],
) -> tuple[type[msgspec.Struct], dict[tuple[str, ...], tuple[str, ...]]]:
    """A struct that takes anything at these paths and skips the rest, and the attributes that lead to each path."""
    children: dict[str, list[tuple[str, ...]]] = {}
    for first, *rest in paths:
        children.setdefault(first, []).append(tuple(rest))
    fields: list[tuple[str, Any, Any]] = []
    attributes: dict[tuple[str, ...], tuple[str, ...]] = {}
    rename = {}
    for i, (name, below) in enumerate(children.items()):
        attribute = f"f{i}"
        rename[attribute] = name
        if below == [()]:
            attributes[(name,)] = (attribute,)
            fields.append((attribute, Any, None))
        else:
            struct, inner = _struct(below)
            attributes |= {(name, *path): (attribute, *steps) for path, steps in inner.items()}
            fields.append((attribute, struct | None, None))
    return msgspec.defstruct("Found", fields, rename=rename), attributes


def _getter(attributes: tuple[str, ...]) -> Getter:
    if len(attributes) == 1:
        return attrgetter(attributes[0])

    def descend(found: Any) -> Any:
        for attribute in attributes:
            if found is None:
                return None
            found = getattr(found, attribute)
        return found

    return descend
