"""The pure pipeline by the number of open sessions: events per CPU-second, and memory per open session over time."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass

import numpy as np
import psutil
import rich
from rich.table import Table

from stream.config import Config, FeatureConfig, SessionConfig
from stream.pipeline import PartitionPipeline, PipelineConfig
from stream.records import CommitPoint, RecordBlock

BLOCK = 5_000
ROUNDS = 6
START_MS = 1_700_000_000_000


@dataclass(frozen=True, slots=True)
class Level:
    """What was measured with so many sessions open."""

    open_sessions: int
    events_per_cpu_second: int
    bytes_per_session: int
    bytes_per_session_before: int
    """The same half of the measured time earlier: flat where nothing grows."""


def by_open_sessions(counts: list[int]) -> list[Level]:
    """One level after the other, the smallest first; memory is that of the process above what it held before."""
    return [_level(count) for count in counts]


def show_sessions(levels: list[Level]) -> list[dict[str, int]]:
    """Print the table; returns it for the closing line."""
    table = Table("open sessions", "events / CPU-s", "of the fewest", "bytes / session", "earlier")
    for level in levels:
        share = level.events_per_cpu_second / levels[0].events_per_cpu_second
        table.add_row(
            f"{level.open_sessions:,}",
            f"{level.events_per_cpu_second:,}",
            f"{share:.2f}",
            f"{level.bytes_per_session:,}",
            f"{level.bytes_per_session_before:,}",
        )
    rich.print(table)
    return [asdict(level) for level in levels]


def _level(count: int) -> Level:
    """Sessions of two events, the second half a gap after the first, so that `count` sessions are open at any time."""
    gap_ms = count
    config = Config(
        features=(FeatureConfig(name="user_id", group="user"), FeatureConfig(name="item_id", group="item")),
        session=SessionConfig(gap_ms=gap_ms, out_of_orderness_ms=0, max_duration_ms=1_000 * gap_ms + 1),
    )
    pipeline = PartitionPipeline(PipelineConfig.of(config), partition=0, start=CommitPoint(0))
    process, held_before = psutil.Process(), psutil.Process().memory_info().rss
    at = 0
    while at < 2 * count:
        pipeline.feed(_block(at, gap_ms))
        at += BLOCK
    rates, memory = [], []
    for _ in range(ROUNDS):
        events, began = max(40_000, min(count // 2, 200_000)), 0.0
        blocks = [_block(at + i, gap_ms) for i in range(0, events, BLOCK)]
        began = time.process_time()
        for block in blocks:
            pipeline.feed(block)
        rates.append(len(blocks) * BLOCK / (time.process_time() - began))
        at += len(blocks) * BLOCK
        del blocks
        memory.append((process.memory_info().rss - held_before) / max(1, pipeline.open_sessions))
    half = ROUNDS // 2
    return Level(
        pipeline.open_sessions,
        round(float(np.median(rates))),
        round(float(np.median(memory[half:]))),
        round(float(np.median(memory[:half]))),
    )


def _block(first: int, gap_ms: int) -> RecordBlock:
    """One event a millisecond; event n is of user n, or the second one of the user half a gap before."""
    half = gap_ms // 2
    values: list[bytes | None] = []
    keys: list[bytes | None] = []
    for n in range(first, first + BLOCK):
        user = n if (n // half) % 2 == 0 else n - half
        event = {
            "event_id": n,
            "user_id": user,
            "event_time_ms": START_MS + n,
            "type": "impression",
            "item_id": n % 997,
        }
        values.append(json.dumps(event | {"type": "impression"}).encode())
        keys.append(str(user).encode())
    offsets = np.arange(first, first + BLOCK, dtype=np.int64)
    return RecordBlock(0, offsets, offsets + START_MS, keys, values)
