"""What a worker shows of itself, as one immutable value that any thread may read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from stream.counters import Counters
from stream.partition import OwnedPartition
from stream.roster import Roster


class Mode(StrEnum):
    """What the worker was told to do, or is about to."""

    STARTING = "starting"
    WAITING_FOR_BROKER = "waiting_for_broker"
    RUNNING = "running"
    PAUSED = "paused"
    DRAINING = "draining"
    DRAINED = "drained"
    FAILED = "failed"


REBUILDING = "rebuilding"


@dataclass(frozen=True, slots=True)
class WorkerView:
    """`partitions` by number, as `/status` shows them; `member` says whether the worker belongs to its group."""

    state: str
    partitions: dict[str, dict[str, Any]] = field(default_factory=dict)
    last_error: str = ""
    member: bool = False
    at_ms: int = 0
    """When it was true, on the monotonic clock."""

    @staticmethod
    def of(
        mode: Mode,
        *,
        roster: Roster,
        last_error: str,
        member: bool,
        at_ms: int,
    ) -> WorkerView:
        """Put it together; called once a turn."""
        shown: dict[int, dict[str, Any]] = {number: _partition(p) for number, p in roster.owned.items()}
        shown |= {number: {"state": "opening"} for number in roster.waiting}
        shown |= {number: {"state": "stopped", "message": str(error)} for number, error in roster.refused.items()}
        rebuilding = any(p["state"] in ("opening", REBUILDING) for p in shown.values())
        state = REBUILDING if mode is Mode.RUNNING and rebuilding else str(mode)
        if shown and len(roster.refused) == len(shown):
            state = str(Mode.FAILED)
        return WorkerView(state, {str(number): shown[number] for number in sorted(shown)}, last_error, member, at_ms)

    @property
    def ready(self) -> bool:
        """Whether the worker belongs to its group and all its partitions go on."""
        stopped = any(p["state"] == "stopped" for p in self.partitions.values())
        return self.member and self.state == Mode.RUNNING and not stopped


@dataclass(frozen=True, slots=True, kw_only=True)
class Troubles:
    """What an operator must know although records flow."""

    hanging: Sequence[str] = ()
    """Which transactions in the job's topics never end."""
    not_looked: str = ""
    """Why that is not known everywhere, if so."""
    not_heard: str = ""
    """Why no order reaches the worker over the control topic, if so."""


def status(
    view: WorkerView, *, worker: str, counters: Counters, rates: Mapping[str, float], troubles: Troubles
) -> dict[str, Any]:
    """The JSON of `/status`."""
    cannot_look = f"cannot look for hanging transactions: {troubles.not_looked}" if troubles.not_looked else ""
    return {
        "service": "stream",
        "worker": worker,
        "state": view.state,
        "partitions": view.partitions,
        "counters": asdict(counters),
        "rates": dict(rates),
        "last_error": view.last_error,
        "hanging_transactions": list(troubles.hanging),
        "cannot_look": cannot_look,
        "cannot_hear": troubles.not_heard,
    }


def _partition(partition: OwnedPartition) -> dict[str, Any]:
    pipeline = partition.pipeline
    return {
        "state": REBUILDING if partition.rebuilding else "live",
        "position": pipeline.position,
        "end": partition.end,
        "committed": partition.committed.offset,
        "resume": partition.committed_resume,
        "watermark_ms": pipeline.watermark_ms,
        "open_sessions": pipeline.open_sessions,
        "open_events": pipeline.open_events,
        "seq": partition.committed_seq,
        "lag": partition.lag,
    }
