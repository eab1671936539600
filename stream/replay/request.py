"""What a replay is asked for, and what it reports."""

from __future__ import annotations

from dataclasses import dataclass, field

from stream.records import PipelineCounts
from stream.replay.stretch import EVERYTHING, Bound
from stream.replay.target import Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayRequest:
    """What is replayed, where to and how fast."""

    into: str
    """The topic that is written."""
    first: Bound = EVERYTHING
    last: Bound = EVERYTHING
    partitions: tuple[int, ...] = ()
    """Of `interactions`; all of them when empty."""
    speed: float | None = None
    """Times as fast as event time; None: as fast as it goes."""
    follow: bool = False
    """Behind the stretch, copy the live batches until told to stop."""


@dataclass(slots=True)
class PartitionReport:
    """One source partition, from the beginning of the replay, whatever part of it an earlier run made."""

    from_offset: int
    to_offset: int
    from_sample: int
    to_sample: int
    """Samples are counted as the live run counts them; these are [from_sample, to_sample)."""


@dataclass(slots=True)
class ReplayReport:
    """What this run of a replay did."""

    into: str
    begin: str
    end: str
    resumed: bool
    """Whether it went on where an earlier run had stopped."""
    what: str = "events"
    """What it was made of: events, or archived samples."""
    complete: bool = False
    """Whether the end of the stretch was reached."""
    partitions: dict[int, PartitionReport] = field(default_factory=dict)
    events: int = 0
    """Events, or samples, that were read."""
    late: int = 0
    quarantined: int = 0
    """Late and quarantined events are counted; the live run has written them."""
    written: Tally = field(default_factory=Tally)
    aborts: int = 0
    wall_s: float = 0.0

    def saw(self, counts: PipelineCounts) -> None:
        """Add what a partition did."""
        self.events += counts.events
        self.late += counts.late
        self.quarantined += counts.quarantined
