"""What was read of one partition and is in no closed file yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from stream.archive.manifest import Kind
from stream.kafka import Message


@dataclass(frozen=True, slots=True)
class Log:
    """One topic that is archived."""

    kind: Kind
    topic: str
    topic_id: str


@dataclass(slots=True)
class Spool:
    """Consecutive records of one partition, from `first_offset` on; a file when there are enough of them."""

    log: Log
    partition: int
    first_offset: int
    messages: list[Message] = field(default_factory=list)
    rows: int = 0
    num_bytes: int = 0
    since_ms: int = 0
    """When the first of them came."""

    def add(self, messages: Sequence[Message], *, now_ms: int) -> None:
        """Behind what there is."""
        if not self.messages:
            self.since_ms = now_ms
        self.messages += messages
        self.num_bytes += sum(len(m.key or b"") + len(m.value or b"") for m in messages)

    def emptied(self, *, next_offset: int) -> None:
        """They are in a closed file, and that is committed."""
        self.first_offset = next_offset
        self.messages = []
        self.rows = self.num_bytes = 0
