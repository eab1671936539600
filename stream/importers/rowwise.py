"""Rows of one file in the order asked for, as events; what is none is counted by its reason."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import xxhash

from stream.config import Config
from stream.importers.options import BAD_ROWS_SHOWN, ImportOptions, Look
from stream.importers.ordering import RowSorter
from stream.importers.progress import Progress, Tally
from stream.importers.rows import BadRowError, ImportedEvent, ImportFileError, OpenedFile, Order, Row

LOOK_EVERY = 1_000
DETAIL_LENGTH = 200


class RowReader:
    """Reads, sorts and parses; knows nothing of the topic."""

    def __init__(self, config: Config, path: Path, opened: OpenedFile, *, order: Order, options: ImportOptions) -> None:
        self._path, self._source, self._parse = path, opened.source, opened.parse
        self._order, self._options = order, options
        self._impressions = frozenset(config.events.impressions)
        self._types = self._impressions | frozenset(config.events.engagements)
        self._late_after_ms = config.session.gap_ms + config.session.out_of_orderness_ms
        self._file_id = opened.source.identity[:8]
        self._sorter: RowSorter | None = None
        self._sorted_tally = Tally()
        self.content = ""
        """Digest of all rows, once they are sorted."""
        self.size = opened.source.size
        """Bytes on disk."""

    def rows(self, progress: Progress) -> Iterator[Row]:
        """The rows behind what is in the topic. Raises ImportFileError."""
        if self._order is Order.FILE:
            yield from self._source.rows(progress.mark)
            return
        self.sort()
        if self._sorter is None:
            return
        if progress.content not in ("", self.content):
            raise ImportFileError(
                f"{self._path}: begins as a file of which {progress.sorted_rows} rows were imported in order of time, "
                "but other rows have changed since: import it anew with --again, or restore the file"
            )
        for row in itertools.islice(self._sorter.rows(), progress.sorted_rows, None):
            yield Row(row.number, row.line, row.start, row.start, row.raw)

    def events(self, row: Row, tally: Tally) -> list[ImportedEvent]:
        """The row's events, of known types; a bad row has none and is counted."""
        if self._order is Order.FILE:
            tally.rows += 1
        try:
            return self._examined(row)
        except BadRowError as error:
            self.reject(row, error, tally)
            return []

    def reject(self, row: Row, error: BadRowError, tally: Tally) -> None:
        """Count a bad row."""
        tally.bad[error.reason] = tally.bad.get(error.reason, 0) + 1
        if len(tally.first_bad) < BAD_ROWS_SHOWN:
            tally.first_bad.append((row.line, error.detail[:DETAIL_LENGTH]))

    def count(self, event: ImportedEvent, tally: Tally) -> None:
        """Count an event that was sent."""
        tally.events += 1
        tally.impressions += event.type in self._impressions
        time_ms = event.time_ms
        if tally.first_ms is None or tally.last_ms is None:
            tally.first_ms = tally.last_ms = time_ms
        elif time_ms > tally.last_ms:
            tally.last_ms = time_ms
        else:
            tally.first_ms = min(tally.first_ms, time_ms)
            tally.behind += tally.last_ms - time_ms > self._late_after_ms

    def look(self, row: Row, tally: Tally, *, at: int) -> None:
        """Tell how far it has come, now and then."""
        if at % LOOK_EVERY:
            return
        if self._order is Order.FILE:
            done, total = self._source.bytes_read(), self._source.size
        else:
            done, total = at, self._sorted_tally.rows
        self._options.on_progress(Look(self._path, "sending", done, total, tally.events))

    def check_bad(self, tally: Tally) -> None:
        """Raises ImportFileError where more rows are bad than `max_bad` allows."""
        most = self._options.max_bad
        if most is not None and tally.bad_rows > most:
            line, detail = tally.first_bad[0]
            raise ImportFileError(
                f"{self._path}: {tally.bad_rows} of {tally.rows} rows are no events, {most} are allowed (--max-bad); "
                f"the first, line {line}: {detail}. What stands before is imported; a higher --max-bad goes on there"
            )

    def close(self) -> None:
        """Release the file, and what sorting took."""
        self._source.close()
        if self._sorter is not None:
            self._sorter.close()

    def sort(self) -> Tally:
        """Sort all rows by time, once; counts them, and those that are bad. Raises ImportFileError.

        A stop leaves it undone.
        """
        if self._sorter is not None:
            return self._sorted_tally
        sorter, tally, digest = RowSorter(folder=self._options.temp), Tally(), xxhash.xxh3_128()
        for row in self._source.rows():
            if self._options.stop.is_set():
                sorter.close()
                return tally
            digest.update(row.raw)
            tally.rows += 1
            try:
                events = self._examined(row)
            except BadRowError as error:
                self.reject(row, error, tally)
                self.check_bad(tally)
                continue
            if events:
                sorter.add(row, time_ms=events[0].time_ms)
            if tally.rows % LOOK_EVERY == 0:
                look = Look(self._path, "sorting", self._source.bytes_read(), self._source.size, 0)
                self._options.on_progress(look)
        self._sorter, self._sorted_tally, self.content = sorter, tally, digest.hexdigest()
        return tally

    def _examined(self, row: Row) -> list[ImportedEvent]:
        if row.fault is not None:
            raise row.fault
        events = self._parse(row.raw, f"{self._file_id}-{row.number}")
        for event in events:
            if event.type not in self._types:
                detail = f"type {event.type[:60]!r} is neither in events.impressions nor in events.engagements"
                raise BadRowError("type", detail)
        return events
