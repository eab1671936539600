"""Bytes of the archive: events and samples clustered by session against the same rows in order of arrival, same codec.

    python -m bench.archive [--seconds 25]

Preset `recd` of the generator, every session that begins within --seconds of event time played to its end. Parquet,
zstd level 3, one file of one row group. Plain events: the records' JSON in one column, in order of arrival, Parquet's
own settings. In order of arrival: the archive's columns and settings, only the order differs. The closing line is JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rich
from rich.table import Table

from bench.bytes import as_batch, exact, generated, samples_of
from dedup_cache import Batch, decode
from recd.presets import preset_path
from stream.archive.event_files import concat_blocks, encode_records
from stream.archive.sample_files import encode_samples
from stream.builder import take_samples
from stream.config import load
from stream.records import RecordBlock, SampleBlock

ZSTD_LEVEL = 3
BATCH = 1024


def plain_records(blocks: Sequence[RecordBlock]) -> int:
    """Bytes of the records as they are."""
    values = concat_blocks(blocks).values
    return _default_bytes(pa.table({"value": pa.array(values, pa.binary())}))


def _default_bytes(table: pa.Table) -> int:
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd", compression_level=ZSTD_LEVEL)
    return len(out.getvalue())


def main() -> None:
    """Run, print the table and the closing line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=25.0, help="event time in which sessions begin")
    args = parser.parse_args()
    began = time.process_time()
    config = load(preset_path("recd"))
    blocks = list(generated(config, seconds=args.seconds))
    made = samples_of(config, iter(blocks))

    def batches(block: SampleBlock) -> list[Batch]:
        parts = [
            take_samples(block, np.arange(at, min(at + BATCH, block.num_samples)))
            for at in range(0, block.num_samples, BATCH)
        ]
        return [decode(as_batch(made.schema, part, exact(made.schema, part)), made.schema) for part in parts]

    arrival = encode_samples(batches(take_samples(made.block, np.argsort(made.block.offsets))), made.schema)
    sizes = {
        "events, plain JSON in order of arrival": plain_records(blocks),
        "events, columns in order of arrival": len(encode_records(blocks, cluster=False)),
        "events, columns clustered by session": len(encode_records(blocks)),
        "samples, in order of arrival, Parquet's own settings": _default_bytes(pq.read_table(io.BytesIO(arrival))),
        "samples, in order of arrival": len(arrival),
        "samples, clustered by session": len(encode_samples(batches(made.block), made.schema)),
    }
    num_events = sum(len(block.offsets) for block in blocks)
    table = Table("preset recd, one file", "bytes a row", title=f"{num_events} events, {made.counts.samples} samples")
    for name, size in sizes.items():
        table.add_row(name, f"{size / (num_events if name.startswith('events') else made.counts.samples):,.1f}")
    rich.print(table)
    plain, columns, clustered, default, ordered, sessions = sizes.values()
    closing = {
        "bench": "archive",
        "ratio_archive": round(plain / clustered, 3),
        "ratio_archive_order_only": round(columns / clustered, 3),
        "ratio_samples": round(default / sessions, 3),
        "ratio_samples_order_only": round(ordered / sessions, 3),
        "samples_per_session": round(made.per_session, 2),
        "codec": f"zstd {ZSTD_LEVEL}",
        "pyarrow": pa.__version__,
        "cpu_s": round(time.process_time() - began, 1),
    }
    print(json.dumps(closing))


if __name__ == "__main__":
    main()
