"""Any CSV, JSON-lines or Parquet file, by a map of its columns in the configuration (`imports.NAME`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from stream.config import ImportConfig, ImportedField
from stream.importers import times
from stream.importers.files import TextRows
from stream.importers.rows import BadRowError, Format, ImportedEvent, OpenedFile, Order, Parser
from stream.importers.table import Table, number_of

Get = Callable[[str], Any]
"""A column's name -> what the row has there; None where nothing is."""
YES, NO = frozenset({"1", "true", "yes", "y", "t"}), frozenset({"", "0", "false", "no", "n", "f", "none", "null"})


def mapped_format(columns: ImportConfig, *, impression: str) -> Format:
    """The format that a column map describes; `impression` is the type of rows without a type column."""

    def open_mapped(path: Path) -> OpenedFile:
        if columns.file == "csv":
            return _open_csv(path, columns, impression=impression)
        if columns.file == "jsonl":
            return OpenedFile(TextRows(path), _object_parser(_EventOf(columns, impression=impression)))
        from stream.importers.parquet import ParquetRows

        rows = ParquetRows(path, wanted=_names(columns))
        typed = columns.time in rows.typed_times
        found = msgspec.structs.replace(columns, time_format="ms") if typed else columns
        return OpenedFile(rows, _object_parser(_EventOf(found, impression=impression)))

    return Format(
        open_mapped,
        Order(columns.order),
        f"{columns.file}, columns from the configuration",
        definition=msgspec.json.encode(columns).decode(),
    )


def _open_csv(path: Path, columns: ImportConfig, *, impression: str) -> OpenedFile:
    """Raises ImportFileError where the header lacks a column that the map names."""
    table = Table(path, delimiter=columns.delimiter, quote=columns.quote, columns=columns.columns or None)
    places = dict(zip(_names(columns), table.at(*_names(columns)), strict=True))
    event_of = _EventOf(columns, impression=impression)

    def parse(raw: bytes, row_id: str) -> list[ImportedEvent]:
        cells = table.cells(raw)
        return event_of(lambda name: cells[places[name]].strip() or None, row_id)

    return OpenedFile(table.source, parse)


def _object_parser(event_of: _EventOf) -> Parser:
    def parse(raw: bytes, row_id: str) -> list[ImportedEvent]:
        try:
            found = msgspec.json.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadRowError("json", f"not JSON: {error}") from None
        if not isinstance(found, dict):
            raise BadRowError("json", f"expected a JSON object, got {type(found).__name__}")
        return event_of(lambda name: _descend(found, name), row_id)

    return parse


def _descend(found: Mapping[str, Any], name: str) -> Any:
    if name in found:
        return found[name]
    here: Any = found
    for part in name.split("."):
        if not isinstance(here, dict):
            return None
        here = here.get(part)
    return here


def _names(columns: ImportConfig) -> list[str]:
    """Every column that the map names, once."""
    named = [columns.key, columns.time, columns.item, columns.type, columns.event_id]
    named += [columns.impression_id, columns.request_id, *columns.engaged.values()]
    named += [field.column or name for name, field in columns.fields.items()]
    return list(dict.fromkeys(name for name in named if name is not None))


class _EventOf:
    """Makes the events of a row out of its columns."""

    def __init__(self, columns: ImportConfig, *, impression: str) -> None:
        self._columns, self._impression = columns, impression
        unit = columns.time_format
        if unit in times.MS_PER_UNIT:
            self._time: times.TimeParser = times.number_in(unit)
            self._expected = f"{unit} since 1970"
        else:
            self._time = times.iso if unit == "iso" else times.in_format(unit)
            self._expected = "ISO 8601" if unit == "iso" else unit
        self._fields = [(name, field.column or name, field) for name, field in columns.fields.items()]

    def __call__(self, get: Get, row_id: str) -> list[ImportedEvent]:
        columns = self._columns
        time_ms = times.time_ms(get(columns.time), self._time, column=columns.time, expected=self._expected)
        key, item = _id(get, columns.key), _id(get, columns.item)
        kind = self._impression if columns.type is None else _id(get, columns.type)
        event = ImportedEvent(
            row_id if columns.event_id is None else _id(get, columns.event_id),
            columns.types.get(kind, kind),
            time_ms,
            key,
            item,
            impression_id=_maybe_id(get, columns.impression_id),
            request_id=_maybe_id(get, columns.request_id),
            extra=self._extra(get),
        )
        engaged = [name for name, column in columns.engaged.items() if _is_yes(get(column), column)]
        return [
            event,
            *(ImportedEvent(f"{event.id}-{n}", n, time_ms, key, item, impression_id=event.id) for n in engaged),
        ]

    def _extra(self, get: Get) -> dict[str, object]:
        found = ((name, get(column), column, field) for name, column, field in self._fields)
        return {name: _typed(value, column, field) for name, value, column, field in found if value is not None}


def _id(get: Get, column: str) -> str:
    found = _maybe_id(get, column)
    if found is None:
        raise BadRowError(f"no {column}", f"column '{column}' is empty")
    return found


def _maybe_id(get: Get, column: str | None) -> str | None:
    """Text and whole numbers are ids."""
    value = None if column is None else get(column)
    if value is None or value == "":
        return None
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) not in (str, int):
        raise BadRowError(str(column), f"{column}: expected text or a whole number, got {str(value)[:40]!r}")
    return str(value)


def _is_yes(value: Any, column: str) -> bool:
    text = str(value or "").strip().lower()
    if text in YES or text in NO:
        return text in YES
    return float(str(number_of(text, column=column, convert=float))) > 0


def _typed(value: Any, column: str, field: ImportedField) -> object:
    element = field.type.removeprefix("list[").removesuffix("]")
    if element == field.type:
        return _one(value, column, element)
    parts = value.split(field.separator) if isinstance(value, str) else value
    if not isinstance(parts, list):
        raise BadRowError(column, f"{column}: expected a list, got {str(value)[:40]!r}")
    return [_one(part, column, element) for part in parts if part != ""]


def _one(value: Any, column: str, kind: str) -> object:
    if kind == "string":
        if isinstance(value, (str, int, float)):
            return str(value)
        raise BadRowError(column, f"{column}: expected text, got {str(value)[:40]!r}")
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise BadRowError(column, f"{column}: expected a number, got {str(value)[:40]!r}")
    if kind == "float":
        return number_of(str(value), column=column, convert=float)
    text = str(value)
    return number_of(text.removesuffix(".0"), column=column, convert=_int64)


def _int64(text: str) -> int:
    number = int(text)
    if not -(2**63) <= number < 2**63:
        raise ValueError(text)
    return number
