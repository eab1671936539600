"""Compressed bytes of the batches topic, deduplicated against plain in order of arrival: same codec, records, samples.

    python -m bench.bytes [--seconds 25] [--deskdrop ../shared/data/deskdrop/interactions.csv.gz] [--samples 1024]

Preset `recd` of the generator, every session that begins within --seconds of event time played to its end, through the
real pipeline of one partition; and real events (deskdrop), as the preset reads them and with a history of the last 50
articles along. Plain: samples in order of arrival, one row each, no clustering by session, no inverse. While the first
sessions come and the last ones go there are fewer at a time, so a plain batch repeats more than it would in a steady
stream: `ratio` compares with plain batches of the steady stretch, `ratio_whole` with all. zstd level 3, one frame a
record, as librdkafka does it for records of this size. The closing line is JSON.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import platform
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import rich
from rich.table import Table

from dedup_cache import Batch, BatchMeta, BatchSchema, Group, Slicing, deduplicate, encode, sample_id, slice_group
from dedup_cache.batch import FORMAT_VERSION
from recd.presets import preset_path
from stream.builder import concat_samples, take_samples
from stream.columns import batch_schema
from stream.config import Config, FeatureConfig, load
from stream.generator import DENSITY, event_renderer, world_options
from stream.pipeline import PartitionPipeline, PipelineConfig
from stream.records import CommitPoint, PipelineCounts, RecordBlock, SampleBlock
from stream.traffic import traffic_options
from stream.world import World

START_MS = 1_700_000_000_000
WARM_UP_MS = 15_000
"""So long it takes until as many sessions end as begin."""
HISTORY = 50
BLOCK = 2_000
CODEC = pa.Codec("zstd", compression_level=3)
DESKDROP = Path("../shared/data/deskdrop/interactions.csv.gz")


@dataclass(frozen=True)
class Samples:
    """What a stretch of events became, in order of closing."""

    schema: BatchSchema
    block: SampleBlock
    counts: PipelineCounts

    @property
    def per_session(self) -> float:
        """Mean number of samples in a session."""
        return self.counts.samples / max(1, self.counts.sessions_closed)


@dataclass(frozen=True)
class Size:
    """Of some batches, per sample."""

    raw: float
    compressed: float


def generated(config: Config, *, seconds: float, crowd: float = 1.0) -> Iterator[RecordBlock]:
    """Events of the generator, every session whole; `crowd` times as many sessions at a time as by default."""
    options = traffic_options("recd", max_events=1, rate=crowd * DENSITY)
    world = World(world_options(options, session_gap_ms=config.session.gap_ms))
    renderer = event_renderer(config, options=options, world=world, run="bench")
    offset = first_too_late = 0
    while True:
        window = world.next_window()
        values = renderer.render(window, start_ms=START_MS)
        if window.end_ms <= 1000 * seconds:
            first_too_late = world._sessions  # noqa: SLF001 - the number of the next session
        kept = np.flatnonzero(window.events["session"] < first_too_late)
        if window.end_ms > 1000 * seconds and not kept.size:
            return
        times = window.events["time_ms"][kept] + START_MS
        keys: list[bytes | None] = [str(user).encode() for user in window.events["user"][kept].tolist()]
        offsets = np.arange(offset, offset + kept.size)
        offset += kept.size
        yield RecordBlock(0, offsets, times, keys, [values[i] for i in kept.tolist()])


def deskdrop(config: Config, path: Path) -> Iterator[RecordBlock]:
    """Real events in the file's order; each view carries what its reader viewed before, as many logs have it."""
    fields = config.events.fields
    unit = 1000 if config.events.time_unit == "s" else 1
    histories: dict[str, deque[str]] = {}
    rows: list[tuple[int, bytes, bytes]] = []
    offset = 0
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file)):
            key, item, time_ms = row["person_id"], row["content_id"], 1000 * int(row["timestamp"])
            history = histories.setdefault(key, deque(maxlen=HISTORY))
            event = {str(fields.event_id): number, fields.key: key, fields.time: time_ms // unit}
            event |= {fields.type: row["event_type"], fields.item: item, "history": list(history)}
            rows.append((time_ms, key.encode(), json.dumps(event).encode()))
            if row["event_type"] in config.events.impressions:
                history.append(item)
            if len(rows) == BLOCK:
                yield _block(rows, offset)
                rows, offset = [], offset + BLOCK
    if rows:
        yield _block(rows, offset)


def _block(rows: list[tuple[int, bytes, bytes]], offset: int) -> RecordBlock:
    times, keys, values = zip(*rows, strict=True)
    return RecordBlock(0, np.arange(offset, offset + len(rows)), np.array(times, np.int64), list(keys), list(values))


def samples_of(config: Config, blocks: Iterator[RecordBlock]) -> Samples:
    """Through the pipeline of one partition, and at last every session closed."""
    pipeline = PartitionPipeline(PipelineConfig.of(config), partition=0, start=CommitPoint(0))
    outputs = [pipeline.feed(block) for block in blocks]
    outputs.append(pipeline.advance(pipeline.close_all_watermark_ms()))
    counts = sum((output.counts for output in outputs), PipelineCounts())
    block = concat_samples([output.samples for output in outputs if output.samples is not None])
    return Samples(batch_schema(config), block, counts)


def as_batch(schema: BatchSchema, block: SampleBlock, groups: dict[str, Group]) -> bytes:
    """One record of `batches`."""
    meta = BatchMeta(
        format_version=FORMAT_VERSION,
        schema_digest=schema.digest(),
        generation="",
        source_topic="interactions",
        source_partition=0,
        first_offset=int(block.offsets.min()),
        last_offset=int(block.offsets.max()),
        seq=0,
        min_event_time_ms=int(block.event_times_ms.min()),
        max_event_time_ms=int(block.event_times_ms.max()),
        written_ms=START_MS,
    )
    batch = Batch(
        labels=block.labels,
        weights=block.weights,
        scores=block.scores,
        sample_ids=sample_id(0, block.offsets),
        event_times_ms=block.event_times_ms,
        append_times_ms=block.append_times_ms,
        groups=groups,
        meta=meta,
    )
    return encode(batch, schema)


def plain(schema: BatchSchema, block: SampleBlock) -> dict[str, Group]:
    """One row a sample."""
    everyone = np.arange(block.num_samples, dtype=np.int32)
    return {group.name: Group(block.groups[group.name].take(everyone), everyone) for group in schema.groups}


def exact(schema: BatchSchema, block: SampleBlock) -> dict[str, Group]:
    """Distinct rows, one behind the other."""
    return _distinct(schema, block, Slicing.NEVER)


def sliced(schema: BatchSchema, block: SampleBlock) -> dict[str, Group]:
    """Distinct rows, lists that slide as slices: what the stream writes."""
    return _distinct(schema, block, Slicing.AUTO)


def _distinct(schema: BatchSchema, block: SampleBlock, slicing: Slicing) -> dict[str, Group]:
    groups = {}
    for group in schema.groups:
        made = deduplicate(block.groups[group.name], salt=schema.group_salt(group)).group
        groups[group.name] = slice_group(made, replace(group, slicing=(slicing,) * len(group.lists)))
    return groups


def measure(
    samples: Samples,
    form: Callable[[BatchSchema, SampleBlock], dict[str, Group]],
    *,
    order: np.ndarray,
    size: int,
) -> Size:
    """Bytes per sample of whole batches of `size`, samples in `order`."""
    raw = compressed = count = 0
    for at in range(0, len(order) - size + 1, size):
        block = take_samples(samples.block, order[at : at + size])
        data = as_batch(samples.schema, block, form(samples.schema, block))
        raw, compressed, count = raw + len(data), compressed + len(CODEC.compress(data)), count + size
    return Size(raw / max(1, count), compressed / max(1, count))


def compare(samples: Samples, *, size: int, steady: tuple[int, int] | None = None) -> dict[str, Size]:
    """The forms by name; `steady`: the stretch of event time in which plain batches count as steady."""
    arrival = np.argsort(samples.block.offsets)
    closing = np.arange(samples.block.num_samples)
    sizes = {"plain, in order of arrival": measure(samples, plain, order=arrival, size=size)}
    if steady is not None:
        times = samples.block.event_times_ms[arrival]
        stretch = arrival[(times >= steady[0]) & (times < steady[1])]
        sizes["plain, in order of arrival, steady"] = measure(samples, plain, order=stretch, size=size)
    sizes["plain, clustered by session"] = measure(samples, plain, order=closing, size=size)
    sizes["distinct rows"] = measure(samples, exact, order=closing, size=size)
    sizes["distinct rows, slices"] = measure(samples, sliced, order=closing, size=size)
    return sizes


def show(title: str, sizes: dict[str, Size]) -> dict[str, float]:
    """Print the table; return by form how many times smaller than plain it is."""
    base = sizes.get("plain, in order of arrival, steady", sizes["plain, in order of arrival"])
    table = Table("bytes a sample", "raw", "compressed", "raw, times", "compressed, times", title=title)
    for name, one in sizes.items():
        ratios = (base.raw / one.raw, base.compressed / one.compressed)
        table.add_row(name, f"{one.raw:,.0f}", f"{one.compressed:,.1f}", *(f"{ratio:.2f}x" for ratio in ratios))
    rich.print(table)
    return {name: round(base.compressed / one.compressed, 3) for name, one in sizes.items()}


def with_history(config: Config) -> Config:
    """The preset's features, and the reader's history in a group of its own."""
    history = FeatureConfig(name="history", group="history", type="list[string]", max_length=HISTORY)
    return msgspec.structs.replace(config, features=(*config.features, history))


def main() -> None:
    """Run, print the tables and the closing line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=25.0, help="event time in which sessions begin")
    parser.add_argument("--samples", type=int, help="samples a batch; the preset's by default")
    parser.add_argument("--deskdrop", type=Path, default=DESKDROP)
    args = parser.parse_args()
    began = time.process_time()
    config = load(preset_path("recd"))
    size = args.samples or config.batch.max_samples
    made = samples_of(config, generated(config, seconds=args.seconds))
    steady = (START_MS + WARM_UP_MS, START_MS + round(1000 * args.seconds))
    sizes = compare(made, size=size, steady=steady)
    title = f"preset recd: {made.counts.samples} samples, {made.per_session:.1f} a session, {size} a batch"
    ratios = show(title, sizes)
    whole = sizes["plain, in order of arrival"].compressed / sizes["distinct rows, slices"].compressed
    closing: dict[str, object] = {
        "bench": "bytes",
        "ratio": ratios["distinct rows, slices"],
        "ratio_exact": ratios["distinct rows"],
        "ratio_whole": round(whole, 3),
        "samples_per_session": round(made.per_session, 2),
    }
    closing |= real(args.deskdrop, size=args.samples) if args.deskdrop.is_file() else {"ratio_real": None}
    closing |= {"codec": "zstd 3", "python": platform.python_version(), "pyarrow": pa.__version__}
    closing["cpu_s"] = round(time.process_time() - began, 1)
    print(json.dumps(closing))


def real(path: Path, *, size: int | None) -> dict[str, object]:
    """Deskdrop as its preset has it, and with histories."""
    config = load(preset_path("deskdrop"))
    size = size or config.batch.max_samples
    found: dict[str, object] = {}
    for name, features in (("ratio_real", config), ("ratio_real_with_history", with_history(config))):
        made = samples_of(features, deskdrop(features, path))
        what = "as its preset has it" if features is config else f"with the last {HISTORY} articles along"
        title = f"deskdrop {what}: {made.counts.samples} samples, {made.per_session:.1f} a session, {size} a batch"
        ratios = show(title, compare(made, size=size))
        found |= {name: ratios["distinct rows, slices"], f"{name}_exact": ratios["distinct rows"]}
    return found


if __name__ == "__main__":
    main()
