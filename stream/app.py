"""`recd stream`: an always-on Faust application around the data path.

Faust supervises, serves `/health`, `/ready`, `/status` and `/metrics` on one port and hears the control topic. The data
path runs in a thread of its own and needs nothing of Faust: where the control plane fails, records go on flowing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import faust
from faust.app.base import BootStrategy
from faust.web import Request, Response, View
from mode import ServiceT

from stream.config import Config
from stream.context import Clock, WorkerContext, no_crash
from stream.control_plane import ControlPlane
from stream.data_path import DataPath
from stream.index_store import open_store
from stream.log import configure_logging
from stream.metrics import WorkerMetrics
from stream.status import Troubles, status
from stream.stuck import StuckWatch
from stream.takeover import Overrides
from stream.transaction import CrashPoint
from stream.web import Pages

logger = logging.getLogger("stream.app")

EXIT_OK, EXIT_FAILED = 0, 1
RATES_EVERY_S = 1.0
END_PATIENCE_S = 10.0
"""How long the control plane may take to end once the data path has."""
PATHS = ("/health", "/ready", "/status", "/metrics")


class HostBoot(BootStrategy):
    """The host application has a web server and services, but no Kafka client: it lives without a broker."""

    enable_kafka = False


def run(
    config: Config,
    *,
    accept_loss: tuple[int, ...] = (),
    close_all: bool = False,
    on_listening: Callable[[int], object] = lambda _: None,
    crash_point: CrashPoint = no_crash,
) -> int:
    """Run until SIGTERM or SIGINT (exit status 0) or an error that only an operator can end (status 1).

    The last thing that a process does: soon after it returns the process ends, whatever its threads do.

    `accept_loss` names partitions that may go on although something of them is lost; `close_all` closes every open
    session under the parameters of the former run. `on_listening` hears the HTTP port; `crash_point`, for tests, every
    point at which a crash is interesting.
    """
    configure_logging("stream")
    if reason := _unusable(Path(config.stream.data_dir)):
        logger.critical("failed", extra={"reason": reason})
        return EXIT_FAILED
    os.environ["FAUST_DATADIR"] = str(Path(config.stream.data_dir).absolute())
    overrides = Overrides(set(accept_loss), close_all)
    return asyncio.run(Host(config, overrides=overrides, on_listening=on_listening, crash_point=crash_point).run())


class Host:
    """One process: the Faust application, the data path and the control plane."""

    def __init__(
        self,
        config: Config,
        *,
        overrides: Overrides,
        on_listening: Callable[[int], object],
        crash_point: CrashPoint = no_crash,
    ) -> None:
        self._config = config
        self._on_listening = on_listening
        name = config.stream.worker_id or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._name = name
        self._context = WorkerContext(
            transactional_id=f"{config.stream.group_id}-{name}",
            clock=Clock(lambda: time.time_ns() // 1_000_000, lambda: time.monotonic_ns() // 1_000_000),
            store=open_store(config),
            overrides=overrides,
            crash_point=crash_point,
        )
        self._rates: dict[str, float] = {}
        self._stopping = asyncio.Event()

    async def run(self) -> int:
        """Start everything, wait for the end, stop everything; returns the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        port = self._config.stream.port or _free_port(self._config.stream.host)
        app = self._app(port)
        self._data_path = DataPath(self._config, self._context, on_end=self._end, beacon=app.beacon)
        self._control = ControlPlane(self._config, name=self._name, commands=self._context.commands, beacon=app.beacon)
        self._stuck = StuckWatch(self._config, beacon=app.beacon)
        for service in (self._data_path, self._control, self._stuck):
            app.service(cast("type[ServiceT]", service))  # Faust takes instances too
        app.timer(interval=RATES_EVERY_S)(self._measure_rates())
        try:
            await app.start()
        except OSError as error:
            message = f"cannot listen on {self._config.stream.host}:{port}: {error.strerror}; set stream.port"
            logger.critical("failed", extra={"reason": message})
            return EXIT_FAILED
        logger.info("listening", extra={"host": self._config.stream.host, "port": port, "worker": self._name})
        self._on_listening(port)
        await self._stopping.wait()
        # First what others wait for: the control plane may take its time while the broker is in trouble.
        await self._data_path.stop()
        status = EXIT_FAILED if self._data_path.failure else EXIT_OK
        _end_within(END_PATIENCE_S, status)
        await app.stop()
        return status

    def _app(self, port: int) -> faust.App:
        app = faust.App(
            f"recd-host-{self._name}",
            broker=f"kafka://{self._config.kafka.bootstrap}",
            datadir=self._config.stream.data_dir,
            store="memory://",
            web_host=self._config.stream.host,
            web_bind=self._config.stream.host,
            web_port=port,
            autodiscover=False,
        )
        app.boot_strategy = HostBoot(app)
        metrics = WorkerMetrics(self._status, ages=self._context.ages)
        pages = Pages(self._status, self._ready, metrics.render)
        for path in PATHS:
            app.page(path)(_page(pages, path))
        return app

    def _status(self) -> dict[str, Any]:
        view, counters = self._data_path.view, self._context.counters
        troubles = Troubles(
            hanging=self._stuck.messages, not_looked=self._stuck.refusal, not_heard=self._control.refusal
        )
        return status(view, worker=self._name, counters=counters, rates=self._rates, troubles=troubles)

    def _ready(self) -> bool:
        return self._control.ready and self._data_path.view.ready

    def _end(self) -> None:
        """The data path ended for good."""
        self._stopping.set()

    def _measure_rates(self) -> Callable[[], Any]:
        shown = ("events", "samples", "batches", "batch_bytes")
        last = (time.monotonic(), dict.fromkeys(shown, 0))

        async def measure() -> None:
            nonlocal last
            now = (time.monotonic(), {name: getattr(self._context.counters, name) for name in shown})
            elapsed = max(now[0] - last[0], 1e-3)
            self._rates = {name: round((now[1][name] - last[1][name]) / elapsed, 1) for name in shown}
            last = now

        return measure


def _end_within(seconds: float, status: int) -> None:
    """Everything is committed: a client's thread that waits for a broker must not keep the process alive."""

    def end() -> None:
        threads = ", ".join(thread.name for thread in threading.enumerate() if not thread.daemon)
        logger.warning("ended although threads were left", extra={"threads": threads})
        os._exit(status)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def _page(pages: Pages, path: str) -> Callable[[View, Request], Awaitable[Response]]:
    async def page(view: View, _request: Request) -> Response:
        answer = pages.answer(path)
        content_type = answer.content_type.split(";", 1)[0]
        return view.bytes(answer.body, content_type=content_type, status=answer.status)

    page.__name__ = f"page_{path.strip('/')}"
    return page


def _unusable(folder: Path) -> str:
    """Make the folder; returns why it cannot be used, nothing when it can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"stream.data_dir: cannot make the folder {folder}: {error.strerror}; set it to one that can be written"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"stream.data_dir: the folder {folder} cannot be written; set it to one that can"
    return ""


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
