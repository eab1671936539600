"""The stream worker with its index in Redis against the same worker with its index in memory: the full job, and hits.

    python -m bench.dedup [--seconds 14] [--rounds 3] [--inline-bytes 512]

Real broker, real Redis, traffic of preset `recd`, rows above --inline-bytes by reference: consume, decode, sessions,
join, dedup, ids, batches, `values`, transactions. The users are split over two topics whose items are the same; a
worker reads one from its beginning, closes every session and ends. Three workers a round: first topic with the index
in memory; first topic with an empty Redis; second topic with the Redis of the one before (a second worker), and with an
empty one. CPU is that of the worker's process and of the Redis server together. A hit is a value that is not shipped
because a transaction shipped it before. Medians of the rounds; the closing line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import msgspec
import numpy as np
import psutil
import redis
import rich
from rich.table import Table

from bench.bytes import generated
from dedup_cache import IndexStore, MemoryStore, NearCache
from dedup_cache.arrays import UInt64
from dedup_cache.assign import Assignment
from dedup_cache.redis_store import RedisStore
from recd.embedded import EmbeddedKafka, EmbeddedRedis
from recd.presets import preset_path
from stream.compiled import warm
from stream.config import Config, load
from stream.context import CLOSE, Clock, Command, WorkerContext
from stream.counters import Counters
from stream.kafka import Writer, end_offsets
from stream.topics import create_topics
from stream.worker import StreamWorker

PATIENCE_S = 600.0
TIMEOUT_MS = 5_000
"""Of a call to Redis: how fast it is shall show in the figures, not as values inline."""
HALVES = ("first", "second")
MEMORY, REDIS, SECOND, ALONE = "in memory", "Redis", "Redis, second worker", "Redis, second users alone"


@dataclass(frozen=True, slots=True)
class Job:
    """What one worker did from its first turn to its last commit."""

    cpu_s: float
    redis_cpu_s: float
    wall_s: float
    counters: Counters
    asked: int
    """Rows that were worth an id."""

    @property
    def rate(self) -> float:
        """Events per CPU-second of worker and Redis."""
        return self.counters.events / (self.cpu_s + self.redis_cpu_s)

    @property
    def hits(self) -> float:
        """Share of the rows by reference whose value was not shipped."""
        return 1 - self.counters.values_shipped / max(1, self.asked)


class Counting:
    """Counts the rows that ask for an id; in front of a near-cache, of which it behaves like one."""

    def __init__(self, near: NearCache) -> None:
        self._near = near
        self.asked = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._near, name)

    def assign_groups(self, wanted: Mapping[str, UInt64]) -> dict[str, Assignment]:
        """See IndexStore."""
        self.asked += sum(map(len, wanted.values()))
        return self._near.assign_groups(wanted)


def publish(config: Config, *, seconds: float) -> dict[str, int]:
    """Sessions of one world, half of the users in each of two topics; returns events by topic."""
    counts = dict.fromkeys(HALVES, 0)
    for half in HALVES:
        create_topics(for_job(config, half=half, name="unused"))
    with Writer(config.kafka) as writer:
        for block in generated(config, seconds=seconds):
            for key, value in zip(block.keys, block.values, strict=True):
                half = HALVES[int(key or b"0") % 2]
                writer.send(topic_of(half), value, key=key, partition=0)
                counts[half] += 1
        writer.flush(60_000)
    return counts


def topic_of(half: str) -> str:
    """Of `interactions`."""
    return f"interactions-{half}"


def for_job(base: Config, *, half: str, name: str) -> Config:
    """Topics, group and index of its own, `interactions` as they are; `name` says whose index it is."""
    names = ("batches", "values", "late", "quarantine", "journal", "snapshots", "control")
    topics = msgspec.structs.replace(
        base.topics, **{one: f"{name}-{half}-{one}" for one in names}, interactions=topic_of(half)
    )
    stream = msgspec.structs.replace(base.stream, group_id=f"{name}-{half}")
    return msgspec.structs.replace(base, topics=topics, stream=stream)


def run_job(config: Config, store: IndexStore, *, server: EmbeddedRedis) -> Job:
    """A worker from the beginning of its topic to the end, every session closed and committed."""
    create_topics(config)
    counting = Counting(NearCache(store, max_entries=config.dedup.near_cache_entries))
    clock = Clock(lambda: time.time_ns() // 1_000_000, lambda: time.monotonic_ns() // 1_000_000)
    context = WorkerContext(transactional_id=config.stream.group_id, clock=clock, store=counting)  # type: ignore[arg-type]
    context.commands.put(Command(CLOSE, "all"))
    worker = StreamWorker(config, context)
    ends = end_offsets(config.kafka, config.topics.interactions)
    redis_process = psutil.Process(server.pid)
    before = (time.process_time(), _cpu_s(redis_process), time.monotonic())
    thread = threading.Thread(target=worker.run, name="worker")
    thread.start()
    try:
        while not _is_through(worker, ends):
            if not thread.is_alive() or time.monotonic() - before[2] > PATIENCE_S:
                raise RuntimeError(f"the worker did not come to the end: {worker.view}")
            time.sleep(0.05)
        after = (time.process_time(), _cpu_s(redis_process), time.monotonic())
    finally:
        worker.stop()
        thread.join()
    spent = [end - begin for begin, end in zip(before, after, strict=True)]
    return Job(*spent, counters=context.counters, asked=counting.asked)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _is_through(worker: StreamWorker, ends: dict[int, int]) -> bool:
    shown = worker.view.partitions
    return len(shown) == len(ends) and all(
        one["state"] == "live" and one["resume"] == one["position"] == ends[int(p)] and not one["open_sessions"]
        for p, one in shown.items()
    )


def one_round(base: Config, server: EmbeddedRedis, *, number: int) -> Iterator[tuple[str, Job]]:
    """Every kind of worker once."""

    def shared(name: str) -> RedisStore:
        return RedisStore(server.url, namespace=f"{name}-{number}", timeout_ms=TIMEOUT_MS)

    plan: tuple[tuple[str, str, IndexStore], ...] = (
        (MEMORY, "first", MemoryStore()),
        (REDIS, "first", shared("shared")),
        (SECOND, "second", shared("shared")),
        (ALONE, "second", shared("alone")),
    )
    for at, (kind, half, store) in enumerate(plan):
        yield kind, run_job(for_job(base, half=half, name=f"{number}-{at}"), store, server=server)


def main() -> None:
    """Print the table and the closing line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=14.0, help="event time in which sessions begin")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--inline-bytes", type=int, default=512)
    args = parser.parse_args()
    warm.compile_now()
    jobs: dict[str, list[Job]] = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        server = stack.enter_context(EmbeddedRedis(Path(name) / "redis"))
        kafka = stack.enter_context(EmbeddedKafka(Path(name) / "kafka", heap_mb=1024))
        with redis.Redis.from_url(server.url) as client:
            version = client.info("server")["redis_version"]
            base = load(
                preset_path("recd"),
                overrides=(
                    f"kafka.bootstrap={kafka.bootstrap}",
                    "topics.partitions=1",
                    "events.max_bytes=1048576",
                    f"dedup.inline_bytes={args.inline_bytes}",
                ),
            )
            events = publish(base, seconds=args.seconds)
            for number in range(args.rounds):
                for kind, job in one_round(base, server, number=number):
                    jobs.setdefault(kind, []).append(job)
                client.flushall()
    show(jobs, events=events, inline_bytes=args.inline_bytes)
    print(json.dumps(closing(jobs) | {"redis": version, "numpy": np.__version__, "cpus": os.cpu_count()}))


def show(jobs: dict[str, list[Job]], *, events: dict[str, int], inline_bytes: int) -> None:
    """The table."""
    of_first = jobs[MEMORY][0].counters
    title = f"preset recd, rows above {inline_bytes} bytes by id; {events['first']} + {events['second']} events, "
    title += f"{of_first.samples} samples, {of_first.rows_distinct} distinct rows, {jobs[MEMORY][0].asked} by id"
    table = Table("index", "events/CPU-s", "worker CPU s", "Redis CPU s", "events/s", "near hits", "hits", title=title)
    for kind, runs in jobs.items():
        first = runs[0].counters
        table.add_row(
            kind,
            f"{median(job.rate for job in runs):,.0f}",
            f"{median(job.cpu_s for job in runs):.2f}",
            f"{median(job.redis_cpu_s for job in runs):.2f}",
            f"{median(job.counters.events / job.wall_s for job in runs):,.0f}",
            f"{first.near_hits / max(1, first.near_hits + first.near_misses):.3f}",
            f"{median(job.hits for job in runs):.3f}",
        )
    rich.print(table)


def closing(jobs: dict[str, list[Job]]) -> dict[str, object]:
    """Ratios within a round, the median of the rounds."""

    def ratio(kind: str, base: str) -> float:
        return round(median(a.rate / b.rate for a, b in zip(jobs[kind], jobs[base], strict=True)), 3)

    def wall(kind: str, base: str) -> float:
        pairs = zip(jobs[kind], jobs[base], strict=True)
        return round(median(b.wall_s * a.counters.events / a.wall_s / b.counters.events for a, b in pairs), 3)

    return {
        "bench": "dedup",
        "ratio_redis_to_memory": ratio(REDIS, MEMORY),
        "ratio_redis_to_memory_wall": wall(REDIS, MEMORY),
        "ratio_second_to_alone": ratio(SECOND, ALONE),
        "hits_first": round(median(job.hits for job in jobs[REDIS]), 3),
        "hits_second": round(median(job.hits for job in jobs[SECOND]), 3),
        "hits_second_alone": round(median(job.hits for job in jobs[ALONE]), 3),
        "redis_errors": sum(job.counters.redis_errors for runs in jobs.values() for job in runs),
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
