"""Where the time of a recovery goes: until heirs have the partitions, until they are open, until the first commit."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.storm.journal_watch import Recovery

OPENED = "partition opened"


@dataclass(frozen=True, slots=True)
class Steps:
    """Milliseconds of one partition's recovery, step by step."""

    assigned: int
    opened: int
    committed: int


def steps(recoveries: Iterable[Recovery], events: Iterable[dict[str, Any]]) -> list[Steps]:
    """Of the recoveries whose heir is plain from what the workers logged: the last one assigned before its commit."""
    events = sorted(events, key=_at_ms)
    found = []
    for recovery in recoveries:
        within = [event for event in events if recovery.killed_ms <= _at_ms(event) <= recovery.seen_ms]
        assigned = [_at_ms(e) for e in within if e["event"] == "assigned" and recovery.partition in e["partitions"]]
        opened = [
            _at_ms(e) for e in within if e["event"] == "partition opened" and e["partition"] == recovery.partition
        ]
        if assigned and opened and assigned[-1] <= opened[-1]:
            taken = assigned[-1] - recovery.killed_ms
            found.append(Steps(taken, opened[-1] - assigned[-1], recovery.seen_ms - opened[-1]))
    return found


def medians(found: list[Steps]) -> dict[str, int]:
    """By step, the median; nothing without any."""
    return (
        {name: int(statistics.median(getattr(one, name) for one in found)) for name in Steps.__slots__} if found else {}
    )


def logged(folder: Path, names: Iterable[str]) -> list[dict[str, Any]]:
    """What the workers of these names logged, all their lives."""
    lines = (line for name in sorted(names) for line in (folder / f"{name}.log").read_text().splitlines())
    return [json.loads(line) for line in lines if line.startswith("{")]


def _at_ms(event: dict[str, Any]) -> int:
    return int(datetime.fromisoformat(event["time"]).timestamp() * 1000)
