"""What goes wrong on the way to the topic: records late, sent twice, or fit for no schema; reproducible by seed."""

from __future__ import annotations

import heapq
import json
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from stream.config import EventsConfig

YEAR_2099_MS = 4_070_908_800_000
MALFORMED = ("broken_json", "wrong_type", "missing_key", "dated_2099", "oversized")
_LARGEST_SENT = 900_000
_RETRY_WITHIN_MS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultOptions:
    """Fractions of the events; malformed records come on top of them."""

    out_of_order: float = 0.0
    out_of_order_ms: int = 400
    """A delayed event is sent at most so much after its time."""
    retries: float = 0.0
    """Sent twice with the same event id, as a producer does that did not hear the answer."""
    malformed: float = 0.0


class Sending(NamedTuple):
    """One record with the moment at which it is to be sent."""

    at_ms: int
    order: int
    key: bytes
    value: bytes
    what: str
    """`impression`, `click`, `purchase`, `duplicate`, or one of MALFORMED."""
    event_ms: int


class Faults:
    """Decides when each record is sent, and adds the doubled and the malformed ones."""

    def __init__(self, options: FaultOptions, *, events: EventsConfig, seed: int) -> None:
        self._options, self._events = options, events
        self._rng = np.random.default_rng((seed, 0xFA17))
        self._waiting: list[Sending] = []
        self._order = 0
        self._kinds = MALFORMED if events.max_bytes < _LARGEST_SENT else MALFORMED[:-1]

    def add(self, times_ms: np.ndarray, whats: list[str], keys: list[bytes], values: list[bytes]) -> None:
        """Take E events: their times (int64[E]), what they are, their keys and bytes."""
        options, rng = self._options, self._rng
        count = len(times_ms)
        late = rng.random(count) < options.out_of_order
        doubled = rng.random(count) < options.retries
        spoiled = rng.random(count) < options.malformed
        delays = rng.integers(1, max(2, options.out_of_order_ms + 1), count) * late
        times, at = times_ms.tolist(), (times_ms + delays).tolist()
        for i in range(count):
            self._push(at[i], keys[i], values[i], whats[i], times[i])
        for i in np.flatnonzero(doubled).tolist():
            again = at[i] + int(rng.integers(1, _RETRY_WITHIN_MS + 1))
            self._push(again, keys[i], values[i], "duplicate", times[i])
        for i in np.flatnonzero(spoiled).tolist():
            kind = self._kinds[int(rng.integers(len(self._kinds)))]
            self._push(at[i], keys[i], self._spoil(kind, values[i]), kind, at[i])

    def take(self, before_ms: int | None = None) -> list[Sending]:
        """The records to be sent before this time (None: all that wait), in the order of sending."""
        taken = []
        while self._waiting and (before_ms is None or self._waiting[0].at_ms < before_ms):
            taken.append(heapq.heappop(self._waiting))
        return taken

    def _push(self, at_ms: int, key: bytes, value: bytes, what: str, event_ms: int) -> None:
        self._order += 1
        heapq.heappush(self._waiting, Sending(at_ms, self._order, key, value, what, event_ms))

    def _spoil(self, kind: str, value: bytes) -> bytes:
        """A record that has one thing wrong with it, and an id of its own where it has one."""
        fields = self._events.fields
        if kind == "broken_json":
            return value[: len(value) // 2]
        tree = json.loads(value)
        if fields.event_id is not None:
            _set(tree, fields.event_id, f"bad-{self._order}")
        if kind == "wrong_type":
            _set(tree, fields.time, "n/a")
        elif kind == "missing_key":
            _set(tree, fields.key, None)
        elif kind == "dated_2099":
            _set(tree, fields.time, YEAR_2099_MS if self._events.time_unit == "ms" else YEAR_2099_MS // 1000)
        else:
            tree["padding"] = "x" * self._events.max_bytes
        return json.dumps(tree).encode()


def _set(tree: dict[str, object], path: str, value: object) -> None:
    """Set the field; None removes it."""
    *parents, leaf = path.split(".")
    for parent in parents:
        child = tree[parent]
        assert isinstance(child, dict)  # noqa: S101 - the renderer laid the path out
        tree = child
    if value is None:
        del tree[leaf]
    else:
        tree[leaf] = value
