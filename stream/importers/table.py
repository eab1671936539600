"""Rows of text into cells: CSV with its header, and tables whose columns are known."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

from stream.importers.files import BOM, TextRows
from stream.importers.rows import BadRowError, ImportFileError

Cells = list[str]


class Table:
    """A text file of rows of cells.

    `cells` gives a row's cells, one for each of `columns`; `at` says where the named columns stand.
    """

    def __init__(
        self,
        path: Path,
        *,
        delimiter: str = ",",
        quote: str | None = '"',
        columns: Sequence[str] | None = None,
        encoding: str = "utf-8",
    ) -> None:
        """`columns` names those of a file without a header. Raises ImportFileError, also for an unreadable header."""
        self._path, self._delimiter, self._quote, self._encoding = path, delimiter, quote, encoding
        self.source = TextRows(path, quote=quote.encode() if quote else None, has_header=columns is None)
        self.columns: Sequence[str] = ()
        if columns is None:
            header = self.source.header.removeprefix(BOM)
            try:
                columns = [name.strip() for name in self._split(header)]
            except BadRowError as error:
                self.source.close()
                raise ImportFileError(f"{path}: the header is not CSV in UTF-8: {error.detail}") from None
        self.columns = columns
        self.source.fits = self._fits

    def at(self, *names: str) -> list[int]:
        """The places of these columns.

        Closes the file and raises ImportFileError naming those that the header lacks, or has twice.
        """
        if absent := [name for name in names if name not in self.columns]:
            self.source.close()
            has = ", ".join(self.columns)[:200]
            raise ImportFileError(f"{self._path}: the header lacks {', '.join(absent)}; it has {has}")
        if twice := [name for name in names if self.columns.count(name) > 1]:
            self.source.close()
            raise ImportFileError(f"{self._path}: the header has {twice[0]} twice")
        return [self.columns.index(name) for name in names]

    def maybe_at(self, name: str) -> int | None:
        """The place of a column that may be missing."""
        return self.columns.index(name) if name in self.columns else None

    def cells(self, raw: bytes) -> Cells:
        """One cell per column. Raises BadRowError."""
        cells = self._split(raw)
        if len(cells) != len(self.columns):
            raise BadRowError("columns", f"expected {len(self.columns)} columns, got {len(cells)}")
        return cells

    def all_cells(self) -> Iterator[Cells]:
        """Every row of a file that must be whole: a catalogue. Raises ImportFileError at the first bad row."""
        with closing(self.source):
            for row in self.source.rows():
                try:
                    if row.fault is not None:
                        raise row.fault
                    yield self.cells(row.raw)
                except BadRowError as error:
                    raise ImportFileError(f"{self._path}: line {row.line}: {error.detail}") from None

    def _fits(self, raw: bytes) -> bool:
        try:
            self.cells(raw)
        except BadRowError:
            return False
        return True

    def _split(self, raw: bytes) -> Cells:
        try:
            text = raw.decode(self._encoding).rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise BadRowError("encoding", f"not UTF-8: {error.reason} at byte {error.start}") from None
        if self._quote is None or self._quote not in text:
            return text.split(self._delimiter)
        try:
            lines = csv.reader([text], delimiter=self._delimiter, quotechar=self._quote, strict=True)
            return next(lines)
        except csv.Error as error:
            raise BadRowError("csv", f"not CSV: {error}") from None


def required(cells: Cells, places: Sequence[int], columns: Sequence[str]) -> Cells:
    """These cells, stripped. Raises BadRowError naming the first that is empty."""
    found = [cells[place].strip() for place in places]
    if not all(found):
        name = columns[places[found.index("")]]
        raise BadRowError(f"no {name}", f"column '{name}' is empty")
    return found


Converter = Callable[[str], object]


def number_of(text: str, *, column: str, convert: Converter) -> object:
    """A number out of a cell. Raises BadRowError."""
    try:
        number = convert(text)
    except (ValueError, OverflowError):
        number = None
    if number is None or (isinstance(number, float) and not abs(number) < float("inf")):
        raise BadRowError(column, f"{column}: expected a number, got {text[:40]!r}")
    return number
