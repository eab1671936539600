"""The workers of a storm: processes in numbered slots, hit and replaced."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
import psutil

from tests.storm.journal_watch import now_ms
from tests.storm.plan import Round
from tests.storm.worker import Order
from tests.stream.rig import AppProcess, Rig

PATIENCE_S = 180.0
FENCED = ("lost", "trouble", "the data path starts again")
"""What a worker says that finds out that it was left behind."""


ENDS_IN_ORDER = (0, -signal.SIGTERM)
"""The second where it was told to before it listened to signals."""


class CrewError(Exception):
    """The workers did not do what they must; the message names the worker."""


class StormWorker(AppProcess):
    """`recd stream` with a fuse."""

    look_every_s = 0.15

    def __init__(self, rig: Rig, *options: str, name: str) -> None:
        log = rig.folder / f"{name}.log"
        self._log_begin = log.stat().st_size if log.exists() else 0
        super().__init__(rig, *options, name=name, command=("tests.storm.worker",))
        self.name = name

    def arm(self, order: Order) -> None:
        """It hits itself as ordered."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(msgspec.json.encode(order) + b"\n")
            self.process.stdin.flush()

    def ended_within(self, seconds: float) -> bool:
        """Whether it ended in time."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
            return True
        return False

    def stopped_within(self, seconds: float) -> bool:
        """Whether it came to a stop (SIGSTOP) in time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.alive:
            if psutil.Process(self.pid).status() == psutil.STATUS_STOPPED:
                return True
            time.sleep(0.005)
        return False

    def end_in_order(self) -> None:
        """SIGTERM; CrewError when it does not end, or not as it should."""
        self.process.terminate()
        if not self.ended_within(PATIENCE_S):
            self.process.send_signal(signal.SIGUSR1)
            time.sleep(1.0)
            raise CrewError(f"{self.name} was told to end and did not in {PATIENCE_S:.0f} s:\n{self.tail()}")
        if (status := self.process.returncode) not in ENDS_IN_ORDER:
            raise CrewError(f"{self.name} was told to end and ended with status {status}:\n{self.tail()}")

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    @property
    def working_on(self) -> set[int]:
        """Partitions that it showed as live when it was last asked."""
        return {int(p) for p, s in self.state.get("partitions", {}).items() if s["state"] == "live"}

    def said(self) -> list[dict[str, Any]]:
        """What this process logged; a last line that is not whole is left out."""
        with self.log.open("rb") as log:
            log.seek(self._log_begin)
            lines = log.read().decode(errors="replace").split("\n")[:-1]
        return [json.loads(line) for line in lines if line.startswith("{")]

    @property
    def held(self) -> set[int]:
        """Partitions that were assigned to it and not taken away."""
        held: set[int] = set()
        for event in self.said():
            if event["event"] == "assigned":
                held.update(event["partitions"])
            elif event["event"] in ("revoked", "lost"):
                held.difference_update(event["partitions"])
            elif event["event"] == "the data path starts again":
                held.clear()
        return held

    def troubles(self) -> int:
        """How often it said that something is wrong with its membership."""
        return sum(event["event"] in FENCED for event in self.said())


class Crew:
    """Slots 0..n-1, each with a worker or none."""

    def __init__(self, rig: Rig, round_: Round, *, tick: Callable[[], None]) -> None:
        self._rig, self._round, self._tick = rig, round_, tick
        self.slots: dict[int, StormWorker | None] = {}
        self.names: set[str] = set()

    @property
    def alive(self) -> list[StormWorker]:
        """Those that run."""
        return [worker for worker in self.slots.values() if worker is not None and worker.alive]

    def resize(self, workers: int) -> None:
        """So many slots; those beyond end in order."""
        for slot in [slot for slot in self.slots if slot >= workers]:
            worker = self.slots.pop(slot)
            if worker is not None and worker.alive:
                worker.end_in_order()
        self.slots |= {slot: None for slot in range(workers) if slot not in self.slots}
        self.fill()

    def fill(self) -> None:
        """A worker in every slot."""
        for slot, worker in self.slots.items():
            if worker is None or not worker.alive:
                self._check_end(worker)
                self.slots[slot] = self._start(slot)

    def victim(self, chosen: float) -> StormWorker:
        """One of those that work on a partition; waits until there is one."""
        holders: list[StormWorker] = []

        def some() -> bool:
            holders[:] = [worker for worker in self.alive if worker.working_on]
            return bool(holders)

        self.wait(some, "worker with a partition")
        return holders[int(chosen * len(holders))]

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Until the condition holds; CrewError when a worker ends by itself, or after PATIENCE_S."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            for worker in self.slots.values():
                self._check_end(worker)
            if time.monotonic() > deadline:
                states = {worker.name: (worker.alive, worker.state) for worker in self.slots.values() if worker}
                tails = "\n".join(worker.tail() for worker in self.slots.values() if worker)
                raise CrewError(f"no {what} in {PATIENCE_S:.0f} s: {states}\n{tails}")
            self._tick()
            time.sleep(0.02)

    def stop(self) -> None:
        """All end in order."""
        self.resize(0)

    def _start(self, slot: int) -> StormWorker:
        name = f"{self._round.protocol}-{'static' if self._round.static else 'dynamic'}-{slot}"
        self.names.add(name)
        identity = ("--set", f"stream.worker_id={name}", "--set", "stream.static_member=true")
        worker = StormWorker(self._rig, *(identity if self._round.static else ()), name=name)
        self._rig.adopt(worker)
        return worker

    def _check_end(self, worker: StormWorker | None) -> None:
        if worker is None or worker.alive or worker.process.returncode in (-signal.SIGKILL, *ENDS_IN_ORDER):
            return
        raise CrewError(f"{worker.name} ended by itself with {worker.process.returncode}:\n{worker.tail()}")


def killed(worker: StormWorker) -> int:
    """SIGKILL, whatever state it is in; returns when (ms)."""
    worker.process.kill()
    at_ms = now_ms()
    worker.process.wait()
    return at_ms
