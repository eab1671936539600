"""What every replay does, wherever its samples come from: attempts until one holds, commits, and the live batches."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from threading import Event
from typing import NamedTuple

from stream.config import Config
from stream.context import Clock
from stream.kafka import TransactionAborted
from stream.replay.errors import ReplayError
from stream.replay.live import Joint, LiveBatches
from stream.replay.progress import Progress
from stream.replay.request import ReplayReport, ReplayRequest
from stream.replay.stretch import Bound
from stream.replay.target import Target

logger = logging.getLogger("stream.replay")

FOLLOW_POLL_MS = 100
NAP_MS = 50
MAX_UNCOMMITTED = 200_000
"""Samples after which a transaction ends, however young it is."""


class Done(NamedTuple):
    """How much of the stretch is behind us."""

    done: int
    total: int


class Runner(ABC):
    """One run of a replay. `run` blocks until the end of the stretch, or, with `follow`, until `stop`."""

    def __init__(self, config: Config, request: ReplayRequest, *, begin: str, clock: Clock, stop: Event) -> None:
        self._config = config
        self._request = request
        self._begin = begin
        self._clock = clock
        self._stop = stop
        self._committed_ms = clock.monotonic_ms()
        self._on_progress: Callable[[int, int], object] = lambda _done, _total: None
        self.report = ReplayReport(request.into, str(request.first), self._end_text(), resumed=False)

    def run(self, *, on_progress: Callable[[int, int], object] = lambda _done, _total: None) -> ReplayReport:
        """Until the end, or until told to stop; `on_progress` hears how much is done, and of how much.

        Raises ReplayError, Fenced (another replay writes this topic), JournalError, KafkaError.
        """
        self._on_progress = on_progress
        began_ms = self._clock.monotonic_ms()
        with Target(self._config, self._request.into, begin=self._begin) as target:
            while True:
                try:
                    self._attempt(target)
                except TransactionAborted as error:
                    logger.warning("replay goes back to what is committed", extra={"reason": str(error)})
                    self.report.aborts += 1
                    target.abort(on_wait=self._on_wait)
                else:
                    break
        self.report.wall_s = (self._clock.monotonic_ms() - began_ms) / 1000
        return self.report

    def _attempt(self, target: Target) -> None:
        """From what is committed to the end. Raises TransactionAborted: nothing of what is under way will be seen."""
        progress = target.open(on_wait=self._on_wait)
        self.report.resumed = self.report.resumed or bool(progress)
        self._make(target, progress)
        self.report.complete = not self._stop.is_set()
        if self._request.follow and not self._stop.is_set():
            self._follow(target, self._joints(progress))

    @abstractmethod
    def _make(self, target: Target, progress: Mapping[int, Progress]) -> None:
        """The samples of the stretch behind `progress`, to its end or until told to stop, committed."""

    @abstractmethod
    def _joints(self, progress: Mapping[int, Progress]) -> Mapping[int, Joint]:
        """Where the live batches go on, by source partition."""

    @abstractmethod
    def _done(self) -> Done:
        """How much of the stretch is committed."""

    def _follow(self, target: Target, joints: Mapping[int, Joint]) -> None:
        """Copy the live batches until told to stop."""
        reached = {number: joint.progress for number, joint in joints.items()}
        live = LiveBatches(self._config, joints)
        try:
            while not self._stop.is_set():
                for batch in live.poll(timeout_ms=FOLLOW_POLL_MS):
                    reached[batch.partition] = target.copy(batch, after=reached[batch.partition])
                    self.report.partitions[batch.partition].to_sample = batch.seq + batch.num_samples
                self._commit_when_due(target)
            self._commit(target)
        finally:
            live.close()

    def _nap(self, wait_ms: int) -> None:
        """Sleep a little where it is not time yet to go on."""
        self._stop.wait(min(wait_ms, NAP_MS) / 1000)

    def _on_wait(self, message: str) -> None:
        """Called while the broker is waited for."""
        logger.warning("waiting for the broker", extra={"reason": message})
        if self._stop.is_set():
            raise ReplayError(f"stopped while waiting for the broker ({message}); start it again to go on")

    def _commit_when_due(self, target: Target) -> None:
        since_ms = self._clock.monotonic_ms() - self._committed_ms
        if since_ms >= self._config.batch.max_wait_ms or target.samples_under_way > MAX_UNCOMMITTED:
            self._commit(target)

    def _commit(self, target: Target) -> None:
        self.report.written.add(target.commit(now_ms=self._clock.wall_ms(), on_wait=self._on_wait))
        self._committed_ms = self._clock.monotonic_ms()
        self._on_progress(*self._done())

    def _end_text(self) -> str:
        if self._request.follow:
            return "the live batches"
        return "the newest entry" if self._request.last == Bound() else str(self._request.last)
