"""What an archive is asked for, and what it reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from stream.archive.manifest import Kind
from stream.archive.spool import Log
from stream.config import Config
from stream.kafka import Message, topic_id


class Format(Protocol):
    """What a file of one log holds."""

    poll_records: int
    """How many records to read at once: a file may be larger than configured by so many."""

    def rows(self, message: Message) -> int:
        """How many rows it makes. Raises ArchiveError: it cannot be archived, what came before it can."""
        ...

    def encode(self, messages: Sequence[Message]) -> tuple[bytes, int]:
        """(the file, its number of rows) of consecutive records of one partition."""
        ...


@dataclass(frozen=True, slots=True)
class ArchiveRequest:
    """Which logs are archived, each in its format, by one process under one name."""

    name: str
    """Tells this archive from others of the same configuration; the same name twice fences the first."""
    formats: Mapping[Log, Format]
    until_end: bool = False
    """Stop at what is there now."""
    accept_gap: bool = False
    """Go on where records were deleted before they were archived."""


@dataclass(slots=True)
class ArchiveReport:
    """What this run did."""

    url: str
    files: int = 0
    rows: int = 0
    records: int = 0
    bytes: int = 0
    source_bytes: int = 0
    """Keys and values of the records."""
    gaps: list[str] = field(default_factory=list)
    wall_s: float = 0.0


def log_of(config: Config, kind: Kind, topic: str) -> Log:
    """The topic as it is now. Raises TopicMissing."""
    return Log(kind, topic, topic_id(config.kafka, topic))
