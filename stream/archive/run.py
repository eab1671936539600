"""The archive: records of some topics into files, each record in exactly one file that the manifest lists.

1. Records of a partition are read, and wait until there are enough of them for a file.
2. The file is written and closed, under a name that was never used.
3. One transaction writes its manifest record and the offset behind it, and commits until the outcome is known.

A crash before 3 ends leaves a file that no manifest lists, which does not exist; after it, everything. The next
process goes on where the manifest ends.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Self

import xxhash

from stream.archive.errors import ArchiveError, ArchiveGap
from stream.archive.manifest import FileRecord, encode_file_record, make_manifest, read_manifest
from stream.archive.place import new_file, spellings
from stream.archive.request import ArchiveReport, ArchiveRequest
from stream.archive.spool import Log, Spool
from stream.archive.store import ArchiveStore
from stream.config import Config
from stream.context import Clock
from stream.kafka import (
    Bookmarks,
    Committed,
    Message,
    Reader,
    TransactionAborted,
    TransactionalWriter,
    begin_offsets,
    end_offsets,
    topic_id,
)

logger = logging.getLogger("stream.archive")

POLL_MS = 100
PRODUCER_BATCH_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class _Closed:
    """A file that was written and is not listed yet."""

    spool: Spool
    record: FileRecord


class Archiver:
    """One process of the archive. `run` blocks until `stop`, or until the end that was there at the start."""

    def __init__(
        self,
        config: Config,
        request: ArchiveRequest,
        *,
        clock: Clock,
        stop: Event,
        crash_point: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._config = config
        self._request = request
        self._clock = clock
        self._stop = stop
        self._crash_point = crash_point
        self._store = ArchiveStore(config.archive.url)
        self._spools: dict[tuple[str, int], Spool] = {}
        self._readers: dict[str, Reader] = {}
        self._ends: dict[tuple[str, int], int] = {}
        self._refused: ArchiveError | None = None
        self._name = f"{config.stream.group_id}-archive-{request.name}"
        self._writer: TransactionalWriter
        self._bookmarks: Bookmarks
        self._manifest_id = ""
        self.report = ArchiveReport(self._store.url)

    def run(self, *, on_progress: Callable[[], object] = lambda: None) -> ArchiveReport:
        """Until the end, or until told to stop. `on_progress` is called after every file.

        Raises ArchiveError, Fenced (another process archives under this name), KafkaError.
        """
        began_ms = self._clock.monotonic_ms()
        with self:
            while not self._stop.is_set() and not self._at_end():
                self._read()
                self._close_files([spool for spool in self._spools.values() if self._is_due(spool)], on_progress)
                if self._refused is not None:
                    break
            self._close_files([spool for spool in self._spools.values() if spool.messages], on_progress)
        self.report.wall_s = (self._clock.monotonic_ms() - began_ms) / 1000
        if self._refused is not None:
            raise self._refused
        return self.report

    def __enter__(self) -> Self:
        """Fence what an earlier process left, find where the manifest ends, and read from there on."""
        make_manifest(self._config)
        self._manifest_id = topic_id(self._config.kafka, self._config.topics.archive)
        self._writer = TransactionalWriter(
            self._config.kafka,
            transactional_id=self._name,
            timeout_ms=self._config.stream.transaction_timeout_ms,
            compression="zstd",
            max_batch_bytes=PRODUCER_BATCH_BYTES,
        )
        self._writer.init(on_wait=self._on_wait)
        self._bookmarks = Bookmarks(self._config.kafka, group=self._name)
        listed = read_manifest(self._config.kafka, self._config.topics.archive)
        spelled = spellings(file.url for file in listed)
        for log in self._request.formats:
            ours = [file for file in listed if spelled[file.url] == self._store.url and file.kind == log.kind]
            self._open(log, [file for file in ours if file.topic_id == log.topic_id])
        return self

    def __exit__(self, *_: object) -> None:
        for reader in self._readers.values():
            reader.close()
        self._bookmarks.close()
        self._writer.close()

    def _open(self, log: Log, files: Iterable[FileRecord]) -> None:
        begins = begin_offsets(self._config.kafka, log.topic)
        starts = dict(begins)
        for file in files:
            starts[file.partition] = max(starts[file.partition], file.next_offset)
        for partition, reached in _reached(files).items():
            if reached < begins[partition]:
                self._gap(f"{log.topic}[{partition}]", reached, begins[partition])
        ends = end_offsets(self._config.kafka, log.topic)
        for partition, start in starts.items():
            self._spools[log.topic, partition] = Spool(log, partition, start)
            self._ends[log.topic, partition] = ends[partition]
        self._readers[log.topic] = Reader(self._config.kafka, topic=log.topic, positions=starts)

    def _gap(self, place: str, reached: int, begin: int) -> None:
        lost = f"{place}: offsets [{reached}, {begin}) were deleted before they were archived (retention)"
        if not self._request.accept_gap:
            raise ArchiveGap(f"{lost}. To go on without them: `recd archive --accept-gap`")
        self.report.gaps.append(lost)

    # Reading.

    def _read(self) -> None:
        most = min(self._config.archive.max_rows, *(form.poll_records for form in self._request.formats.values()))
        for topic, reader in self._readers.items():
            by_partition: dict[int, list[Message]] = {}
            wait_ms = POLL_MS // len(self._readers)
            for message in reader.poll(max_messages=most, timeout_ms=wait_ms):
                by_partition.setdefault(message.partition, []).append(message)
            for partition, messages in by_partition.items():
                self._spool(self._spools[topic, partition], messages)

    def _spool(self, spool: Spool, messages: list[Message]) -> None:
        form = self._request.formats[spool.log]
        for number, message in enumerate(messages):
            try:
                spool.rows += form.rows(message)
            except ArchiveError as error:
                self._refused = self._refused or error
                self._readers[spool.log.topic].seek(spool.partition, message.offset)
                messages = messages[:number]
                break
        spool.add(messages, now_ms=self._clock.monotonic_ms())

    def _at_end(self) -> bool:
        if not self._request.until_end:
            return False
        positions = {topic: reader.positions() for topic, reader in self._readers.items()}
        return all(positions[topic][p] >= end for (topic, p), end in self._ends.items())

    def _is_due(self, spool: Spool) -> bool:
        limits = self._config.archive
        if spool.rows >= limits.max_rows:
            return True
        if spool.messages and self._clock.monotonic_ms() - spool.since_ms >= limits.max_wait_ms:
            return True
        waiting = [other.num_bytes for other in self._spools.values()]
        return sum(waiting) >= limits.max_bytes and spool.num_bytes == max(waiting)

    # Writing.

    def _close_files(self, spools: Sequence[Spool], on_progress: Callable[[], object]) -> None:
        """Write a file of each and list them all at once."""
        if not spools:
            return
        closed = [self._close(spool) for spool in spools]
        self._crash_point("files_written")
        while True:
            try:
                self._list(closed)
            except TransactionAborted as error:
                logger.warning("listing the files once more", extra={"reason": str(error)})
                self._writer.abort(on_wait=self._on_wait)
            else:
                break
        self._crash_point("committed")
        for one in closed:
            self._count(one)
            one.spool.emptied(next_offset=one.record.next_offset)
        on_progress()

    def _close(self, spool: Spool) -> _Closed:
        messages, log = spool.messages, spool.log
        data, rows = self._request.formats[log].encode(messages)
        folder = f"{log.kind}/{log.topic}/{spool.partition:05d}"
        path = new_file(folder, first_offset=spool.first_offset, manifest_id=self._manifest_id)
        self._store.write(path, data)
        timestamps = [message.timestamp_ms for message in messages]
        record = FileRecord(
            kind=log.kind,
            url=self._store.url,
            path=path,
            topic=log.topic,
            topic_id=log.topic_id,
            partition=spool.partition,
            first_offset=spool.first_offset,
            next_offset=messages[-1].offset + 1,
            rows=rows,
            bytes=len(data),
            xxh3_128=xxhash.xxh3_128_hexdigest(data),
            min_timestamp_ms=min(timestamps),
            max_timestamp_ms=max(timestamps),
            written_ms=self._clock.wall_ms(),
        )
        return _Closed(spool, record)

    def _list(self, closed: Sequence[_Closed]) -> None:
        """Raises TransactionAborted, Fenced."""
        self._writer.begin()
        for one in closed:
            key = f"{one.record.kind}/{one.record.topic}/{one.record.partition}".encode()
            self._writer.send(self._config.topics.archive, encode_file_record(one.record), key=key, partition=0)
        self._crash_point("manifest_sent")
        for topic in {one.record.topic for one in closed}:
            offsets = {
                one.record.partition: Committed(one.record.next_offset, "")
                for one in closed
                if one.record.topic == topic
            }
            self._writer.send_offsets(topic, offsets, metadata=self._bookmarks.metadata(), on_wait=self._on_wait)
        self._writer.commit(on_wait=self._on_wait)

    def _count(self, one: _Closed) -> None:
        self.report.files += 1
        self.report.rows += one.record.rows
        self.report.records += len(one.spool.messages)
        self.report.bytes += one.record.bytes
        self.report.source_bytes += one.spool.num_bytes

    def _on_wait(self, message: str) -> None:
        """Called while the broker is waited for."""
        logger.warning("waiting for the broker", extra={"reason": message})
        if self._stop.is_set():
            raise ArchiveError(f"stopped while waiting for the broker ({message}); start it again to go on")


def _reached(files: Iterable[FileRecord]) -> dict[int, int]:
    reached: dict[int, int] = {}
    for file in files:
        reached[file.partition] = max(reached.get(file.partition, 0), file.next_offset)
    return reached
