"""The data path as a service: a worker in a thread, started again when it ends by an error that may pass."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mode import Service

from stream.config import Config
from stream.context import WorkerContext
from stream.journal import JournalError
from stream.kafka import KafkaError, OptionRefused, wait_for_broker
from stream.recovery import RecoveryError
from stream.status import Mode, WorkerView
from stream.topics import TopicError, check_topics
from stream.worker import StreamWorker

logger = logging.getLogger("stream.data_path")

FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.2, 10.0
CALM_MS = 60_000
"""A worker that ran so long had a good start: the next one may follow quickly."""
STOP_TIMEOUT_S = 30.0
STALLED_MS = 3_000
"""A worker that shows nothing new for so long waits for an answer: nothing else takes that long."""
FATAL = (RecoveryError, TopicError, JournalError, OptionRefused)
"""What no new worker can change."""


class StoppedError(Exception):
    """Told to stop while waiting for the broker."""


class DataPath(Service):
    """Runs workers one after the other until it is stopped or one fails for good; then calls `on_end` in the loop."""

    def __init__(self, config: Config, context: WorkerContext, *, on_end: Callable[[], None], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._config = config
        self._context = context
        self._on_end = on_end
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._worker: StreamWorker | None = None
        self._waiting: WorkerView = WorkerView(str(Mode.STARTING))
        self._thread = threading.Thread(target=self._run, name="data-path", daemon=True)
        self.failure: Exception | None = None
        """Why it ended, if not because it was stopped."""

    @property
    def view(self) -> WorkerView:
        """What the worker shows, or why there is none."""
        worker = self._worker
        if worker is None:
            return self._waiting
        view = worker.view
        silent_ms = self._context.clock.monotonic_ms() - view.at_ms
        if silent_ms < STALLED_MS or view.state == Mode.WAITING_FOR_BROKER:
            return view
        reason = (
            f"the broker at {self._config.kafka.bootstrap} has given no answer for {silent_ms} ms; "
            "start one or set kafka.bootstrap"
        )
        return replace(view, state=str(Mode.WAITING_FOR_BROKER), last_error=reason)

    async def on_start(self) -> None:
        """Called by mode."""
        self._asyncio_loop = asyncio.get_running_loop()
        self._thread.start()

    async def on_stop(self) -> None:
        """Finish the transaction, leave the group."""
        self._ending.set()
        with self._lock:
            if self._worker is not None:
                self._worker.stop()
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join, STOP_TIMEOUT_S)
        if self._thread.is_alive():
            logger.error("the data path does not end", extra={"timeout_s": STOP_TIMEOUT_S})

    def _run(self) -> None:
        try:
            self._supervise()
        except StoppedError:
            pass
        except FATAL as error:
            self._fail(error)
            logger.critical("failed", extra={"reason": str(error), "kind": type(error).__name__})
        except BaseException as error:
            self._fail(RuntimeError(str(error)))
            logger.critical("failed", exc_info=True)
            raise
        finally:
            self._asyncio_loop.call_soon_threadsafe(self._on_end)

    def _supervise(self) -> None:
        backoff_s = FIRST_BACKOFF_S
        while not self._ending.is_set():
            started_ms = self._context.clock.monotonic_ms()
            try:
                self._run_worker()
            except (StoppedError, *FATAL):
                raise
            except Exception as error:
                self._context.counters.restarts += 1
                fields = {"reason": str(error), "kind": type(error).__name__, "backoff_s": backoff_s}
                unforeseen = None if isinstance(error, KafkaError) else error
                logger.warning("the data path starts again", extra=fields, exc_info=unforeseen)
                self._show(Mode.STARTING, str(error))
                if self._context.clock.monotonic_ms() - started_ms > CALM_MS:
                    backoff_s = FIRST_BACKOFF_S
                self._ending.wait(backoff_s)
                backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)

    def _run_worker(self) -> None:
        self._show(Mode.WAITING_FOR_BROKER, "")
        wait_for_broker(self._config.kafka, on_wait=self._on_wait)
        logger.info("the broker answers")
        for warning in check_topics(self._config):
            logger.warning("topics", extra={"reason": warning})
        with self._lock:
            if self._ending.is_set():
                return
            self._worker = StreamWorker(self._config, self._context)
        try:
            self._worker.run()
        finally:
            self._show(Mode.STARTING, self._worker.view.last_error)

    def _on_wait(self, message: str) -> None:
        if self._ending.is_set():
            raise StoppedError
        if message != self._waiting.last_error:
            logger.warning("waiting for the broker", extra={"reason": message})
        self._show(Mode.WAITING_FOR_BROKER, message)

    def _show(self, mode: Mode, last_error: str) -> None:
        self._waiting = WorkerView(str(mode), last_error=last_error)
        self._worker = None

    def _fail(self, error: Exception) -> None:
        self.failure = error
        self._show(Mode.FAILED, str(error))
