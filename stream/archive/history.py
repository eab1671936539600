"""An archive as a replay reads it: the records and the journal of the topic, file by file, in the order of the log."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from stream.archive.errors import ArchiveError
from stream.archive.event_files import decode_records
from stream.archive.manifest import FileRecord, files_at, newest_log, read_manifest
from stream.archive.store import ArchiveStore
from stream.config import Config
from stream.journal import decode_record
from stream.partition import cut_block
from stream.records import RecordBlock
from stream.replay.stretch import Entry

BLOCK_RECORDS = 10_000


class ArchiveHistory:
    """The archive at a URL, as far as the manifest lists it (see stream.replay.history.History)."""

    def __init__(self, config: Config, url: str) -> None:
        """Raises ArchiveError where the manifest lists no events and journal of this archive."""
        self._store = ArchiveStore(url)
        topics = config.topics
        listed = files_at(read_manifest(config.kafka, topics.archive), self._store.url)
        self._events = by_partition(newest_log([f for f in listed if f.topic == topics.interactions]))
        self._journal = by_partition(newest_log([f for f in listed if f.topic == topics.journal]))
        if not self._events or not self._journal:
            raise ArchiveError(
                f"{url}: the archive has no events and journal of '{topics.interactions}': `recd archive` writes them"
            )

    def begins(self) -> Mapping[int, int]:
        """By partition, the offset from which on nothing is missing."""
        return {partition: files[0].first_offset for partition, files in self._events.items()}

    def at(self, time_ms: int) -> Mapping[int, int]:
        """See History."""
        return {partition: self._at(files, time_ms) for partition, files in self._events.items()}

    def entries(self, partitions: Iterable[int]) -> Mapping[int, list[Entry]]:
        """By partition, the journal entries whose records are archived, in order. Raises FileDamaged, JournalError."""
        found: dict[int, list[Entry]] = {partition: [] for partition in partitions}
        ends = {partition: files[-1].next_offset for partition, files in self._events.items()}
        topic_ids = {files[-1].topic_id for files in self._events.values()}
        for file in (file for files in self._journal.values() for file in files):
            block = self._read(file)
            rows = zip(block.offsets.tolist(), block.append_times_ms.tolist(), block.values, strict=True)
            for offset, written_ms, value in rows:
                record = decode_record(value or b"", place=f"{file.path}, {file.topic}[{file.partition}]@{offset}")
                wanted = record.partition in found and record.topic_id in topic_ids
                if wanted and record.resume <= ends.get(record.partition, 0):
                    found[record.partition].append(Entry(record, written_ms))
        return found

    def open(self, positions: Mapping[int, int]) -> ArchiveRecords:
        """See History."""
        return ArchiveRecords(self._store, self._events, positions)

    def _read(self, file: FileRecord) -> RecordBlock:
        return decode_records(self._store.read(file), partition=file.partition, place=f"{self._store.url}/{file.path}")

    def _at(self, files: Sequence[FileRecord], time_ms: int) -> int:
        """Arrival times ascend with the offsets where the broker stamps; where they do not, the first that fits."""
        for file in files:
            if file.max_timestamp_ms >= time_ms:
                block = self._read(file)
                return int(block.offsets[np.argmax(block.append_times_ms >= time_ms)])
        return files[-1].next_offset


class ArchiveRecords:
    """Reads partitions of an archive, one block of each after the other (see stream.replay.history.Records)."""

    def __init__(
        self, store: ArchiveStore, files: Mapping[int, Sequence[FileRecord]], positions: Mapping[int, int]
    ) -> None:
        self._store = store
        self._files = files
        self._positions = dict(positions)
        self._paused: set[int] = set()
        self._blocks = {partition: self._from(partition) for partition in positions}

    def poll(self) -> list[RecordBlock]:
        """One block of each partition that is not paused. Raises FileDamaged."""
        blocks = []
        for partition in self._positions:
            block = None if partition in self._paused else next(self._blocks[partition], None)
            if block is not None:
                self._positions[partition] = int(block.offsets[-1]) + 1
                blocks.append(block)
        return blocks

    def positions(self) -> Mapping[int, int]:
        """By partition, the next offset to be read."""
        return dict(self._positions)

    def seek(self, partition: int, offset: int) -> None:
        """Go on elsewhere."""
        self._positions[partition] = offset
        self._blocks[partition] = self._from(partition)

    def pause(self, partition: int) -> None:
        """Give nothing of it."""
        self._paused.add(partition)

    def resume(self, partition: int) -> None:
        """The end of `pause`."""
        self._paused.discard(partition)

    def close(self) -> None:
        """Forget what was read."""
        self._blocks.clear()

    def _from(self, partition: int) -> Iterator[RecordBlock]:
        """The partition's records from its position on; a file is held while its records are given."""
        start = self._positions[partition]
        for file in self._files[partition]:
            if file.next_offset > start:
                place = f"{self._store.url}/{file.path}"
                block = decode_records(self._store.read(file), partition=partition, place=place)
                first = int(np.searchsorted(block.offsets, start))
                for at in range(first, len(block.offsets), BLOCK_RECORDS):
                    yield cut_block(block, at, min(at + BLOCK_RECORDS, len(block.offsets)))


def by_partition(files: Iterable[FileRecord]) -> dict[int, list[FileRecord]]:
    """By partition, its files in the order of the log, since the last gap."""
    found: dict[int, list[FileRecord]] = {}
    for file in sorted(files, key=lambda file: (file.partition, file.first_offset)):
        before = found.setdefault(file.partition, [])
        if before and before[-1].next_offset != file.first_offset:
            before.clear()
        before.append(file)
    return found
