"""Which part of a partition's history is replayed: between two journal entries, whose state and counts are known.

A commit of the live run flushes, so at a journal entry the samples before and behind it part cleanly, and two
stretches that meet share nothing and leave nothing out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from stream.journal import Advance, JournalRecord
from stream.replay.errors import NoJournal, RangeGone


@dataclass(frozen=True, slots=True)
class Entry:
    """A journal record and its own timestamp."""

    record: JournalRecord
    written_ms: int


@dataclass(frozen=True, slots=True)
class Bound:
    """One end of a stretch: an offset, a time (of the records' own timestamps), or as far as there is anything."""

    offset: int | None = None
    time_ms: int | None = None

    def __str__(self) -> str:
        """The same text for the same bound, for people and for the progress that is committed."""
        if self.offset is not None:
            return f"offset {self.offset}"
        if self.time_ms is not None:
            return datetime.fromtimestamp(self.time_ms / 1000, UTC).isoformat(timespec="milliseconds")
        return "the beginning"


EVERYTHING = Bound()


@dataclass(frozen=True, slots=True)
class Stretch:
    """What is replayed of one partition: rebuild silently up to `start`, then what `entries` say, in order."""

    start: Entry
    advances: tuple[Advance, ...]
    """Of the rebuild: between `start.record.offset` and its `resume`."""
    entries: tuple[Entry, ...]

    @property
    def last(self) -> Entry:
        """Where it ends."""
        return self.entries[-1] if self.entries else self.start

    @property
    def num_offsets(self) -> int:
        """Offsets between start and end."""
        return self.last.record.resume - self.start.record.resume


def choose(history: Sequence[Entry], *, place: str, begin: int, first: int | None, last: int | None) -> Stretch:
    """The stretch from the entry with the greatest resume <= `first` to that with the greatest resume <= `last`.

    `history` are all entries of the partition in order, `begin` is the oldest offset that can still be read. None for
    `first`: the oldest entry whose rebuild can still be read; None for `last`: the newest. Raises NoJournal, RangeGone.
    """
    entries = _since_rewound(history)
    if not entries:
        raise NoJournal(
            f"{place}: the journal has no entry: the live stream never committed anything of this partition"
        )
    start = _first_readable(entries, begin) if first is None else _greatest(entries, first)
    if start is None:
        known = entries[0].record
        if first is None or known.resume <= first:
            raise RangeGone(_gone(place, begin, entries[-1].record.offset))
        raise NoJournal(
            f"{place}: no journal entry at or before offset {first}: the live stream began at offset {known.resume}; "
            "begin the replay there"
        )
    if entries[start].record.offset < begin:
        raise RangeGone(_gone(place, begin, entries[start].record.offset))
    return _up_to(entries, start, last)


def go_on(history: Sequence[Entry], *, place: str, begin: int, commit: int, last: int | None) -> Stretch:
    """The stretch behind the entry of commit number `commit`, where an earlier run of the replay came to.

    Raises NoJournal, RangeGone.
    """
    entries = _since_rewound(history)
    start = next((i for i, entry in enumerate(entries) if entry.record.commit == commit), None)
    if start is None:
        raise NoJournal(f"{place}: the replay came to commit {commit}, which the journal does not have any more")
    stretch = _up_to(entries, start, last)
    if stretch.entries and entries[start].record.offset < begin:
        raise RangeGone(_gone(place, begin, entries[start].record.offset))
    return stretch


def _up_to(entries: Sequence[Entry], start: int, last: int | None) -> Stretch:
    """From entry number `start` to the one with the greatest resume <= `last`."""
    greatest = len(entries) - 1 if last is None else _greatest(entries, last)
    end = start if greatest is None else max(start, greatest)
    point = entries[start].record
    advances = tuple(a for entry in entries[: start + 1] for a in entry.record.advances if a.position >= point.offset)
    return Stretch(entries[start], advances, tuple(entries[start + 1 : end + 1]))


def _since_rewound(history: Sequence[Entry]) -> Sequence[Entry]:
    """The entries since the end of the log was lost last: what earlier ones say of it is not there any more."""
    for i in range(len(history) - 1, 0, -1):
        if history[i].record.resume < history[i - 1].record.resume:
            return history[i:]
    return history


def _greatest(entries: Sequence[Entry], position: int) -> int | None:
    """Number of the last entry with the greatest resume <= position."""
    return next((i for i in range(len(entries) - 1, -1, -1) if entries[i].record.resume <= position), None)


def _first_readable(entries: Sequence[Entry], begin: int) -> int | None:
    return next((i for i, entry in enumerate(entries) if entry.record.offset >= begin), None)


def _gone(place: str, begin: int, needed: int) -> str:
    return (
        f"{place}: the replay needs the records from offset {needed} on, but there is nothing before offset {begin} "
        "any more (retention). Begin later, or read them from the archive: `recd replay --archive URL`"
    )
