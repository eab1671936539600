"""Files that users have -> `interactions`. A format is one function from a path to events and rows that fit nothing.

Nothing of a file is held: rows stream through. A row that does not fit is counted and shown with its line, and the
import goes on. Event ids are row numbers, so importing a file again repeats events rather than adding new ones.
"""

from __future__ import annotations

import csv
import gzip
import json
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from types import MappingProxyType
from typing import IO

from stream.config import Config, ConfigError, EventsConfig
from stream.event_json import FieldLayout, time_text
from stream.kafka import Writer

FLUSH_TIMEOUT_MS = 60_000
BAD_ROWS_SHOWN = 20
PROGRESS_EVERY = 1_000
_LONGEST_LINE = 1 << 20
_LATEST_S = 253_402_300_799
_GZIP_MAGIC = b"\x1f\x8b"


class ImportFileError(ConfigError):
    """The file cannot be read as this format; the message names the file, the line and what was expected."""


@dataclass(frozen=True, slots=True)
class ImportedEvent:
    """One row that is an event."""

    line: int
    """Its line in the file, 2 for the first row below a header; the event id is the row's number, one less."""
    type: str
    time_ms: int
    key: str
    item: str
    extra: dict[str, object] = field(default_factory=dict)
    """Further fields of the event, by name."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """One row that is not an event."""

    line: int
    reason: str


Rows = Iterator[ImportedEvent | BadRow]


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What became of the rows: rows = events + bad_rows."""

    rows: int
    events: int
    impressions: int
    engagements: int
    bad_rows: int
    first_bad_rows: list[BadRow]
    """The first BAD_ROWS_SHOWN of them."""
    first_event_ms: int | None
    last_event_ms: int | None
    wall_s: float


def import_file(
    config: Config,
    path: Path,
    *,
    format: str,  # noqa: A002 - the word that the command line has
    rate: float | None = None,
    stop: Event | None = None,
    on_progress: Callable[[int], object] = lambda _: None,
) -> ImportReport:
    """Write the events of a file to `config.topics.interactions`, keyed by session key, in the file's order.

    `rate` in events per second, as fast as it goes without; `on_progress` is told the number of events so far. Ends
    early, and says how far it came, when `stop` is set. Raises ImportFileError (an unreadable file, another header),
    ConfigError (an unknown format), KafkaError; what stood before the damage of a torn file has been written then.
    """
    if format not in FORMATS:
        raise ConfigError(f"no format '{format}': there are {', '.join(sorted(FORMATS))}")
    with Writer(config.kafka) as writer:
        run = _Import(config, writer=writer, rate=rate, stop=stop or Event(), on_progress=on_progress)
        try:
            run.take(FORMATS[format](path))
        finally:
            writer.flush(FLUSH_TIMEOUT_MS)
    return run.report()


class _Import:
    """One import under way."""

    def __init__(
        self, config: Config, *, writer: Writer, rate: float | None, stop: Event, on_progress: Callable[[int], object]
    ) -> None:
        self._writer, self._rate, self._stop, self._on_progress = writer, rate, stop, on_progress
        self._topic = config.topics.interactions
        self._render = event_writer(config.events)
        self._impressions, self._engagements = (
            frozenset(config.events.impressions),
            frozenset(config.events.engagements),
        )
        self._counts: Counter[str] = Counter()
        self._first_bad: list[BadRow] = []
        self._times: tuple[int, int] | None = None
        self._began_s = time.monotonic()

    def take(self, rows: Rows) -> None:
        """Write every event; the known types decide what an event is."""
        for row in rows:
            if self._stop.is_set():
                break
            if isinstance(row, BadRow):
                self._reject(row)
            elif row.type in self._impressions or row.type in self._engagements:
                self._write(row)
            else:
                reason = f"type {row.type!r} is neither in events.impressions nor in events.engagements"
                self._reject(BadRow(row.line, reason))
        self._on_progress(self._counts["events"])

    def report(self) -> ImportReport:
        """What was read so far."""
        events, bad = self._counts["events"], self._counts["bad"]
        return ImportReport(
            rows=events + bad,
            events=events,
            impressions=self._counts["impressions"],
            engagements=events - self._counts["impressions"],
            bad_rows=bad,
            first_bad_rows=self._first_bad,
            first_event_ms=self._times[0] if self._times else None,
            last_event_ms=self._times[1] if self._times else None,
            wall_s=round(time.monotonic() - self._began_s, 3),
        )

    def _write(self, event: ImportedEvent) -> None:
        if self._rate is not None:
            due_s = self._began_s + self._counts["events"] / self._rate
            if (wait_s := due_s - time.monotonic()) > 0 and self._stop.wait(wait_s):
                return
        self._writer.send(self._topic, self._render(event), key=event.key.encode())
        self._counts["events"] += 1
        self._counts["impressions"] += event.type in self._impressions
        first, last = self._times or (event.time_ms, event.time_ms)
        self._times = (min(first, event.time_ms), max(last, event.time_ms))
        if self._counts["events"] % PROGRESS_EVERY == 0:
            self._on_progress(self._counts["events"])

    def _reject(self, row: BadRow) -> None:
        self._counts["bad"] += 1
        if len(self._first_bad) < BAD_ROWS_SHOWN:
            self._first_bad.append(row)


def event_writer(config: EventsConfig) -> Callable[[ImportedEvent], bytes]:
    """A function that writes an event as JSON under the configured field names; further fields keep their own."""
    fields = config.fields
    layout = FieldLayout(
        {"event_id": fields.event_id, "key": fields.key, "time": fields.time, "type": fields.type, "item": fields.item}
    )
    time_of = time_text(config)

    def write(event: ImportedEvent) -> bytes:
        head = layout.render(
            event_id=f'"{event.line - 1}"',
            key=json.dumps(event.key),
            time=time_of(event.time_ms),
            type=json.dumps(event.type),
            item=json.dumps(event.item),
        )
        extra = {name: value for name, value in event.extra.items() if name not in layout.roots}
        tail = f",{json.dumps(extra)[1:-1]}" if extra else ""
        return f"{head}{tail}}}".encode()

    return write


def deskdrop(path: Path) -> Rows:
    """CI&T Deskdrop, CSV or gzipped CSV: timestamp (s), event_type, content_id, person_id, and session_id if there.

    Raises ImportFileError where the file cannot be read, or the header lacks a column.
    """
    needed = ("timestamp", "event_type", "content_id", "person_id")
    for line, cells in _csv_rows(path, needed=needed):
        if isinstance(cells, str):
            yield BadRow(line, cells)
            continue
        missing = [name for name in needed if not cells[name].strip()]
        if missing:
            yield BadRow(line, f"column '{missing[0]}' is empty")
            continue
        seconds = _seconds(cells["timestamp"])
        if seconds is None:
            yield BadRow(line, f"timestamp: expected seconds since 1970, got {cells['timestamp'][:40]!r}")
            continue
        extra: dict[str, object] = {"session_id": cells["session_id"]} if cells.get("session_id") else {}
        kind, person, content = (cells[name].strip() for name in ("event_type", "person_id", "content_id"))
        yield ImportedEvent(line, kind, seconds * 1000, person, content, extra)


FORMATS: Mapping[str, Callable[[Path], Rows]] = MappingProxyType({"deskdrop": deskdrop})
"""By name of the format."""


def _seconds(text: str) -> int | None:
    """Whole seconds since 1970, before the year 10000."""
    text = text.strip()
    if not (text.isascii() and text.isdecimal() and len(text) <= 12):
        return None
    seconds = int(text)
    return seconds if seconds <= _LATEST_S else None


def _csv_rows(path: Path, *, needed: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str] | str]]:
    """(line, cells by column) of a CSV file with a header; in the place of the cells, what is wrong with them.

    A row is a line, so that a stray quotation mark spoils its own row and not those behind it.
    """
    line = 1
    try:
        with _open(path) as file:
            header = [name.strip() for name in file.readline(_LONGEST_LINE).lstrip("\ufeff").split(",")]
            if absent := [name for name in needed if name not in header]:
                raise ImportFileError(f"{path}: the header lacks {', '.join(absent)}; it has {', '.join(header)[:200]}")
            while text := file.readline(_LONGEST_LINE):
                line += 1
                if text.strip():
                    yield line, _cells(text, header=header)
    except (OSError, EOFError, zlib.error) as error:
        raise ImportFileError(f"{path}: cannot be read behind line {line}: {error}") from None


def _cells(text: str, *, header: list[str]) -> dict[str, str] | str:
    try:
        cells = next(csv.reader([text], strict=True))
    except csv.Error as error:
        return f"not CSV: {error}"
    if len(cells) != len(header):
        return f"expected {len(header)} columns, got {len(cells)}"
    if not text.isascii() and any("\udc80" <= sign <= "\udcff" for sign in text):
        return "not UTF-8"
    return dict(zip(header, cells, strict=True))


def _open(path: Path) -> IO[str]:
    """The file as text, unpacked where it is gzip, whatever its name; bytes that are no UTF-8 become surrogates."""
    with path.open("rb") as file:
        packed = file.read(2) == _GZIP_MAGIC
    if packed:
        return gzip.open(path, "rt", encoding="utf-8", errors="surrogateescape")
    return path.open("rt", encoding="utf-8", errors="surrogateescape")
