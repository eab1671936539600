"""A slow second implementation of one partition's pipeline: dicts, lists and loops, nothing shared with the real one.

It reads parsed events, so that what is malformed is known beforehand and not decided by it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash

from stream.config import Config
from stream.records import PipelineOutput

START_OF_TIME = -(1 << 62)


@dataclass
class Emitted:
    """Everything that came out, in order, as plain values that compare."""

    samples: list[dict[str, Any]] = field(default_factory=list)
    late: list[tuple[Any, ...]] = field(default_factory=list)
    quarantined: list[tuple[Any, ...]] = field(default_factory=list)
    duplicates: int = 0
    sessions_closed: int = 0

    def add(self, output: PipelineOutput) -> None:
        """Append what one call of the real pipeline emitted."""
        self.samples += samples_of(output)
        self.late += [(r.offset, r.append_time_ms, r.reason, r.key, r.value) for r in output.late]
        self.quarantined += [(r.offset, r.append_time_ms, r.reason, r.key, r.value) for r in output.quarantined]
        self.duplicates += output.counts.duplicates
        self.sessions_closed += output.counts.sessions_closed


def samples_of(output: PipelineOutput) -> list[dict[str, Any]]:
    """The samples of an output, one dict each."""
    block = output.samples
    if block is None:
        return []
    samples = []
    for i in range(block.num_samples):
        groups = {
            name: {"dense": rows.dense[i].tolist()} | {n: column.rows()[i].tolist() for n, column in rows.lists.items()}
            for name, rows in block.groups.items()
        }
        samples.append(
            {
                "offset": int(block.offsets[i]),
                "time_ms": int(block.event_times_ms[i]),
                "append_ms": int(block.append_times_ms[i]),
                "labels": block.labels[i].tolist(),
                "weight": float(block.weights[i]),
                "scores": [None if np.isnan(s) else float(s) for s in block.scores[i]],
                "groups": groups,
            }
        )
    return samples


@dataclass
class Event:
    """An accepted or rejected event with its source record."""

    offset: int
    append_ms: int
    key: bytes | None
    value: bytes
    body: dict[str, Any]

    @property
    def time_ms(self) -> int:
        return int(self.body["event_time_ms"])


@dataclass
class Session:
    key: str
    cell: int
    all_events: list[Event]
    kept: list[Event]


def text_hash(thing: int | str) -> int:
    digest = xxhash.xxh3_64_intdigest(str(thing).encode())
    return digest - 2**64 if digest >= 2**63 else digest


class Oracle:
    """Evaluates the rules of a partition one record at a time."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.watermark_ms = START_OF_TIME
        self.open: list[Session] = []
        self.emitted = Emitted()
        self.before: dict[int, int] = {}
        self.position = 0

    def record(self, offset: int, *, append_ms: int, key: bytes | None, value: bytes | None, outcome: Any) -> None:
        """`outcome` is the parsed event, or the reason of a record that must be quarantined."""
        self.close_due()
        self.before[offset] = self.watermark_ms
        self.position = offset + 1
        if isinstance(outcome, str):
            self.emitted.quarantined.append((offset, append_ms, outcome, key, value))
            return
        assert value is not None
        event = Event(offset, append_ms, key, value, outcome)
        if event.time_ms + self.config.session.gap_ms <= self.watermark_ms:
            self.leave(event, "late")
            return
        self.place(event)
        self.watermark_ms = max(self.watermark_ms, event.time_ms - self.config.session.out_of_orderness_ms)

    def advance(self, watermark_ms: int) -> None:
        self.close_due()
        self.watermark_ms = max(self.watermark_ms, watermark_ms)
        self.close_due()

    def commit_offset(self) -> int:
        return min((e.offset for s in self.open for e in s.all_events), default=self.position)

    def place(self, event: Event) -> None:
        session_config = self.config.session
        key = str(event.body["user_id"])
        shift = (text_hash(key) % 2**64) % session_config.max_duration_ms
        cell = (event.time_ms + shift) // session_config.max_duration_ms
        near = [
            s
            for s in self.open
            if s.key == key
            and s.cell == cell
            and any(abs(event.time_ms - other.time_ms) < session_config.gap_ms for other in s.all_events)
        ]
        session = Session(key, cell, [e for s in near for e in s.all_events], [])
        for other in sorted((e for s in near for e in s.kept), key=lambda e: e.offset):
            self.keep(session, other)
        session.all_events.append(event)
        self.keep(session, event)
        self.open = [s for s in self.open if not any(s is n for n in near)] + [session]

    def keep(self, session: Session, event: Event) -> None:
        if any(str(e.body["event_id"]) == str(event.body["event_id"]) for e in session.kept):
            self.emitted.duplicates += 1
        elif len(session.kept) >= self.config.session.max_events:
            self.leave(event, "full")
        else:
            session.kept.append(event)

    def leave(self, event: Event, reason: str) -> None:
        self.emitted.late.append((event.offset, event.append_ms, reason, event.key, event.value))

    def close_due(self) -> None:
        def due(session: Session) -> tuple[int, int]:
            last_ms = max(e.time_ms for e in session.all_events)
            return last_ms + self.config.session.gap_ms, min(e.offset for e in session.all_events)

        for session in sorted(self.open, key=due):
            if due(session)[0] <= self.watermark_ms:
                self.open = [s for s in self.open if s is not session]
                self.emit(session)

    def emit(self, session: Session) -> None:
        self.emitted.sessions_closed += 1
        events = sorted(session.kept, key=lambda e: (e.time_ms, e.offset))
        impressions = [e for e in events if e.body["type"] in self.config.events.impressions]
        found: dict[int, Event | None] = {}
        for event in events:
            if event not in impressions:
                found[event.offset] = self.impression_of(event, impressions)
                if found[event.offset] is None:
                    self.leave(event, "unmatched")
        for impression in impressions:
            kinds = [e.body["type"] for e in events if e.offset in found and found[e.offset] is impression]
            labels = [float(any(k in label.engagements for k in kinds)) for label in self.config.labels]
            self.emitted.samples.append(self.sample(impression, events, found, labels))

    def impression_of(self, engagement: Event, impressions: list[Event]) -> Event | None:
        target = engagement.body.get("impression_id")
        best = None
        for impression in impressions:
            if target is not None:
                if str(impression.body["event_id"]) == str(target):
                    return impression
            elif impression.time_ms <= engagement.time_ms and same_item(impression, engagement):
                best = impression
        return best

    def sample(
        self, impression: Event, events: list[Event], found: dict[int, Event | None], labels: list[float]
    ) -> dict[str, Any]:
        groups: dict[str, dict[str, Any]] = {}
        for feature in self.config.features:
            group = groups.setdefault(feature.group, {"dense": []})
            if feature.source is not None:
                value = self.session_value(feature.source, impression, events, found)
            else:
                value = self.event_value(feature, impression.body)
            if feature.is_dense:
                group["dense"] += [float(np.float32(v)) for v in (value if isinstance(value, list) else [value])]
            else:
                group[feature.name] = value[max(0, len(value) - feature.max_length) :]
        return {
            "offset": impression.offset,
            "time_ms": impression.time_ms,
            "append_ms": impression.append_ms,
            "labels": labels,
            "weight": 1.0,
            "scores": [
                None
                if label.score_field is None or impression.body.get(label.score_field) is None
                else float(np.float32(impression.body[label.score_field]))
                for label in self.config.labels
            ],
            "groups": groups,
        }

    def event_value(self, feature: Any, body: dict[str, Any]) -> Any:
        value: Any = body
        for part in (feature.field or feature.name).split("."):
            value = None if value is None else value.get(part)
        if feature.type == "float":
            return feature.default if value is None else value
        if feature.type == "list[float]":
            return [feature.default] * feature.length if value is None else value
        if value is None:
            return []
        return [
            text_hash(v) if "string" in feature.type else v for v in (value if isinstance(value, list) else [value])
        ]

    def session_value(self, source: str, impression: Event, events: list[Event], found: dict[int, Event | None]) -> Any:
        earlier = [e for e in events if e.time_ms < impression.time_ms]
        shown = [e for e in earlier if e.offset not in found]
        engaged = [e for e in earlier if e.offset in found]
        if source == "session.items":
            return [item_id(e.body["item_id"]) for e in shown]
        if source == "session.engaged_items":
            carriers = [e if e.body.get("item_id") is not None else found[e.offset] for e in engaged]
            return [item_id(c.body["item_id"]) for c in carriers if c is not None]
        if source == "session.impressions":
            return len(shown)
        if source == "session.engagements":
            return len(engaged)
        if not earlier:
            return 0
        reference = earlier[-1] if source == "session.ms_since_last_event" else earlier[0]
        return impression.time_ms - reference.time_ms


def same_item(one: Event, other: Event) -> bool:
    return str(one.body["item_id"]) == str(other.body["item_id"])


def item_id(item: int | str) -> int:
    return item if isinstance(item, int) else text_hash(item)
