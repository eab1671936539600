"""Files -> `interactions`, each row's events exactly once however often the import is killed and started again.

For each file:

1. Its transactional id is taken: an older import of the same file is fenced, and what it left open is aborted.
2. The progress that was committed last is read; reading goes on behind that row.
3. Events and, as the last record, the progress go into one transaction; then the next.

A crash at any point leaves whole transactions: the progress in the log names the last row whose events are there.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

import msgspec
import xxhash

from stream.avro_schema import record_encoder
from stream.config import Config
from stream.importers.options import FileReport, ImportOptions
from stream.importers.progress import (
    FORMAT,
    Progress,
    Tally,
    decode_progress,
    encode_progress,
    import_key,
    make_topic,
    read_progress,
)
from stream.importers.render import event_writer
from stream.importers.rows import BadRowError, Format, ImportFileError, Mark, OpenedFile, Order, Row
from stream.importers.rowwise import RowReader
from stream.kafka import BrokerUnavailable, Fenced, TransactionAborted, TransactionalWriter

logger = logging.getLogger("stream.importers")

COMMIT_EVENTS, COMMIT_BYTES, COMMIT_S = 20_000, 16 << 20, 1.0
"""A transaction ends at the first of these."""
MOST_ABORTS = 10
"""So many transactions in a row that did not commit mean that none will."""
REST_S = 0.5
WAIT_S = 0.5
PATIENT_WAITS = 5
"""So many attempts of a second each without an answer are worth a word: a busy broker needs one or two."""


class FileImport:
    """The import of one file."""

    def __init__(
        self, config: Config, path: Path, opened: OpenedFile, *, format_: Format, options: ImportOptions
    ) -> None:
        self._config, self._path, self._options = config, path, options
        self._order = options.order or format_.order
        self._reader = RowReader(config, path, opened, order=self._order, options=options)
        definition = f"{format_.definition}/{self._order}"
        self._key = import_key(config, identity=opened.source.identity, definition=definition)
        self._render, self._encode = event_writer(config.events), record_encoder(config)
        self._writer = TransactionalWriter(
            config.kafka,
            transactional_id=f"recd-import-{xxhash.xxh3_64_hexdigest(self._key.encode())}",
            timeout_ms=config.stream.transaction_timeout_ms,
            compression="zstd",
            max_batch_bytes=1 << 20,
        )
        self._committed = Progress(file=path.name, tally=Tally())
        self._tally = Tally()
        self._began_s = self._due_s = time.monotonic()
        self._sent = self._events_in = self._bytes_in = 0
        self._waits = 0

    def run(self) -> FileReport:
        """Until the end of the file, or `stop`. Raises ImportFileError, KafkaError."""
        try:
            # 1. Fence an older import of this file.
            self._writer.init(on_wait=self._on_wait)
            # 2. How far it came.
            make_topic(self._config)
            self._committed = self._last_progress() or self._committed
            resumed = self._committed.tally.rows if self._order is Order.FILE else self._committed.sorted_rows
            # 3. The rest.
            if not (self._committed.done and self._committed.size == self._reader.size):
                self._insist()
            tally, is_done = self._committed.tally, self._committed.done
            return FileReport.of(self._path.name, tally, complete=is_done, resumed_rows=resumed)
        finally:
            self._writer.close()
            self._reader.close()

    def _last_progress(self) -> Progress | None:
        found = None if self._options.again else read_progress(self._config, self._key)
        if found is not None and found.format != FORMAT:
            raise ImportFileError(
                f"{self._path}: another version of recd imported a part of it (format {found.format}, here {FORMAT}): "
                "go on with that one, or begin anew with --again"
            )
        return found

    def _insist(self) -> None:
        """A transaction that aborts is made again from what is committed. Fenced by another import of the file."""
        try:
            self._send_until_committed()
        except Fenced as error:
            raise Fenced(
                f"{self._path}: another import of this file took over, or this one stood still for more than "
                f"{self._config.stream.transaction_timeout_ms} ms; nothing is lost, run it again to go on ({error})"
            ) from None

    def _send_until_committed(self) -> None:
        aborts, committed = 0, self._committed
        while True:
            try:
                self._send_all()
            except TransactionAborted:
                aborts = aborts + 1 if self._committed is committed else 1
                committed = self._committed
                self._writer.abort(on_wait=self._on_wait)
                if aborts == MOST_ABORTS:
                    raise
                self._options.stop.wait(REST_S)
            else:
                return

    def _send_all(self) -> None:
        """From what is committed to the end of the file, or to `stop`; what stands before an error is committed."""
        stop, before = self._options.stop, self._committed
        counted = before.tally
        if self._order is Order.TIME:
            counted = counted if before.content else self._reader.sort()
            self._reader.sort()
        if stop.is_set():
            return
        self._tally = msgspec.convert(msgspec.to_builtins(counted), Tally)
        self._events_in = self._bytes_in = 0
        last, at = None, before.sorted_rows
        try:
            for row in self._reader.rows(before):
                if stop.is_set():
                    self._commit(last, at=at, done=False)
                    return
                self._take(row)
                last, at = row, at + 1
                if self._is_due():
                    self._commit(last, at=at, done=False)
                self._reader.look(row, self._tally, at=at)
                self._reader.check_bad(self._tally)
        except ImportFileError:
            self._commit(last, at=at, done=False)
            raise
        self._commit(last, at=at, done=True)

    def _take(self, row: Row) -> None:
        """Send the events of a row, all or none."""
        self._begin()
        reader, tally, most = self._reader, self._tally, self._config.events.max_bytes
        events = reader.events(row, tally)
        values = [self._encode(self._render(event)) for event in events]
        if values and (size := max(map(len, values))) > most:
            reader.reject(row, BadRowError("too large", f"{size} bytes, events.max_bytes is {most}"), tally)
            return
        topic = self._config.topics.interactions
        for event, value in zip(events, values, strict=True):
            self._pace()
            self._writer.send(topic, value, key=event.key.encode(), partition=None)
            reader.count(event, tally)
            self._bytes_in += len(value)
        self._sent += len(events)
        self._events_in += len(events)

    def _begin(self) -> None:
        if not self._writer.in_transaction:
            self._writer.begin()
            self._due_s = time.monotonic() + COMMIT_S
            self._events_in = self._bytes_in = 0

    def _is_due(self) -> bool:
        if self._events_in >= COMMIT_EVENTS or self._bytes_in >= COMMIT_BYTES:
            return True
        return time.monotonic() >= self._due_s

    def _commit(self, last: Row | None, *, at: int, done: bool) -> None:
        """Write the progress behind the events, and commit both."""
        self._begin()
        mark = self._committed.mark
        if last is not None and self._order is Order.FILE:
            mark = Mark(last.number, last.line, last.start, xxhash.xxh3_64_hexdigest(last.raw))
        progress = Progress(
            file=self._path.name,
            size=self._reader.size,
            tally=self._tally,
            mark=mark,
            sorted_rows=at,
            content=self._reader.content,
            done=done,
        )
        value = encode_progress(progress)
        self._writer.send(self._config.topics.imports, value, key=self._key.encode(), partition=0)
        self._writer.commit(on_wait=self._on_wait)
        self._committed = decode_progress(value)
        self._waits = 0

    def _pace(self) -> None:
        """Hold the rate; an import that is told to stop does not wait."""
        if self._options.rate is None:
            return
        due_s = self._began_s + self._sent / self._options.rate
        while (wait_s := due_s - time.monotonic()) > 0 and not self._options.stop.wait(min(wait_s, WAIT_S)):
            pass

    def _on_wait(self, message: str) -> None:
        """While the broker is waited for."""
        if self._options.stop.is_set():
            raise BrokerUnavailable(message)
        self._waits += 1
        if self._waits == PATIENT_WAITS:
            logger.warning("waiting for the broker: %s", message)
