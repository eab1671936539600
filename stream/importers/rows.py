"""What passes between a file and the topic: rows as they stand in the file, events, and rows that are none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple, Protocol

from stream.config import ConfigError

NOTHING: Mapping[str, object] = MappingProxyType({})


class ImportFileError(ConfigError):
    """The file cannot be read as this format; the message names the file, the line and what was expected."""


class BadRowError(Exception):
    """A row is no event: a reason, one word to count by, and a detail for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class Order(StrEnum):
    """In which order the rows of a file become events."""

    FILE = "file"
    """As they stand: for files that are in order of time."""
    TIME = "time"
    """Sorted by time first, on disk, in constant memory."""


class Row(NamedTuple):
    """One row of a file, not parsed."""

    number: int
    """1 for the first row, a header not counted."""
    line: int
    """The line it begins in, 1 for the first of the file."""
    start: int
    end: int
    """Its bytes in the unpacked file are [start, end); in a Parquet file, its number and the one behind it."""
    raw: bytes
    fault: BadRowError | None = None
    """Why it cannot even be parsed."""


class ImportedEvent(NamedTuple):
    """One event."""

    id: str
    type: str
    time_ms: int
    key: str
    item: str
    impression_id: str | None = None
    """On engagements: the event that they belong to; where it is None the join is by (key, item)."""
    request_id: str | None = None
    extra: Mapping[str, object] = NOTHING
    """Further fields of the event, by name."""


class Mark(NamedTuple):
    """Where reading goes on: behind this row, which must still stand there."""

    number: int
    line: int
    start: int
    digest: str
    """xxh3_64 of the row's bytes."""


class Source(Protocol):
    """The rows of one file."""

    identity: str
    """Digest of how the file begins: the same for a copy of it, and for the file with rows appended."""
    size: int
    """Bytes on disk."""

    def rows(self, after: Mark | None = None) -> Iterator[Row]:
        """All rows behind a mark, in the file's order. Raises ImportFileError: unreadable, torn, or changed."""
        ...

    def bytes_read(self) -> int:
        """Of the file on disk, as far as `rows` has come."""
        ...

    def close(self) -> None:
        """Release the file."""
        ...


Parser = Callable[[bytes, str], list[ImportedEvent]]
"""A row's bytes and the id for its event -> its events, all of one time. Raises BadRowError."""


@dataclass(frozen=True, slots=True)
class OpenedFile:
    """A file whose header was read and fits."""

    source: Source
    parse: Parser


@dataclass(frozen=True, slots=True)
class Format:
    """How files of one kind are read."""

    open: Callable[..., OpenedFile]
    """(path) or, where `takes_items`, (path, items=path of a catalogue). Raises ImportFileError."""
    order: Order
    """What such files need."""
    help: str
    """One line for people: where the format comes from, what is an impression, what an engagement."""
    takes_items: bool = False
    definition: str = ""
    """What beside the name decides which events come out: the column map."""
