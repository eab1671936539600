"""Parquet bytes for the archive: one column per feature, values that repeat from row to row where zstd sees them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from enum import Enum
from types import MappingProxyType

import pyarrow as pa
import pyarrow.parquet as pq

from stream.archive.errors import FileDamaged

ZSTD_LEVEL = 3
PAGE_BYTES = 8 << 20
"""Larger than usual: what repeats within a page is stored once."""


class Encoding(Enum):
    """How Parquet writes the values of a column, before zstd."""

    PLAIN = "PLAIN"
    SPLIT = "BYTE_STREAM_SPLIT"
    """First bytes of all values, then second bytes, ..."""
    DELTA = "DELTA_BINARY_PACKED"
    """Of whole numbers: their differences."""
    DICTIONARY = "DICTIONARY"


def to_bytes(
    columns: Sequence[tuple[pa.Field, pa.Array]],
    *,
    metadata: dict[str, str],
    encodings: Mapping[str, Encoding] = MappingProxyType({}),
) -> bytes:
    """One file of one row group; `encodings` by column, where it is known what is best.

    Else lists stand as they are, not by dictionary: bit-packed indices of equal lists are not equal bytes, so zstd
    would not find them. Counts of the archive's own stand as differences, everything else by dictionary.
    """
    fields = [field for field, _ in columns]
    schema = pa.schema(fields, metadata=metadata)
    table = pa.table([array for _, array in columns], schema=schema)
    chosen = {_path(field): encodings.get(field.name, _usual(field)) for field in fields}
    out = io.BytesIO()
    pq.write_table(
        table,
        out,
        compression="zstd",
        compression_level=ZSTD_LEVEL,
        row_group_size=max(1, table.num_rows),
        data_page_size=PAGE_BYTES,
        use_dictionary=[path for path, encoding in chosen.items() if encoding is Encoding.DICTIONARY],
        column_encoding={
            path: encoding.value
            for path, encoding in chosen.items()
            if encoding not in (Encoding.DICTIONARY, Encoding.PLAIN)
        },
        write_page_checksum=True,
    )
    return out.getvalue()


def _usual(field: pa.Field) -> Encoding:
    if pa.types.is_list(field.type):
        return Encoding.PLAIN
    own = field.name.startswith("recd.") and pa.types.is_integer(field.type)
    return Encoding.DELTA if own else Encoding.DICTIONARY


def _path(field: pa.Field) -> str:
    """The name of the column that holds the values."""
    return f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name


def from_bytes(data: bytes, *, place: str) -> pa.Table:
    """The table. Raises FileDamaged."""
    try:
        return pq.read_table(io.BytesIO(data), page_checksum_verification=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise FileDamaged(f"{place}: not Parquet: {error}") from None
