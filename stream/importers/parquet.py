"""The rows of a Parquet file, each as a JSON object of the wanted columns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from stream.importers.rows import ImportFileError, Mark, Row

BATCH_ROWS = 4096
FOOTER_BYTES = 1 << 16


class ParquetRows:
    """Rows in the file's order. Typed times become milliseconds since 1970; not-a-number counts as missing."""

    def __init__(self, path: Path, *, wanted: list[str]) -> None:
        """Raises ImportFileError for what is no Parquet file, and where it lacks a wanted column."""
        self._path = path
        with self._errors():
            self.size = path.stat().st_size
            self._file = pq.ParquetFile(path)
            with path.open("rb") as file:
                file.seek(max(0, self.size - FOOTER_BYTES))
                self.identity = xxhash.xxh3_64_hexdigest(file.read() + str(self.size).encode())
        schema = self._file.schema_arrow
        roots = [name if name in schema.names else name.split(".")[0] for name in wanted]
        if absent := [name for name, root in zip(wanted, roots, strict=True) if root not in schema.names]:
            has = ", ".join(schema.names)[:200]
            raise ImportFileError(f"{path}: lacks the columns {', '.join(absent)}; it has {has}")
        self._columns = list(dict.fromkeys(roots))
        self._groups_read = 0
        self.typed_times = frozenset(field.name for field in schema if pa.types.is_timestamp(field.type))
        """Columns that are times by their type."""

    def rows(self, after: Mark | None = None) -> Iterator[Row]:
        """See Source; whole row groups before the mark are not read."""
        number = 0
        done = after.number if after else 0
        meta = self._file.metadata
        with self._errors():
            for group in range(meta.num_row_groups):
                in_group = meta.row_group(group).num_rows
                if number + in_group <= done:
                    number += in_group
                    continue
                for batch in self._file.iter_batches(BATCH_ROWS, row_groups=[group], columns=self._columns):
                    for value in _plain(batch).to_pylist():
                        number += 1
                        if number > done:
                            yield Row(number, number, number - 1, number, _encode(value))
                self._groups_read = group + 1

    def bytes_read(self) -> int:
        """See Source."""
        return self.size * self._groups_read // max(1, int(self._file.metadata.num_row_groups))

    def close(self) -> None:
        """See Source."""
        self._file.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            raise ImportFileError(f"{self._path}: cannot be read as Parquet: {error}") from None


_encode = msgspec.json.Encoder(enc_hook=str).encode


def _plain(batch: pa.RecordBatch) -> pa.Table:
    """Typed times as numbers of milliseconds, bytes as text, dictionaries as what they stand for."""
    columns: dict[str, Any] = {}
    for name, found in zip(batch.schema.names, batch.columns, strict=True):
        column = found
        if pa.types.is_dictionary(column.type):
            column = pc.cast(column, column.type.value_type)
        if pa.types.is_timestamp(column.type):
            in_ms = pc.cast(column, pa.timestamp("ms", tz=column.type.tz), safe=False)
            column = pc.cast(in_ms, pa.int64())
        elif pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
            column = pc.cast(column, pa.string())
        columns[name] = column
    return pa.table(columns)
