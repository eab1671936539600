"""MIND, the Microsoft News data set: impression lists."""

from __future__ import annotations

from pathlib import Path

from stream.importers import times
from stream.importers.rows import BadRowError, ImportedEvent, OpenedFile
from stream.importers.table import Table, required

BEHAVIORS = ("impression id", "user id", "time", "history", "impressions")
NEWS = ("news id", "category", "subcategory", "title", "abstract", "url", "title entities", "abstract entities")


def mind(path: Path, items: Path | None = None) -> OpenedFile:
    """behaviors.tsv, tab-separated without a header: impression id, user, time, history, impressions `N4-1 N34-0`.

    Every candidate of the list is an impression (`impression`), every `-1` a click (`click`) on it at the same time,
    for the file has one time a row; it is read as UTC. All of a row share a request id and carry `history` (what
    the user clicked before, oldest first) and `position`. `items`: news.tsv, whose category and subcategory go along.
    The test split has no `-0` and `-1`: its rows are bad, for nothing can be learned from them. Not in order of time.
    Source: learn.microsoft.com/azure/open-datasets/dataset-microsoft-news, and msnews.github.io.
    Raises ImportFileError where a file cannot be read.
    """
    news = _news(items) if items else {}
    table = Table(path, delimiter="\t", quote=None, columns=BEHAVIORS)
    file_id = table.source.identity[:8]

    def parse(raw: bytes, row_id: str) -> list[ImportedEvent]:
        cells = table.cells(raw)
        number, user, clock, shown = required(cells, (0, 1, 2, 4), BEHAVIORS)
        time_ms = times.time_ms(clock, times.us_clock, column="time", expected="11/15/2019 9:05:58 AM")
        history, request_id = cells[3].split(), f"{file_id}-{number}"
        events: list[ImportedEvent] = []
        for position, candidate in enumerate(shown.split()):
            item, _, label = candidate.rpartition("-")
            if not item or label not in ("0", "1"):
                raise BadRowError("impressions", f"expected candidates like N123-0 or N123-1, got {candidate[:40]!r}")
            event_id = f"{row_id}-{position}"
            extra = {"history": history, "position": position, **news.get(item, {})}
            events.append(
                ImportedEvent(event_id, "impression", time_ms, user, item, request_id=request_id, extra=extra)
            )
            if label == "1":
                events.append(ImportedEvent(f"{event_id}-c", "click", time_ms, user, item, impression_id=event_id))
        return events

    return OpenedFile(table.source, parse)


def _news(path: Path) -> dict[str, dict[str, str]]:
    """By news id, its features; held in memory, for there are some 160,000 articles."""
    table = Table(path, delimiter="\t", quote=None, columns=NEWS)
    return {cells[0]: {"category": cells[1], "subcategory": cells[2]} for cells in table.all_cells()}
