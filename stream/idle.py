"""When silence counts as time: only while the broker itself says, again and again, that there is nothing more."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Silence:
    """The end of one partition, as it lasts. A broker outage, a pause or a stalled worker is not silence.

    Times are milliseconds of one monotonic clock; `max_gap_ms` is how far apart two proofs of the end may lie.
    """

    after_ms: int
    max_gap_ms: int
    _not_before_ms: int = 0
    _since_ms: int | None = None
    _last_ms: int = 0
    _base_ms: int = 0

    def broken(self, now_ms: int) -> None:
        """A record came, or an error, a pause, a new assignment: whatever was known of the end is over."""
        self._not_before_ms = now_ms
        self._since_ms = None

    def confirmed(self, asked_ms: int, *, watermark_ms: int) -> int | None:
        """The end was still the end when the broker was asked at `asked_ms`.

        Returns the watermark as it was when the silence began plus the time that it lasts; None while that is
        shorter than `after_ms`.
        """
        if asked_ms < self._not_before_ms:
            return None
        if self._since_ms is None or asked_ms - self._last_ms > self.max_gap_ms:
            self._since_ms = asked_ms
            self._base_ms = watermark_ms
        self._last_ms = asked_ms
        lasted_ms = asked_ms - self._since_ms
        return self._base_ms + lasted_ms if lasted_ms >= self.after_ms else None
