"""Criteo's click logs: features and a label, without user, item or time."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

from stream.importers.rows import BadRowError, ImportedEvent, OpenedFile
from stream.importers.table import Table, number_of

NUM_INTS, NUM_CATEGORIES = 13, 26
BEGIN_MS = round(datetime(2014, 1, 1, tzinfo=UTC).timestamp() * 1000)
MS_PER_DAY = 86_400_000
ROWS_PER_MS = 5
"""A day file of the terabyte logs has below 200 million rows, so that it stays within its day."""


def criteo(path: Path) -> OpenedFile:
    """Tab-separated without a header: label, 13 integers, 26 categories (8 hex digits); empty cells are missing.

    The logs name no user, no item and no time. So every row is a user of its own (its row id is the key): an
    impression (`impression`) and, where the label is 1, a click that names it. Nothing is shared within a session,
    and dedup only finds categories that repeat. The item is `ad` for all. Rows are in order of time: the
    clock begins on 2014-01-01, a file named day_N on the Nth day after it, and five rows pass a millisecond.
    Fields: `i1`..`i13` (numbers), `c1`..`c26` (texts).
    Source: the description of the logs, huggingface.co/datasets/criteo/CriteoClickLogs.
    Raises ImportFileError where the file cannot be read.
    """
    ints = [f"i{k + 1}" for k in range(NUM_INTS)]
    categories = [f"c{k + 1}" for k in range(NUM_CATEGORIES)]
    table = Table(path, delimiter="\t", quote=None, columns=("label", *ints, *categories))
    begin_ms = BEGIN_MS + _day(path) * MS_PER_DAY

    def parse(raw: bytes, row_id: str) -> list[ImportedEvent]:
        label, *cells = table.cells(raw)
        if label not in ("0", "1"):
            raise BadRowError("label", f"expected 0 or 1, got {label[:40]!r}")
        time_ms = begin_ms + int(row_id.rpartition("-")[2]) // ROWS_PER_MS
        extra: dict[str, object] = {
            name: number_of(cell, column=name, convert=int)
            for name, cell in zip(ints, cells[:NUM_INTS], strict=True)
            if cell
        }
        extra |= {name: cell for name, cell in zip(categories, cells[NUM_INTS:], strict=True) if cell}
        events = [ImportedEvent(row_id, "impression", time_ms, row_id, "ad", extra=extra)]
        if label == "1":
            events.append(ImportedEvent(f"{row_id}-c", "click", time_ms, row_id, "ad", impression_id=row_id))
        return events

    return OpenedFile(table.source, parse)


def _day(path: Path) -> int:
    found = re.search(r"day_(\d{1,4})", path.name)
    return int(found[1]) if found else 0
