"""How fast event time may pass in a replay."""

from __future__ import annotations

import numpy as np

from dedup_cache.arrays import Int64
from stream.records import NO_WATERMARK


class Pace:
    """Lets event time pass `speed` times as fast as the clock, from the first event on; None: as fast as it goes."""

    def __init__(self, speed: float | None) -> None:
        self._speed = speed
        self._first_ms = NO_WATERMARK
        self._began_ms = 0

    @property
    def is_bound(self) -> bool:
        """Whether there is a limit at all."""
        return self._speed is not None

    def wait_ms(self, event_time_ms: int, *, now_ms: int) -> int:
        """How long nothing behind `event_time_ms` may be processed; 0 when it is time."""
        if self._speed is None or event_time_ms == NO_WATERMARK:
            return 0
        if self._first_ms == NO_WATERMARK:
            self._first_ms, self._began_ms = event_time_ms, now_ms
        due_ms = self._began_ms + (event_time_ms - self._first_ms) / self._speed
        return max(0, round(due_ms - now_ms))

    def num_due(self, event_times_ms: Int64, *, now_ms: int) -> int:
        """How many of these, one after the other, may be processed now."""
        if self._speed is None:
            return event_times_ms.size
        if not event_times_ms.size or self.wait_ms(int(event_times_ms[0]), now_ms=now_ms):
            return 0
        passed_ms = self._first_ms + (now_ms - self._began_ms) * self._speed
        early = np.flatnonzero(event_times_ms > passed_ms)
        return max(1, int(early[0])) if early.size else event_times_ms.size


class Strides:
    """How many records to process at once, so that event time can be stopped where it has to."""

    WHOLE, LONGEST = 1 << 30, 1024

    def __init__(self, *, is_bound: bool) -> None:
        self._is_bound = is_bound
        self._next = 1

    def next(self, *, waited: bool) -> int:
        """Everything without a limit; else longer strides while the replay lags, single ones while it waits."""
        if not self._is_bound:
            return self.WHOLE
        self._next = 1 if waited else min(2 * self._next, self.LONGEST)
        return self._next
