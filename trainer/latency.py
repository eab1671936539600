"""How old samples are when the weights that learned from them are taken."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STEPS_PER_OCTAVE = 8
BOUNDS_MS = np.concatenate([[1.0], 2.0 ** (np.arange(1, 45 * STEPS_PER_OCTAVE + 1) / STEPS_PER_OCTAVE)])
"""Upper bounds of the bins: a ninth wide, from a millisecond to a thousand years; one more bin is open above."""
MAX_PENDING = 2_000_000


@dataclass(frozen=True)
class Percentiles:
    """Milliseconds; None before the first value."""

    p50: float | None
    p95: float | None
    p99: float | None


class Histogram:
    """Counts of durations in milliseconds, in bins that grow by a ninth."""

    def __init__(self) -> None:
        self.counts = np.zeros(len(BOUNDS_MS) + 1, dtype=np.int64)
        self.sum_ms = 0.0

    def add(self, durations_ms: np.ndarray) -> None:
        """Take in N durations; negative ones (clocks differ) count as 0."""
        durations = np.maximum(durations_ms, 0)
        bins = np.searchsorted(BOUNDS_MS, durations)
        self.counts += np.bincount(bins, minlength=len(self.counts))
        self.sum_ms += float(durations.sum())

    def merge(self, counts: np.ndarray, sum_ms: float) -> None:
        """Take in what another one counted."""
        self.counts += counts
        self.sum_ms += sum_ms

    def percentiles(self) -> Percentiles:
        """Interpolated inside a bin."""
        return Percentiles(*(self._quantile(q) for q in (0.5, 0.95, 0.99)))

    def cumulative(self) -> list[tuple[str, float]]:
        """Prometheus' form: (upper bound in seconds, count up to it) at powers of two of a millisecond, and +Inf."""
        sums = np.cumsum(self.counts)
        places = range(0, len(BOUNDS_MS), STEPS_PER_OCTAVE)
        bounds = [(str(BOUNDS_MS[i] / 1000), float(sums[i])) for i in places if BOUNDS_MS[i] < 1e9]
        return [*bounds, ("+Inf", float(sums[-1]))]

    def _quantile(self, q: float) -> float | None:
        total = int(self.counts.sum())
        if not total:
            return None
        sums = np.cumsum(self.counts)
        place = int(np.searchsorted(sums, q * total))
        low = float(BOUNDS_MS[place - 1]) if place else 0.0
        high = float(BOUNDS_MS[min(place, len(BOUNDS_MS) - 1)])
        below = int(sums[place - 1]) if place else 0
        share = (q * total - below) / int(self.counts[place])
        return round(low + (high - low) * share, 3)


class Ages:
    """Event and append times of the samples that were trained since the weights were last taken."""

    def __init__(self) -> None:
        self.event_to_weights, self.append_to_weights = Histogram(), Histogram()
        self.not_measured = 0
        """Samples whose age was given up because no weights were taken for too long."""
        self._pending: list[np.ndarray] = []
        self._num_pending = 0

    def add(self, event_times_ms: np.ndarray, append_times_ms: np.ndarray) -> None:
        """Samples were trained."""
        if self._num_pending > MAX_PENDING:
            self.not_measured += len(event_times_ms)
            return
        self._pending.append(np.stack([event_times_ms, append_times_ms]))
        self._num_pending += len(event_times_ms)

    def taken(self, now_ms: int) -> None:
        """The weights were taken."""
        if self._pending:
            ages = now_ms - np.concatenate(self._pending, axis=1)
            self.event_to_weights.add(ages[0])
            self.append_to_weights.add(ages[1])
        self._pending, self._num_pending = [], 0
