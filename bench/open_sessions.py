"""The pure pipeline by the number of open sessions: events per CPU-second, and memory per open session over time.

    python -m bench.open_sessions [COUNT ...]

Every millisecond one session opens with its first event, three others get their second, third and fourth, and one
closes; so that so many are open at any time, a session's events are a quarter of that number of milliseconds apart.
Each level is a process of its own, is filled first, and is then measured while every session is replaced once.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from statistics import median

import numpy as np
import psutil
import rich
from rich.table import Table

from stream.compiled import warm
from stream.config import Config, FeatureConfig, LabelConfig, SessionConfig
from stream.pipeline import PartitionPipeline, PipelineConfig
from stream.records import CommitPoint, RecordBlock

LEVELS = (1_000, 100_000, 1_000_000)
TICKS = 1_250
"""Milliseconds of a block; four events each."""
BLOCKS = 12
"""At least so many for each figure."""
FIGURES = 6
START_MS = 1_700_000_000_000


@dataclass(frozen=True, slots=True)
class Level:
    """What was measured with so many sessions open."""

    open_sessions: int
    events_per_cpu_second: int
    bytes_per_session: list[int]
    """From figure to figure, while all sessions were replaced once: flat where nothing grows."""


def by_open_sessions(counts: list[int]) -> list[Level]:
    """One level after the other, each in a process; memory is what the process holds above what it held before."""
    levels = []
    for count in counts:
        command = [sys.executable, "-m", "bench.open_sessions", "--level", str(count)]
        made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        levels.append(Level(**json.loads(made.stdout.splitlines()[-1])))
    return levels


def show_sessions(levels: list[Level]) -> list[dict[str, object]]:
    """Print the table; returns it for the closing line."""
    table = Table("open sessions", "events / CPU-s", "of the fewest", "bytes / session, over time")
    for level in levels:
        share = level.events_per_cpu_second / levels[0].events_per_cpu_second
        memory = "  ".join(f"{one:,}" for one in level.bytes_per_session)
        table.add_row(f"{level.open_sessions:,}", f"{level.events_per_cpu_second:,}", f"{share:.2f}", memory)
    rich.print(table)
    return [asdict(level) for level in levels]


def measure(count: int) -> Level:
    """One level, in this process."""
    warm.compile_now()
    apart_ms = count // 4
    config = Config(
        features=(FeatureConfig(name="user_id", group="user"), FeatureConfig(name="item_id", group="item")),
        labels=(LabelConfig(name="click", engagements=("click",)),),
        session=SessionConfig(gap_ms=apart_ms + 1, out_of_orderness_ms=0, max_duration_ms=1_000 * count),
    )
    pipeline = PartitionPipeline(PipelineConfig.of(config), partition=0, start=CommitPoint(0))
    _feed(PartitionPipeline(PipelineConfig.of(config), partition=0, start=CommitPoint(0)), 0, apart_ms, blocks=4)
    process, held_before = psutil.Process(), psutil.Process().memory_info().rss
    at, rates, memory = 0, [], []
    while at < 1.1 * count:
        _feed(pipeline, at, apart_ms, blocks=1)
        at += TICKS
    for _ in range(FIGURES):
        blocks = max(BLOCKS, count // FIGURES // TICKS)
        spent = _feed(pipeline, at, apart_ms, blocks=blocks)
        at += blocks * TICKS
        rates.append(4 * TICKS * blocks / spent)
        memory.append(round((process.memory_info().rss - held_before) / pipeline.open_sessions))
    return Level(pipeline.open_sessions, round(median(rates)), memory)


def _feed(pipeline: PartitionPipeline, at: int, apart_ms: int, *, blocks: int) -> float:
    """CPU seconds that so many blocks from tick `at` on took, without the making of them."""
    spent = 0.0
    for number in range(blocks):
        block = _block(at + number * TICKS, apart_ms)
        began = time.process_time()
        pipeline.feed(block)
        spent += time.process_time() - began
    return spent


def _block(first: int, apart_ms: int) -> RecordBlock:
    """At tick n session n gets its first event, those of 1 and 2 times `apart_ms` ago their next, of 3 a click."""
    values: list[bytes | None] = []
    keys: list[bytes | None] = []
    for n in range(first, first + TICKS):
        for k in range(4):
            user = n - k * apart_ms
            kind, item = ("click", n - apart_ms) if k == 3 else ("impression", n)
            values.append(
                f'{{"event_id": "e-{4 * n + k}", "user_id": {user}, "event_time_ms": {START_MS + n}, '
                f'"type": "{kind}", "item_id": {item % 997}}}'.encode()
            )
            keys.append(str(user).encode())
    offsets = np.arange(4 * first, 4 * (first + TICKS), dtype=np.int64)
    return RecordBlock(0, offsets, START_MS + offsets // 4, keys, values)


def main() -> None:
    """Run, print the table and the closing line."""
    if sys.argv[1:2] == ["--level"]:
        print(json.dumps(asdict(measure(int(sys.argv[2])))))
        return
    levels = by_open_sessions([int(count) for count in sys.argv[1:]] or list(LEVELS))
    print(json.dumps({"bench": "open_sessions", "by_open_sessions": show_sessions(levels)}))


if __name__ == "__main__":
    main()
