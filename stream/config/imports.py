"""Formats of `recd import` that the user describes."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from stream.config.features import FeatureType
from stream.config.section import Section


class ImportedField(Section, frozen=True):
    """A further field of the event, out of a column; empty cells leave it out."""

    column: str | None = None
    """The field's own name by default; a dot descends into a nested object of JSON."""
    type: FeatureType = "string"
    separator: str = " "
    """Between the elements of a list in a text cell."""


class ImportConfig(Section, frozen=True):
    """A format of `recd import`: which columns of a file make an event."""

    file: Literal["csv", "jsonl", "parquet"]
    key: str
    """The column of the session key."""
    time: str
    item: str
    type: str | None = None
    """The column that says what happened; without it every row is the first of `events.impressions`."""
    types: dict[str, str] = {}
    """From the column's values to event types; a value that is not listed stands for itself."""
    event_id: str | None = None
    """By default a row's own id, made of the file's digest and the row's number."""
    impression_id: str | None = None
    request_id: str | None = None
    fields: dict[str, ImportedField] = {}
    """By name of the event's field."""
    engaged: dict[str, str] = {}
    """From an engagement type to a column: 1, true, yes or a number above 0 makes one more event on the row's own."""
    time_format: str = "ms"
    """s, ms, us, ns (since 1970), iso, or a pattern of strptime; a time without an offset is UTC."""
    order: Literal["file", "time"] = "time"
    """`file` where the rows are in order of time; `time` sorts them first, on disk."""
    delimiter: Annotated[str, msgspec.Meta(min_length=1, max_length=8)] = ","
    quote: Annotated[str, msgspec.Meta(min_length=1, max_length=1)] | None = '"'
    """csv: None where quotes mean nothing. A delimiter of several characters wants that."""
    columns: tuple[str, ...] = ()
    """csv: names of the columns of a file without a header."""
