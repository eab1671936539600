"""How files are imported, and what is told about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from stream.importers.progress import Tally
from stream.importers.rows import Order

BAD_ROWS_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Look:
    """How far one file has come."""

    file: Path
    phase: str
    """sorting or sending"""
    done: int
    total: int
    """Bytes of the file on disk; while sorted rows are sent, rows."""
    events: int
    """Sent so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """How files are imported."""

    order: Order | None = None
    """None: what the format needs."""
    rate: float | None = None
    """Events per second; as fast as it goes without."""
    max_bad: int | None = None
    """More bad rows than this in one file end the import; None: never."""
    again: bool = False
    """From the beginning, although all of it or a part is in the topic: its events are repeated."""
    temp: Path | None = None
    """Where rows are sorted; the system's folder without."""
    stop: Event = field(default_factory=Event)
    on_progress: Callable[[Look], object] = lambda _: None


@dataclass(frozen=True, slots=True)
class FileReport:
    """What became of one file's rows, over all runs that it took."""

    file: str
    complete: bool
    resumed_rows: int
    """Rows whose events were in the topic before this run."""
    rows: int
    events: int
    impressions: int
    engagements: int
    bad_rows: int
    bad_by_reason: dict[str, int]
    first_bad_rows: list[tuple[int, str]]
    """(line, what is wrong with it) of the first BAD_ROWS_SHOWN."""
    behind: int
    """Events more than out_of_orderness_ms + gap_ms behind a newer one: the worker may find them too late."""
    first_event_ms: int | None
    last_event_ms: int | None

    @staticmethod
    def of(file: str, tally: Tally, *, complete: bool, resumed_rows: int) -> FileReport:
        """The report of a tally."""
        return FileReport(
            file=file,
            complete=complete,
            resumed_rows=resumed_rows,
            rows=tally.rows,
            events=tally.events,
            impressions=tally.impressions,
            engagements=tally.events - tally.impressions,
            bad_rows=tally.bad_rows,
            bad_by_reason=dict(sorted(tally.bad.items(), key=lambda entry: -entry[1])),
            first_bad_rows=tally.first_bad,
            behind=tally.behind,
            first_event_ms=tally.first_ms,
            last_event_ms=tally.last_ms,
        )


@dataclass(frozen=True, slots=True)
class ImportReport:
    """All files together, and each by itself."""

    rows: int
    events: int
    impressions: int
    engagements: int
    bad_rows: int
    complete: bool
    """Every file to its end."""
    wall_s: float
    files: list[FileReport]

    @staticmethod
    def of(files: list[FileReport], *, complete: bool, wall_s: float) -> ImportReport:
        """The sum of these."""
        return ImportReport(
            rows=sum(file.rows for file in files),
            events=sum(file.events for file in files),
            impressions=sum(file.impressions for file in files),
            engagements=sum(file.engagements for file in files),
            bad_rows=sum(file.bad_rows for file in files),
            complete=complete,
            wall_s=round(wall_s, 3),
            files=files,
        )
