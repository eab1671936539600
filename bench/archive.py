"""Bytes of the archive: events and samples clustered by session against the same rows in order of arrival, same codec.

    python -m bench.archive [--seconds 25] [--crowd 1] [--no-events]

Preset `recd` of the generator, every session that begins within --seconds of event time played to its end; with
--crowd N, N times as many sessions at a time. Parquet, zstd level 3, one file of one row group. Plain events: the
records' JSON in one column, in order of arrival, Parquet's own settings. Plain samples: one row and one list a sample,
in order of arrival, with Parquet's own settings and with the archive's (lists without dictionary, pages of 8 MB). What
zstd finds in the plain file depends on how far apart the samples of a session stand, which the table says. The closing
line is JSON.
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
from dedup_cache import Batch, BatchSchema, decode, sample_id
from recd.presets import preset_path
from stream.archive.event_files import concat_blocks, encode_records
from stream.archive.parquet import to_bytes
from stream.archive.sample_files import encode_samples, list_array
from stream.builder import take_samples
from stream.config import load
from stream.records import RecordBlock, SampleBlock

ZSTD_LEVEL = 3
BATCH = 1024


def plain_samples(schema: BatchSchema, block: SampleBlock, *, own_settings: bool) -> int:
    """Bytes of one row a sample, in the order of the block."""
    columns = {"recd.sample_id": pa.array(sample_id(0, block.offsets)), "weight": pa.array(block.weights)}
    columns |= {"event_time_ms": pa.array(block.event_times_ms), "append_time_ms": pa.array(block.append_times_ms)}
    for kind, numbers in (("label", block.labels), ("score", block.scores)):
        columns |= {f"{kind}.{name}": pa.array(numbers[:, i]) for i, name in enumerate(schema.labels)}
    for group in schema.groups:
        rows = block.groups[group.name]
        columns |= {name: pa.array(rows.dense[:, i]) for i, name in enumerate(group.dense)}
        columns |= {name: list_array(column) for name, column in rows.lists.items()}
    if own_settings:
        return _default_bytes(pa.table(columns))
    return len(to_bytes([(pa.field(name, array.type), array) for name, array in columns.items()], metadata={}))


def rows_between(block: SampleBlock) -> float:
    """Median distance, in order of arrival, of two samples of a user that follow one another in a session."""
    places = np.empty(block.num_samples, np.int64)
    places[np.argsort(block.offsets)] = np.arange(block.num_samples)
    users = block.groups["user"].lists["user_id"].values
    return float(np.median(np.diff(places)[users[1:] == users[:-1]]))


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
    parser.add_argument("--crowd", type=float, default=1.0, help="sessions at a time, as a multiple of the preset's")
    parser.add_argument("--no-events", action="store_true", help="samples only")
    args = parser.parse_args()
    began = time.process_time()
    config = load(preset_path("recd"))
    blocks = list(generated(config, seconds=args.seconds, crowd=args.crowd))
    made = samples_of(config, iter(blocks))

    def batches(block: SampleBlock) -> list[Batch]:
        parts = [
            take_samples(block, np.arange(at, min(at + BATCH, block.num_samples)))
            for at in range(0, block.num_samples, BATCH)
        ]
        return [decode(as_batch(made.schema, part, exact(made.schema, part)), made.schema) for part in parts]

    arrival = take_samples(made.block, np.argsort(made.block.offsets))
    samples = {
        "plain, in order of arrival, Parquet's own settings": plain_samples(made.schema, arrival, own_settings=True),
        "plain, in order of arrival": plain_samples(made.schema, arrival, own_settings=False),
        "plain, clustered by session": plain_samples(made.schema, made.block, own_settings=False),
        "every value once, lists that slide as slices": len(encode_samples(batches(made.block), made.schema)),
    }
    events = {} if args.no_events else event_sizes(blocks)
    num_events = sum(len(block.offsets) for block in blocks)
    title = (
        f"preset recd, one file: {num_events} events, {made.counts.samples} samples, {made.per_session:.1f} a session, "
    )
    title += f"{rows_between(made.block):.0f} rows between two of them in order of arrival"
    table = Table("", "bytes a row", "times", title=title)
    for kind, sizes, count in (("events", events, num_events), ("samples", samples, made.counts.samples)):
        for name, size in sizes.items():
            times = next(iter(sizes.values())) / size
            table.add_row(f"{kind}, {name}", f"{size / count:,.1f}", f"{times:.2f}")
    rich.print(table)
    default, ordered, _, once = samples.values()
    closing: dict[str, object] = {"bench": "archive"}
    if events:
        plain, columns, clustered = events.values()
        closing |= {"ratio_archive": round(plain / clustered, 3)}
        closing |= {"ratio_archive_order_only": round(columns / clustered, 3)}
    closing |= {
        "ratio_samples": round(default / once, 3),
        "ratio_samples_same_settings": round(ordered / once, 3),
        "rows_between": rows_between(made.block),
        "samples_per_session": round(made.per_session, 2),
        "codec": f"zstd {ZSTD_LEVEL}",
        "pyarrow": pa.__version__,
        "cpu_s": round(time.process_time() - began, 1),
    }
    print(json.dumps(closing))


def event_sizes(blocks: Sequence[RecordBlock]) -> dict[str, int]:
    """Bytes of the events by form."""
    return {
        "plain JSON in order of arrival": plain_records(blocks),
        "columns in order of arrival": len(encode_records(blocks, cluster=False)),
        "columns clustered by session": len(encode_records(blocks)),
    }


if __name__ == "__main__":
    main()
