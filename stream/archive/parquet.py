"""Parquet bytes for the archive: one column per feature, values that repeat from row to row where zstd sees them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from stream.archive.errors import FileDamaged

ZSTD_LEVEL = 3
PAGE_BYTES = 8 << 20
"""Larger than usual: what repeats within a page is stored once."""


def to_bytes(
    columns: Sequence[tuple[pa.Field, pa.Array]], *, metadata: dict[str, str], small_ids: Iterable[str] = ()
) -> bytes:
    """One file of one row group; `small_ids` names lists whose ids fit into few bytes and hardly repeat.

    Lists stand as they are, not by dictionary: bit-packed indices of equal lists are not equal bytes, so zstd would not
    find them. Whole numbers stand by dictionary, and where they are many, as differences.
    """
    fields = [field for field, _ in columns]
    schema = pa.schema(fields, metadata=metadata)
    table = pa.table([array for _, array in columns], schema=schema)
    counting = [f.name for f in fields if f.name.startswith("recd.") and pa.types.is_integer(f.type)]
    by_dictionary = [f.name for f in fields if not pa.types.is_list(f.type) and f.name not in counting]
    encodings = dict.fromkeys(counting, "DELTA_BINARY_PACKED")
    encodings |= {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in small_ids}
    out = io.BytesIO()
    pq.write_table(
        table,
        out,
        compression="zstd",
        compression_level=ZSTD_LEVEL,
        row_group_size=max(1, table.num_rows),
        data_page_size=PAGE_BYTES,
        use_dictionary=by_dictionary,
        column_encoding=encodings,
        write_page_checksum=True,
    )
    return out.getvalue()


def from_bytes(data: bytes, *, place: str) -> pa.Table:
    """The table. Raises FileDamaged."""
    try:
        return pq.read_table(io.BytesIO(data), page_checksum_verification=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise FileDamaged(f"{place}: not Parquet: {error}") from None
