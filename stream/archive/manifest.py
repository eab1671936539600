"""The manifest: which files an archive consists of. A file that it does not list does not exist.

One record of the topic `archive` is one file. It is written in the transaction that commits how far the archive came,
after the file was closed; so a crash leaves at most a file that nobody reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from stream.archive.errors import ArchiveError
from stream.archive.place import spellings
from stream.config import Config, KafkaConfig
from stream.kafka import Reader, TopicExists, TopicMissing, begin_offsets, create_topic, end_offsets

FORMAT_VERSION = 1
POLL_MS = 100
FOREVER = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
Kind = Literal["events", "journal", "samples"]


class FileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One closed file: the records [first_offset, next_offset) of one partition, whatever stands in between."""

    version: int = FORMAT_VERSION
    kind: Kind
    url: str
    """Of the archive: its one spelling where it was written (see place.py); formerly as it was configured."""
    path: str
    """Below the URL."""
    topic: str
    topic_id: str
    partition: int
    first_offset: int
    next_offset: int
    rows: int
    bytes: int
    xxh3_128: str
    min_timestamp_ms: int
    max_timestamp_ms: int
    """Of the records, when they arrived."""
    written_ms: int


def encode_file_record(record: FileRecord) -> bytes:
    """One JSON object."""
    return msgspec.json.encode(record)


def make_manifest(config: Config) -> None:
    """Create the manifest's topic where it is missing."""
    try:
        create_topic(
            config.kafka,
            config.topics.archive,
            partitions=1,
            replication=config.topics.replication,
            settings=FOREVER,
        )
    except TopicExists:
        return


def read_manifest(kafka: KafkaConfig, topic: str) -> list[FileRecord]:
    """Every file that is listed, in the order in which they were; nothing where there is no manifest topic yet.

    Raises ArchiveError (a record that is not understood), BrokerUnavailable.
    """
    try:
        begins, ends = begin_offsets(kafka, topic), end_offsets(kafka, topic)
    except TopicMissing:
        return []
    records = []
    with Reader(kafka, topic=topic, positions={p: b for p, b in begins.items() if b < ends[p]}) as reader:
        while not reader.at_end:
            for message in reader.poll(max_messages=10_000, timeout_ms=POLL_MS):
                place = f"{topic}[{message.partition}]@{message.offset}"
                records.append(_decode(message.value or b"", place=place))
    return records


def files_at(records: Iterable[FileRecord], url: str) -> list[FileRecord]:
    """The files of one archive, whose URL is spelled as ArchiveStore does.

    Where the manifest knows no other than one, that is it, wherever it was moved to.

    Raises ArchiveError, naming the archives that there are.
    """
    records = list(records)
    spelled = spellings(record.url for record in records)
    by_url: dict[str, list[FileRecord]] = {}
    for record in records:
        by_url.setdefault(spelled[record.url], []).append(record)
    if url in by_url:
        return by_url[url]
    if len(by_url) == 1:
        return next(iter(by_url.values()))
    known = f"there are {', '.join(sorted(by_url))}" if by_url else "there is none: write one with `recd archive`"
    raise ArchiveError(f"{url}: the manifest lists no file of this archive; {known}")


def newest_log(files: Sequence[FileRecord]) -> list[FileRecord]:
    """Those of the topic as it is now: a topic that was deleted and made again began anew."""
    if not files:
        return []
    newest = max(files, key=lambda file: file.written_ms).topic_id
    return [file for file in files if file.topic_id == newest]


def _decode(data: bytes, *, place: str) -> FileRecord:
    try:
        record = msgspec.json.decode(data, type=FileRecord)
    except msgspec.MsgspecError as error:
        raise ArchiveError(f"{place}: not what an archive writes: {error}; see topics.archive") from None
    if record.version != FORMAT_VERSION:
        raise ArchiveError(f"{place}: format version {record.version}, this reader knows {FORMAT_VERSION}")
    return record
