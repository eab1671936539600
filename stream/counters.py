"""What a worker has done, counted when it is committed and not before."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np

from dedup_cache import BatchStats
from dedup_cache.arrays import Int64
from stream.records import PipelineCounts

AGE_BOUNDS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)
"""Upper bounds of the histogram from event time to committed batch."""


@dataclass(slots=True)
class Counters:
    """Totals since the start of the process, except those of a transaction that is not committed yet."""

    events: int = 0
    impressions: int = 0
    engagements: int = 0
    duplicates: int = 0
    late: int = 0
    quarantined: int = 0
    sessions_closed: int = 0
    samples: int = 0
    sampled_out: int = 0
    positives: int = 0
    batches: int = 0
    batch_bytes: int = 0
    commits: int = 0
    aborts: int = 0
    rebuilds: int = 0
    restores: int = 0
    snapshot_bytes: int = 0
    rows_in: int = 0
    rows_distinct: int = 0
    ids_in: int = 0
    ids_stored: int = 0
    bytes_plain: int = 0
    bytes_dedup: int = 0
    values_shipped: int = 0
    near_hits: int = 0
    near_misses: int = 0
    redis_errors: int = 0
    redis_wait_ms: int = 0
    redis_refused: int = 0
    kafka_errors: int = 0
    restarts: int = 0

    def add(self, other: Counters) -> None:
        """Field by field."""
        for item in fields(self):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))


@dataclass(slots=True)
class Ages:
    """Histogram of milliseconds from event time to committed batch, per sample."""

    counts: Int64 = field(default_factory=lambda: np.zeros(len(AGE_BOUNDS_S) + 1, np.int64))
    """int64[bounds + 1]; the last one holds what lies above all bounds."""
    sum_ms: int = 0

    def observe(self, event_times_ms: Int64, *, now_ms: int) -> None:
        """Samples whose batch is committed now."""
        ages_ms = now_ms - event_times_ms
        bounds_ms = np.array(AGE_BOUNDS_S) * 1000
        self.counts += np.bincount(np.searchsorted(bounds_ms, ages_ms), minlength=len(bounds_ms) + 1)
        self.sum_ms += int(ages_ms.sum())


@dataclass(slots=True)
class Tally:
    """What the open transaction will have done when it commits."""

    counters: Counters = field(default_factory=Counters)
    event_times_ms: list[Int64] = field(default_factory=list)

    def saw(self, counts: PipelineCounts) -> None:
        """One call of a pipeline."""
        for name in PipelineCounts.__slots__:
            setattr(self.counters, name, getattr(self.counters, name) + getattr(counts, name))

    def built(self, stats: BatchStats, *, num_bytes: int, values: int, event_times_ms: Int64) -> None:
        """One batch."""
        self.counters.add(
            Counters(
                batches=1,
                batch_bytes=num_bytes,
                rows_in=stats.rows_in,
                rows_distinct=stats.rows_distinct,
                ids_in=stats.ids_in,
                ids_stored=stats.ids_stored,
                bytes_plain=stats.bytes_plain,
                bytes_dedup=stats.bytes_dedup,
                values_shipped=values,
            )
        )
        self.event_times_ms.append(event_times_ms)
