"""When to ask a server that is silent or slow: its silence costs little, its slowness a bounded share of the time."""

from __future__ import annotations


class WaitBound:
    """Bounds what waiting for answers may cost: a bucket that fills with waits and drains as time passes.

    Calls are refused while more than `burst_ms` is in it. Over any stretch of T ms the waits sum up to at most
    `share * T + burst_ms` and the longest single one.
    """

    def __init__(self, *, share: float = 0.25, burst_ms: int = 1_000) -> None:
        self.share = share
        self._burst_ms = burst_ms
        self._level_ms = 0.0
        self._at_ms = 0

    def wait_ms(self, now_ms: int) -> int:
        """Return how long calls are still refused; 0: a call may pass."""
        self._drain(now_ms)
        excess_ms = self._level_ms - self._burst_ms
        return int(excess_ms / self.share) + 1 if excess_ms > 0 else 0

    def waited(self, ms: int, *, now_ms: int) -> None:
        """A call ended that took so long, whatever came of it."""
        self._drain(now_ms)
        self._level_ms += ms

    def _drain(self, now_ms: int) -> None:
        """Not below nothing: time without calls is no credit."""
        self._level_ms = max(0.0, self._level_ms - self.share * max(0, now_ms - self._at_ms))
        self._at_ms = now_ms


class Breaker:
    """Closed: calls pass. Open after a failure, or when waits cost too much: calls are refused until a trial is due.

    After a failure the first pause is `first_ms`, and each further failure doubles it, up to `max_ms`. Without `waits`
    only failures count.
    """

    def __init__(self, *, first_ms: int = 1_000, max_ms: int = 30_000, waits: WaitBound | None = None) -> None:
        self._first_ms = first_ms
        self._max_ms = max_ms
        self._waits = waits
        self._pause_ms = 0
        self._open_until_ms = 0

    @property
    def is_open(self) -> bool:
        """Whether the last call failed."""
        return self._pause_ms > 0

    def wait_ms(self, now_ms: int) -> int:
        """Return how long calls are still refused; 0: a call may pass."""
        silent_ms = max(0, self._open_until_ms - now_ms) if self.is_open else 0
        return max(silent_ms, self._waits.wait_ms(now_ms) if self._waits else 0)

    def refusal(self, now_ms: int) -> str:
        """Why calls are refused, for people; empty: a call may pass."""
        wait_ms = self.wait_ms(now_ms)
        if not wait_ms:
            return ""
        if self._waits is None or self._open_until_ms > now_ms:
            return f"Redis did not answer, next trial in {wait_ms} ms"
        return (
            f"Redis is slow: waiting for it would take more than {self._waits.share:.0%} of the time, next call in "
            f"{wait_ms} ms. Look at its load, its disk and the network, or raise redis.max_wait_share"
        )

    def waited(self, ms: int, *, now_ms: int) -> None:
        """A call ended that took so long."""
        if self._waits is not None:
            self._waits.waited(ms, now_ms=now_ms)

    def failed(self, now_ms: int) -> None:
        """Open, for longer than before."""
        self._pause_ms = min(self._max_ms, 2 * self._pause_ms or self._first_ms)
        self._open_until_ms = now_ms + self._pause_ms

    def succeeded(self) -> None:
        """Close."""
        self._pause_ms = 0
