"""The pure pipeline of one partition against bare JSON decoding of the same bytes, in events per CPU-second.

    python -m bench.pipeline [--events 200000] [--block 5000] [--profile]

Generated traffic of the demo preset, held in memory. Bare: msgspec into the same struct, one call a record. Decode:
the decoder of the pipeline, down to columns. Builder: the pipeline's samples, block by block, to the bytes of batches,
flushed and committed after every block, ids in memory. All variants take turns within a round; each figure is the
median of the rounds. The closing line is JSON.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import platform
import pstats
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from statistics import median

import msgspec
import numpy as np
import rich
from rich.table import Table

from dedup_cache import MemoryStore, NearCache
from stream.builder import BatchBuilder, BatchLimits
from stream.columns import batch_schema
from stream.compiled import warm
from stream.config import Config, load
from stream.event_json import EventRenderer
from stream.event_schema import EventSchema
from stream.events import Decoder
from stream.generator import GeneratorOptions, world_options
from stream.indexer import Indexer, ReferencePolicy
from stream.pipeline import PartitionPipeline, PipelineConfig
from stream.records import CommitPoint, PipelineCounts, RecordBlock, SampleBlock
from stream.transforms import Transforms
from stream.world import World

ROUNDS = 7
START_MS = 1_700_000_000_000


def make_blocks(config: Config, *, count: int, block: int) -> list[RecordBlock]:
    """`count` records in event-time order, dated as they were made."""
    world = World(world_options(GeneratorOptions(max_events=count), session_gap_ms=config.session.gap_ms))
    renderer = EventRenderer(config.events, world=world, run="bench")
    values: list[bytes | None] = []
    times: list[int] = []
    keys: list[bytes | None] = []
    while len(values) < count:
        window = world.next_window()
        values += renderer.render(window, start_ms=START_MS)
        times += (window.events["time_ms"] + START_MS).tolist()
        keys += [str(user).encode() for user in window.events["user"].tolist()]
    blocks = []
    for i in range(0, count, block):
        part = slice(i, min(i + block, count))
        offsets = np.arange(part.start, part.stop, dtype=np.int64)
        blocks.append(RecordBlock(0, offsets, np.array(times[part], np.int64), keys[part], values[part]))
    return blocks


def run_bare(config: Config, blocks: list[RecordBlock]) -> None:
    """Decode and forget."""
    decoder: msgspec.json.Decoder[msgspec.Struct] = EventSchema(
        config.events, features=config.features, labels=config.labels
    ).decoder
    for block in blocks:
        for value in block.values:
            decoder.decode(value)  # type: ignore[arg-type]


def run_decode(config: Config, blocks: list[RecordBlock]) -> None:
    """Records to columns."""
    decoder = Decoder(
        config.events,
        features=config.features,
        labels=config.labels,
        max_ahead_ms=config.session.max_ahead_ms,
    )
    for block in blocks:
        decoder.decode(block)


def run_pipeline(config: Config, blocks: list[RecordBlock]) -> PipelineCounts:
    """Records to samples, and at last every session closed."""
    pipeline = PartitionPipeline(PipelineConfig.of(config), partition=0, start=CommitPoint(0))
    counts = PipelineCounts()
    for block in blocks:
        counts += pipeline.feed(block).counts
    return counts + pipeline.advance(pipeline.close_all_watermark_ms()).counts


def make_samples(config: Config, blocks: list[RecordBlock]) -> list[SampleBlock]:
    """What the pipeline gives for the builder."""
    pipeline = PartitionPipeline(PipelineConfig.of(config), partition=0, start=CommitPoint(0))
    outputs = [pipeline.feed(block) for block in blocks]
    outputs.append(pipeline.advance(pipeline.close_all_watermark_ms()))
    return [output.samples for output in outputs if output.samples is not None]


def run_builder(config: Config, samples: list[SampleBlock]) -> int:
    """Samples to bytes; returns how many batches."""
    schema = batch_schema(config)
    policy = ReferencePolicy(config.dedup.inline_bytes, config.batch.max_bytes)
    indexer = Indexer(schema, store=NearCache(MemoryStore()), policy=policy)
    builder = BatchBuilder(
        schema,
        topic="interactions",
        partition=0,
        seq=0,
        limits=BatchLimits(config.batch.max_samples, config.batch.max_bytes),
        indexer=indexer,
        transforms=Transforms(config.features, config.derived),
    )
    count = 0
    for block in samples:
        count += len(builder.add(block, now_ms=START_MS).batches) + len(builder.flush(now_ms=START_MS))
        indexer.committed()
    return count


def measure(variants: dict[str, Callable[[], object]]) -> dict[str, float]:
    """CPU seconds of each variant."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(ROUNDS):
        for name, variant in variants.items():
            began = time.process_time()
            variant()
            seconds[name].append(time.process_time() - began)
    return {name: median(times) for name, times in seconds.items()}


def main() -> None:
    """Run, print the table and the closing line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--block", type=int, default=5_000)
    parser.add_argument("--profile", action="store_true", help="say where the pipeline's time goes, measure nothing")
    args = parser.parse_args()
    config = load(Path(str(files("recd") / "presets" / "demo.yaml")))
    warm.compile_now()
    blocks = make_blocks(config, count=args.events, block=args.block)
    if args.profile:
        profile = cProfile.Profile()
        profile.runcall(run_pipeline, config, blocks)
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)
        return
    counts, samples = run_pipeline(config, blocks), make_samples(config, blocks)
    seconds = measure(
        {
            "bare": lambda: run_bare(config, blocks),
            "decode": lambda: run_decode(config, blocks),
            "pipeline": lambda: run_pipeline(config, blocks),
            "builder": lambda: run_builder(config, samples),
        }
    )
    per_second = {name: args.events / spent for name, spent in seconds.items()}
    table = Table("", "events / CPU-s", "µs / event", "of bare")
    for name, rate in per_second.items():
        table.add_row(name, f"{rate:,.0f}", f"{1e6 / rate:.2f}", f"{rate / per_second['bare']:.2f}")
    rich.print(table)
    closing = {
        "bench": "pipeline",
        "events": args.events,
        "bytes_per_event": round(sum(len(v or b"") for b in blocks for v in b.values) / args.events, 1),
        "samples": counts.samples,
        "sessions": counts.sessions_closed,
        "events_per_cpu_second": {name: round(rate) for name, rate in per_second.items()},
        "ratio_to_bare": round(per_second["pipeline"] / per_second["bare"], 3),
        "python": platform.python_version(),
        "msgspec": msgspec.__version__,
        "numpy": np.__version__,
        "cpus": os.cpu_count(),
    }
    print(json.dumps(closing))


if __name__ == "__main__":
    main()
