"""How far the import of a file has come: one record per file and import, written in the transaction of its events."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import msgspec
import xxhash

from stream.config import Config
from stream.importers.rows import Mark
from stream.kafka import Reader, TopicExists, begin_offsets, create_topic, end_offsets, topic_id

FORMAT = 1
READ_TIMEOUT_MS = 200


class Tally(msgspec.Struct, kw_only=True):
    """What became of the rows so far."""

    rows: int = 0
    events: int = 0
    impressions: int = 0
    engagements: int = 0
    bad: dict[str, int] = {}
    """Rows that are no events, by reason."""
    first_bad: list[tuple[int, str]] = []
    """Line and detail of the first of them."""
    behind: int = 0
    """Events so much older than one before them that their session may be closed."""
    first_ms: int | None = None
    last_ms: int | None = None

    @property
    def bad_rows(self) -> int:
        """All rows that are no events."""
        return sum(self.bad.values())


class Progress(msgspec.Struct, kw_only=True, frozen=True):
    """The record's value."""

    format: int = FORMAT
    file: str = ""
    size: int = 0
    """Of the file on disk, when it was committed."""
    tally: Tally
    mark: Mark | None = None
    """The last row whose events are in the topic, where rows go in the file's order."""
    sorted_rows: int = 0
    """How many rows are, where they go in order of time."""
    content: str = ""
    """Digest of all rows that were sorted."""
    done: bool = False


def import_key(config: Config, *, identity: str, definition: str) -> str:
    """What is one import: a file, into one topic (by the broker's id of it), by one definition of its format."""
    topic = config.topics.interactions
    return f"{topic}/{topic_id(config.kafka, topic)}/{xxhash.xxh3_64_hexdigest(definition.encode())}/{identity}"


def make_topic(config: Config) -> None:
    """Create the topic for progress where it is missing."""
    with suppress(TopicExists):
        settings: Mapping[str, str] = {"cleanup.policy": "compact"}
        create_topic(
            config.kafka, config.topics.imports, partitions=1, replication=config.topics.replication, settings=settings
        )


def read_progress(config: Config, key: str) -> Progress | None:
    """What was committed last for this key; call it when no transaction of an earlier process can be open."""
    topic, found = config.topics.imports, None
    # Not the last stable offset: another import's open transaction may stand before our record.
    ends = end_offsets(config.kafka, topic, committed=False)
    with Reader(config.kafka, topic=topic, positions=begin_offsets(config.kafka, topic)) as reader:
        while any(reader.positions()[partition] < end for partition, end in ends.items()):
            for message in reader.poll(max_messages=10_000, timeout_ms=READ_TIMEOUT_MS):
                if message.key == key.encode():
                    found = message.value
    return decode_progress(found) if found else None


def decode_progress(value: bytes) -> Progress:
    """The inverse of `encode_progress`."""
    return msgspec.json.decode(value, type=Progress)


def encode_progress(progress: Progress) -> bytes:
    """The record's value as JSON."""
    return msgspec.json.encode(progress)
