"""What a run looks like at one moment, put together from what the services say of themselves."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Status = Mapping[str, Any]

RATE_WINDOW = 6
"""Readings that a rate looks back over."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Totals of the whole system at `at_s` (seconds since the demo began)."""

    at_s: float
    stream: dict[str, int]
    """Counters of all workers added up."""
    open_sessions: int
    stream_lag: int
    """Records of `interactions` that no worker has processed yet."""
    trainer: Status
    serving: Status


@dataclass(frozen=True, slots=True)
class Rates:
    """Per second, over the last few readings."""

    events: float = 0.0
    sessions: float = 0.0
    samples: float = 0.0
    batches: float = 0.0
    trained: float = 0.0


class Telemetry:
    """Keeps the readings of a run: the newest, the rates, the course of NE, the greatest rates seen."""

    def __init__(self) -> None:
        self.newest = read(0.0, workers=(), trainer={}, serving={})
        self._window: deque[Reading] = deque([self.newest], maxlen=RATE_WINDOW)
        self.ne_history: list[float] = []
        self._active: dict[str, tuple[float, float, int]] = {}

    def add(self, reading: Reading) -> None:
        """Take one reading in."""
        self._window.append(reading)
        self.newest = reading
        if isinstance(ne := reading.trainer.get("ne_window"), float | int):
            self.ne_history.append(float(ne))
        for stage, total in stage_totals(reading).items():
            self._note_activity(stage, total=total, at_s=reading.at_s)

    def rates(self) -> Rates:
        """Of the last few readings."""
        first, last = self._window[0], self._window[-1]
        elapsed = last.at_s - first.at_s
        if elapsed <= 0:
            return Rates()

        def per_second(name: str) -> float:
            return max(0, last.stream.get(name, 0) - first.stream.get(name, 0)) / elapsed

        trained = max(0, last.trainer.get("samples", 0) - first.trainer.get("samples", 0)) / elapsed
        return Rates(
            events=per_second("events"),
            sessions=per_second("sessions_closed"),
            samples=per_second("samples"),
            batches=per_second("batches"),
            trained=trained,
        )

    def stage_rates(self) -> dict[str, float]:
        """Mean rate per second of each stage between its first and last movement."""
        return {
            stage: round(total / (last - first), 1) if last > first else 0.0
            for stage, (first, last, total) in self._active.items()
        }

    def _note_activity(self, stage: str, *, total: int, at_s: float) -> None:
        first, _, before = self._active.get(stage, (at_s, at_s, 0))
        if total > before:
            self._active[stage] = (first, at_s, total)
        elif total == 0:
            self._active[stage] = (at_s, at_s, 0)


def read(at_s: float, *, workers: Iterable[Status], trainer: Status, serving: Status) -> Reading:
    """Put one reading together; a service that has not answered yet is an empty mapping."""
    workers = list(workers)
    partitions = [p for worker in workers for p in worker.get("partitions", {}).values()]
    stream: dict[str, int] = {}
    for worker in workers:
        for name, value in worker.get("counters", {}).items():
            stream[name] = stream.get(name, 0) + value
    return Reading(
        at_s=at_s,
        stream=stream,
        open_sessions=sum(p.get("open_sessions", 0) for p in partitions),
        stream_lag=sum(max(0, p.get("lag", 0)) for p in partitions),
        trainer=trainer,
        serving=serving,
    )


def stage_totals(reading: Reading) -> dict[str, int]:
    """What each stage has done so far: events, samples, samples, candidates."""
    return {
        "events_in": reading.stream.get("events", 0),
        "samples_streamed": reading.stream.get("samples", 0),
        "samples_trained": reading.trainer.get("samples", 0),
        "candidates_scored": reading.serving.get("counters", {}).get("candidates", 0),
    }


def factor(plain: float, kept: float) -> float | None:
    """How many times smaller; None when nothing was counted."""
    return round(plain / kept, 3) if kept else None
