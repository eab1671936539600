"""What outlives one worker: clocks, orders, counters, the store, and where tests may crash the process."""

from __future__ import annotations

import queue
from collections.abc import Callable
from dataclasses import dataclass, field

from dedup_cache import NearCache
from stream.ageing import CloseOrder
from stream.counters import Ages, Counters
from stream.index_store import IndexWatch
from stream.status import Mode
from stream.takeover import Overrides
from stream.transaction import CrashPoint

PAUSE, RESUME, DRAIN, CLOSE = "pause", "resume", "drain", "close"


@dataclass(frozen=True, slots=True)
class Command:
    """An order from the control topic: pause, resume, drain or close."""

    action: str
    id: str = ""


@dataclass(slots=True)
class Orders:
    """What was ordered last, for the next worker as for this one."""

    mode: Mode = Mode.RUNNING
    """RUNNING, PAUSED or DRAINED."""
    close: CloseOrder = field(default_factory=CloseOrder)


@dataclass(frozen=True, slots=True)
class Clock:
    """The two clocks: of the day, and one that never goes back."""

    wall_ms: Callable[[], int]
    monotonic_ms: Callable[[], int]


def no_crash(_point: str) -> None:
    """No crash here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerContext:
    """Handed to every worker of one process, one after the other."""

    transactional_id: str
    clock: Clock
    store: NearCache
    commands: queue.SimpleQueue[Command] = field(default_factory=queue.SimpleQueue)
    orders: Orders = field(default_factory=Orders)
    counters: Counters = field(default_factory=Counters)
    ages: Ages = field(default_factory=Ages)
    index_watch: IndexWatch = field(default_factory=IndexWatch)
    overrides: Overrides = field(default_factory=Overrides)
    crash_point: CrashPoint = no_crash
