"""How long a restarted worker takes until it goes on, by the number of events that open sessions hold.

    python -m bench.recovery [--events 10000,100000,1000000] [--pure]

Traffic of the demo preset with a gap of 30 minutes: every session is open. Pure: CPU seconds of one process that
replays the log from the oldest open event, against restoring a snapshot; and what writing the snapshots adds to the
first pass. Takeover: a worker on a real broker, from being assigned the partition to being live, once from the log
alone and once with its snapshots. The closing line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import msgspec
import numpy as np
import rich
from rich.table import Table

from bench.pipeline import make_blocks
from dedup_cache import MemoryStore, NearCache
from recd.embedded import EmbeddedKafka
from stream.config import Config, load
from stream.context import Clock, WorkerContext
from stream.kafka import Writer
from stream.opening import CHUNK_BYTES
from stream.pipeline import PartitionPipeline, PipelineConfig
from stream.records import CommitPoint, RecordBlock
from stream.snapshot_format import decode_events, decode_head, join, select
from stream.snapshots import SnapshotLimits, Snapshots
from stream.topics import create_topics
from stream.worker import StreamWorker

GAP_MS = 1_800_000
BLOCK = 5_000
POLL_S = 0.005
PATIENCE_S = 900.0


@dataclass(frozen=True)
class Pure:
    """CPU seconds of the parts, without a broker."""

    first_pass: float
    snapshots: float
    restore: float
    snapshot_mb: float


@dataclass(frozen=True)
class Took:
    """From assigned to live."""

    wall: float
    cpu: float


def pure(config: Config, blocks: list[RecordBlock]) -> Pure:
    """One pass that writes snapshots as a worker does, then a restore from the last one and what is behind it."""
    every = config.stream.snapshot_every_events
    pipeline = new_pipeline(config)
    snapshots = Snapshots(0, limits=SnapshotLimits(every, CHUNK_BYTES), next_offset=0)
    records: dict[bytes, bytes] = {}
    pass_s = snapshot_s = 0.0
    last = None
    for commit, block in enumerate(blocks):
        began = time.process_time()
        pipeline.feed(block)
        fed = time.process_time()
        part = snapshots.take(pipeline, commit=commit)
        pass_s, snapshot_s = pass_s + fed - began, snapshot_s + time.process_time() - fed
        records |= {chunk.key: chunk.value for chunk in part.chunks}
        last = part.ref or last
    size = sum(map(len, records.values()))
    if last is None:
        return Pure(pass_s, snapshot_s, pass_s, 0.0)
    began = time.process_time()
    restored = restore(config, records, name=last.head.name, chunks=last.head.chunks)
    for block in blocks:
        if int(block.offsets[-1]) >= restored.position:
            restored.feed(block)
    restore_s = time.process_time() - began
    assert (restored.open_events, restored.position) == (pipeline.open_events, pipeline.position)
    return Pure(pass_s, snapshot_s, restore_s, size / 1e6)


def new_pipeline(config: Config) -> PartitionPipeline:
    return PartitionPipeline(PipelineConfig.of(config), partition=0, start=CommitPoint(0))


def restore(config: Config, records: dict[bytes, bytes], *, name: str, chunks: int) -> PartitionPipeline:
    def blob(name: str, chunks: int) -> bytes:
        return b"".join(records[f"{name}/{i}".encode()] for i in range(chunks))

    head = decode_head(blob(name, chunks))
    like = new_pipeline(config).no_impressions()
    parts = [
        select(decode_events(blob(ref.name, ref.chunks), like=like), held)
        for ref, held in zip(head.segments, head.held, strict=True)
    ]
    return PartitionPipeline.restore(
        PipelineConfig.of(config), partition=0, state=head.state, events=join(parts, like=like)
    )


class Worker:
    """A stream worker in a thread; knows when it was assigned."""

    def __init__(self, config: Config, name: str) -> None:
        self.assigned: tuple[float, float] | None = None
        clock = Clock(lambda: time.time_ns() // 1_000_000, lambda: time.monotonic_ns() // 1_000_000)
        context = WorkerContext(
            transactional_id=name, clock=clock, store=NearCache(MemoryStore()), crash_point=self._reached
        )
        self.counters = context.counters
        self._worker = StreamWorker(config, context)
        self._thread = threading.Thread(target=self._worker.run)
        self._thread.start()

    def until(self, condition: Callable[[dict[str, object]], bool]) -> tuple[float, float]:
        """Wall and CPU seconds from being assigned until the only partition fulfils it."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            partition = self._worker.view.partitions.get("0")
            if self.assigned and partition and condition(partition):
                return time.monotonic() - self.assigned[0], time.process_time() - self.assigned[1]
            if time.monotonic() > deadline or not self._thread.is_alive():
                raise SystemExit(f"the worker did not get there: {self._worker.view}")
            time.sleep(POLL_S)

    def stop(self) -> None:
        self._worker.stop()
        self._thread.join()

    def _reached(self, point: str) -> None:
        if point == "assigned":
            self.assigned = (time.monotonic(), time.process_time())


def takeovers(config: Config, blocks: list[RecordBlock]) -> dict[str, Took]:
    """One worker processes everything and stops; the next ones have to take over."""
    create_topics(config)
    with Writer(config.kafka, linger_ms=20) as writer:
        for block in blocks:
            for key, value in zip(block.keys, block.values, strict=True):
                writer.send(config.topics.interactions, value, key=key, partition=0)
        writer.flush(120_000)
    first = Worker(config, "first")
    count = sum(len(block.offsets) for block in blocks)
    first.until(lambda partition: partition.get("resume") == count)
    first.stop()
    took = {}
    stream = config.stream
    for name, every in (("log", 0), ("snapshot", stream.snapshot_every_events)):
        own = msgspec.structs.replace(config, stream=msgspec.structs.replace(stream, snapshot_every_events=every))
        worker = Worker(own, name)
        took[name] = Took(*worker.until(lambda partition: partition["state"] == "live"))
        worker.stop()
    return took


def settings(preset: Config, *, bootstrap: str, prefix: str) -> Config:
    topics = {
        name: f"{prefix}{name}" for name in ("interactions", "batches", "values", "late", "quarantine", "journal")
    }
    session = msgspec.structs.replace(preset.session, gap_ms=GAP_MS, max_duration_ms=8 * GAP_MS)
    return msgspec.structs.replace(
        preset,
        kafka=msgspec.structs.replace(preset.kafka, bootstrap=bootstrap),
        topics=msgspec.structs.replace(preset.topics, **topics, partitions=1),
        session=msgspec.structs.replace(session, idle_after_ms=86_400_000),
        stream=msgspec.structs.replace(preset.stream, group_id=f"{prefix}group"),
    )


def main() -> None:
    """Run, print the table and the closing line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--events", default="10000,100000,1000000", help="numbers of open events, with commas")
    parser.add_argument("--pure", action="store_true", help="without a broker")
    args = parser.parse_args()
    preset = load(Path(str(files("recd") / "presets" / "demo.yaml")))
    rows: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        kafka = None if args.pure else EmbeddedKafka(Path(folder)).__enter__()
        try:
            for count in map(int, args.events.split(",")):
                config = settings(preset, bootstrap=kafka.bootstrap if kafka else "none", prefix=f"r{count}-")
                blocks = make_blocks(preset, count=count, block=BLOCK)
                rows[count] = measure(config, blocks, with_broker=kafka is not None)
        finally:
            if kafka is not None:
                kafka.__exit__(None, None, None)
    show(rows)


def measure(config: Config, blocks: list[RecordBlock], *, with_broker: bool) -> dict[str, float]:
    for block in blocks[:1]:
        new_pipeline(config).feed(block)  # whatever is compiled at its first use
    alone = pure(config, blocks)
    row = {
        "replay_cpu_s": alone.first_pass,
        "restore_cpu_s": alone.restore,
        "snapshot_share": alone.snapshots / (alone.first_pass + alone.snapshots),
        "snapshot_mb": alone.snapshot_mb,
    }
    if with_broker:
        took = takeovers(config, blocks)
        row |= {f"takeover_{name}_s": one.wall for name, one in took.items()}
        row |= {f"takeover_{name}_cpu_s": one.cpu for name, one in took.items()}
    return row


def show(rows: dict[int, dict[str, float]]) -> None:
    names = list(next(iter(rows.values())))
    table = Table("open events", *names)
    for count, row in rows.items():
        table.add_row(f"{count:,}", *(f"{row[name]:.3f}" for name in names))
    rich.print(table)
    most = rows[max(rows)]
    compared = ("takeover_log_s", "takeover_snapshot_s")
    slow, quick = compared if compared[0] in most else ("replay_cpu_s", "restore_cpu_s")
    closing = {
        "bench": "recovery",
        "ratio": round(most[slow] / most[quick], 2),
        "rows": {count: {name: round(value, 4) for name, value in row.items()} for count, row in rows.items()},
        "python": platform.python_version(),
        "numpy": np.__version__,
        "cpus": os.cpu_count(),
    }
    print(json.dumps(closing))


if __name__ == "__main__":
    main()
