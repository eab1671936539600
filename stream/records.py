"""Values that pass between the Kafka edge and the pure pipeline."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from dedup_cache import Rows

NO_WATERMARK = -(1 << 62)
"""The watermark of a partition that has accepted no event."""


@dataclass(frozen=True, slots=True)
class RecordBlock:
    """E consecutive records of one source partition, in offset order (offsets may have holes)."""

    partition: int
    offsets: np.ndarray
    """int64[E]"""
    append_times_ms: np.ndarray
    """int64[E], the records' own timestamps."""
    keys: list[bytes | None]
    values: list[bytes | None]


def take_records(block: RecordBlock, places: np.ndarray) -> RecordBlock:
    """The records at int64[n] places, in that order."""
    numbers = places.tolist()
    return RecordBlock(
        block.partition,
        block.offsets[places],
        block.append_times_ms[places],
        [block.keys[i] for i in numbers],
        [block.values[i] for i in numbers],
    )


@dataclass(frozen=True, slots=True)
class Rejected:
    """One record that leaves for `late` or `quarantine`, with its own bytes."""

    offset: int
    append_time_ms: int
    reason: str
    detail: str
    key: bytes | None
    value: bytes | None


@dataclass(frozen=True, slots=True)
class SampleBlock:
    """S samples in output order, one row per sample and group, not deduplicated."""

    offsets: np.ndarray
    """int64[S], of the impressions' records."""
    event_times_ms: np.ndarray
    """int64[S]"""
    append_times_ms: np.ndarray
    """int64[S]"""
    labels: np.ndarray
    """float32[S, L]"""
    weights: np.ndarray
    """float32[S]"""
    scores: np.ndarray
    """float32[S, L], NaN where none was logged."""
    groups: dict[str, Rows]
    """By group name, S rows each; lists computed from the session are overlapping slices."""

    @property
    def num_samples(self) -> int:
        """S."""
        return len(self.offsets)


@dataclass(frozen=True, slots=True)
class PipelineCounts:
    """What one call of the pipeline saw and did; `+` adds two of them."""

    events: int = 0
    impressions: int = 0
    engagements: int = 0
    duplicates: int = 0
    sessions_closed: int = 0
    samples: int = 0
    sampled_out: int = 0
    """Impressions whose session closed, but which `session.keep_negatives` leaves out."""
    positives: int = 0
    late: int = 0
    quarantined: int = 0

    def __add__(self, other: PipelineCounts) -> PipelineCounts:
        """Field by field."""
        return PipelineCounts(*(getattr(self, n) + getattr(other, n) for n in self.__slots__))


@dataclass(frozen=True, slots=True)
class PipelineOutput:
    """What one call of the pipeline emits, in order."""

    samples: SampleBlock | None = None
    late: list[Rejected] = field(default_factory=list)
    """Without key and value where those were not kept: to be read again from the log."""
    quarantined: list[Rejected] = field(default_factory=list)
    counts: PipelineCounts = PipelineCounts()


@dataclass(frozen=True, slots=True)
class CommitPoint:
    """Where a rebuild starts: the oldest offset that an open session still needs, and the watermark before it."""

    offset: int
    watermark_ms: int = NO_WATERMARK
