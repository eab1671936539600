"""When to ask a server that did not answer: at growing intervals, so that its silence costs little."""

from __future__ import annotations


class Breaker:
    """Closed: calls pass. Open after a failure: calls are refused until a trial is due.

    The first pause is `first_ms`, and each further failure doubles it, up to `max_ms`.
    """

    def __init__(self, *, first_ms: int = 1_000, max_ms: int = 30_000) -> None:
        self._first_ms = first_ms
        self._max_ms = max_ms
        self._pause_ms = 0
        self._open_until_ms = 0

    @property
    def is_open(self) -> bool:
        """Whether the last call failed."""
        return self._pause_ms > 0

    def wait_ms(self, now_ms: int) -> int:
        """Return how long calls are still refused; 0: a call may pass."""
        return max(0, self._open_until_ms - now_ms) if self.is_open else 0

    def failed(self, now_ms: int) -> None:
        """Open, for longer than before."""
        self._pause_ms = min(self._max_ms, 2 * self._pause_ms or self._first_ms)
        self._open_until_ms = now_ms + self._pause_ms

    def succeeded(self) -> None:
        """Close."""
        self._pause_ms = 0
