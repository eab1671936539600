"""Records into columns: at once where that is safe, else one struct per record, checked while it is parsed.

Letters in shapes: E records of a block, M of them events, I of these impressions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from dedup_cache.arrays import AnyArray, Int64
from stream.columns import ImpressionColumns, ImpressionReader
from stream.compiled import warm
from stream.config import EventsConfig, FeatureConfig, LabelConfig
from stream.event_block import EVENT, IMPRESSION, EventBlock, in_offset_order, objects
from stream.event_errors import MAX_DEPTH, TOO_DEEP, Fault, fault_of, too_deep
from stream.event_schema import EventSchema, feature_path
from stream.hashing import hash_ids
from stream.records import RecordBlock, Rejected, take_records

if TYPE_CHECKING:
    from stream.avro import AvroRecords
    from stream.event_columns import EventColumns

__all__ = ["EVENT", "IMPRESSION", "Decoded", "Decoder", "EventBlock"]


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """What a block held: events, and the records that are none, each in offset order."""

    events: EventBlock
    quarantined: list[Rejected]


class Decoder:
    """Decodes blocks of JSON or Avro records; whatever the bytes are, a record comes out as an event or as quarantined.

    Raises ConfigError where the configured paths contradict each other. With Avro, `decode` raises RegistryUnavailable
    where a schema is not known yet and the registry gives no answer: that is no fault of the records.
    """

    def __init__(
        self,
        events: EventsConfig,
        *,
        features: Sequence[FeatureConfig],
        labels: Sequence[LabelConfig],
        max_ahead_ms: int,
    ) -> None:
        self._config = events
        self._schema = EventSchema(events, features=features, labels=labels)
        self._reader = ImpressionReader(self._schema, features=features, labels=labels)
        self._required = [feature_path(f) for f in features if f.required and f.source is None]
        self._max_ahead_ms = max_ahead_ms
        self._kinds = {name: k + 1 for k, name in enumerate(events.engagements)}
        self._kinds |= dict.fromkeys(events.impressions, IMPRESSION)
        self._make_quick = partial(
            _quick, events, self._schema, features=features, labels=labels, max_ahead_ms=max_ahead_ms
        )
        self._quick: EventColumns | None = None
        self._avro = _avro(events, self._schema) if events.format == "avro" else None

    def no_impressions(self) -> ImpressionColumns:
        """Columns of no rows, with the shapes that blocks will have."""
        return self._reader.read([])

    def decode(self, block: RecordBlock) -> Decoded:
        """Split a block into events and quarantined records."""
        if self._avro is not None:
            return self._decode_each(block)
        if self._quick is None and warm.ready():
            self._quick = self._make_quick()
        if self._quick is None:
            return self._decode_each(block)
        events, unsure = self._quick.read(block)
        if not unsure.size:
            return Decoded(events, [])
        looked_at = self._decode_each(take_records(block, unsure))
        return Decoded(in_offset_order(events, looked_at.events), looked_at.quarantined)

    def _decode_each(self, block: RecordBlock) -> Decoded:
        """Record by record, with every check and its message."""
        structs, faults = self._parse(block.values)
        places = [i for i, struct in enumerate(structs) if struct is not None]
        events = [struct for struct in structs if struct is not None]
        found = self._examine(events, block=block, places=places)
        if found:
            if self._avro is not None:
                found = {i: self._avro.named(fault, block.values[places[i]] or b"") for i, fault in found.items()}
            faults |= {places[i]: fault for i, fault in found.items()}
            places = [place for i, place in enumerate(places) if i not in found]
            events = [event for i, event in enumerate(events) if i not in found]
        quarantined = [_rejected(block, i, faults[i]) for i in sorted(faults)]
        return Decoded(self._columns(events, block=block, places=np.array(places, np.int64)), quarantined)

    def _parse(self, values: Sequence[bytes | None]) -> tuple[list[msgspec.Struct | None], dict[int, Fault]]:
        """Decode every record by itself: measured faster than one array of all, and nothing can leak across."""
        faults = self._unreadable(values)
        if self._avro is not None:
            return self._parse_avro(values, self._avro, faults)
        readable = [b"" if value is None or i in faults else value for i, value in enumerate(values)]
        structs: list[msgspec.Struct | None] = []
        rest = iter(readable)
        while len(structs) < len(values):
            try:
                structs.extend(map(self._schema.decoder.decode, rest))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                i = len(structs)
                if i not in faults:
                    faults[i] = fault_of(readable[i], error, time_path=self._config.fields.time)
                structs.append(None)
        return structs, faults

    def _parse_avro(
        self, values: Sequence[bytes | None], avro: AvroRecords, faults: dict[int, Fault]
    ) -> tuple[list[msgspec.Struct | None], dict[int, Fault]]:
        structs: list[msgspec.Struct | None] = []
        for i, value in enumerate(values):
            found = faults[i] if value is None or i in faults else avro.decode(value)
            if isinstance(found, Fault):
                faults[i] = found
            structs.append(None if isinstance(found, Fault) else found)
        return structs, faults

    def _unreadable(self, values: Sequence[bytes | None]) -> dict[int, Fault]:
        """Records that are not even tried; a nesting takes two bytes a level, so short ones cannot be too deep."""
        faults = {}
        limit = min(2 * MAX_DEPTH, self._config.max_bytes)
        suspects = [i for i, value in enumerate(values) if value is None or len(value) > limit]
        for i in suspects:
            value = values[i]
            if value is None:
                faults[i] = Fault("malformed", "$: the record has no value")
            elif len(value) > self._config.max_bytes:
                faults[i] = Fault("too_large", f"{len(value)} bytes, events.max_bytes is {self._config.max_bytes}")
            elif self._avro is None and too_deep(value):
                faults[i] = TOO_DEEP
        return faults

    def _examine(
        self, events: Sequence[msgspec.Struct], *, block: RecordBlock, places: Sequence[int]
    ) -> dict[int, Fault]:
        """Rules that the struct's types cannot express, by the number of the event."""
        fields, faults = self._config.fields, dict[int, Fault]()
        types = self._schema.column(events, fields.type)
        kinds = [self._kinds.get(name, -1) for name in types]
        if -1 in kinds:
            faults |= {i: _unknown_type(fields.type, types[i]) for i, kind in enumerate(kinds) if kind < 0}
        items = self._schema.column(events, fields.item)
        if None in items:
            targets = self._targets(events)
            for i, item in enumerate(items):
                if item is None and (kinds[i] == IMPRESSION or targets[i] is None):
                    faults.setdefault(i, Fault("schema", f"$.{fields.item}: required, but missing"))
        for path in self._required:
            column = self._schema.column(events, path)
            if None in column:
                for i, value in enumerate(column):
                    if value is None and kinds[i] == IMPRESSION:
                        faults.setdefault(i, Fault("schema", f"$.{path}: required, but missing"))
        ahead_ms = self._times_ms(events) - block.append_times_ms[places]
        for i in np.flatnonzero(ahead_ms > self._max_ahead_ms).tolist():
            detail = f"$.{fields.time}: {ahead_ms[i]} ms after the record's own timestamp, allowed {self._max_ahead_ms}"
            faults.setdefault(i, Fault("ahead", detail))
        return faults

    def _columns(self, events: Sequence[msgspec.Struct], *, block: RecordBlock, places: Int64) -> EventBlock:
        schema, fields = self._schema, self._config.fields
        rows = np.zeros(len(events), EVENT)
        rows["offset"] = block.offsets[places]
        rows["append_ms"] = block.append_times_ms[places]
        rows["time_ms"] = self._times_ms(events)
        kinds = [self._kinds[name] for name in schema.column(events, fields.type)]
        rows["kind"] = kinds
        items = schema.column(events, fields.item)
        rows["has_item"], rows["item"], rows["item_id"] = _items(items)
        if fields.event_id is None:
            rows["event_id"] = rows["offset"]
        else:
            rows["event_id"] = hash_ids(schema.column(events, fields.event_id))
            rows["has_target"], rows["target"], _ = _items(self._targets(events))
        impressions = [event for event, kind in zip(events, kinds, strict=True) if kind == IMPRESSION]
        return EventBlock(
            rows=rows,
            keys=hash_ids(schema.column(events, fields.key)),
            record_keys=objects(block.keys)[places],
            values=objects(block.values)[places],
            impressions=self._reader.read(impressions),
        )

    def _targets(self, events: Sequence[msgspec.Struct]) -> list[int | str | None]:
        """The impressions that events name; without event ids nothing can be named."""
        fields = self._config.fields
        if fields.impression_id is None or fields.event_id is None:
            return [None] * len(events)
        return self._schema.column(events, fields.impression_id)

    def _times_ms(self, events: Sequence[msgspec.Struct]) -> Int64:
        times = self._schema.column(events, self._config.fields.time)
        if self._config.time_unit == "s":
            return np.rint(np.array(times, np.float64) * 1000).astype(np.int64)
        return np.array(times, np.int64)


def _items(ids: list[int | str | None]) -> tuple[AnyArray, Int64, Int64]:
    """(present, identity, id as a feature), each [M]; 0 where there is none."""
    present = np.array([one is not None for one in ids], np.bool_)
    known = ids if None not in ids else [one for one in ids if one is not None]
    identities = np.zeros(len(ids), np.int64)
    identities[present] = hash_ids(known)  # type: ignore[arg-type]
    feature_ids = identities.copy()
    numbers = [i for i, one in enumerate(ids) if type(one) is int]
    if numbers:
        feature_ids[numbers] = np.array([ids[i] for i in numbers], np.int64)
    return present, identities, feature_ids


def _quick(events: EventsConfig, schema: EventSchema, **sections: Any) -> EventColumns:
    """Imports numba, which nobody needs who decodes no stream."""
    from stream.event_columns import EventColumns

    return EventColumns(events, schema, **sections)


def _avro(events: EventsConfig, schema: EventSchema) -> AvroRecords:
    """Imports fastavro and the registry's client, which nobody needs who reads JSON."""
    from stream.avro import AvroRecords
    from stream.kafka.registry import registry_of

    return AvroRecords(events, into=schema.struct, schema_of=registry_of(events.registry).schema)


def _unknown_type(path: str, name: str) -> Fault:
    return Fault("type", f"$.{path}: unknown event type {name[:100]!r}")


def _rejected(block: RecordBlock, i: int, fault: Fault) -> Rejected:
    offset, append_time_ms = int(block.offsets[i]), int(block.append_times_ms[i])
    return Rejected(offset, append_time_ms, fault.reason, fault.detail, block.keys[i], block.values[i])
