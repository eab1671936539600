"""Where a demo's state is shown: a live view on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psutil
from rich.console import Console
from rich.live import Live

from recd import view
from recd.fleet import Service
from recd.server import EmbeddedServer
from recd.view import ServiceLine, View

LINE_EVERY_S = 5.0


class Screen:
    """Shows one View after another."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live: Live | None = None
        self._line_s = float("-inf")

    @contextmanager
    def live(self) -> Iterator[None]:
        """While inside, `show` redraws in place on a terminal; the last picture is wiped at the end."""
        if not self.console.is_terminal:
            yield
            return
        with Live(console=self.console, auto_refresh=False, transient=True) as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None

    def show(self, shown: View) -> None:
        """Draw it now, or print its line when the last one is old enough."""
        if self._live is not None:
            self._live.update(view.render(shown), refresh=True)
        elif (now := time.monotonic()) - self._line_s >= LINE_EVERY_S:
            self._line_s = now
            self.console.print(view.one_line(shown), highlight=False, markup=False, soft_wrap=True)


def service_lines(servers: Sequence[EmbeddedServer], services: Sequence[Service]) -> list[ServiceLine]:
    """The table of processes: state, memory and address of each."""
    return [_server_line(server) for server in servers] + [_service_line(service) for service in services]


def _server_line(server: EmbeddedServer) -> ServiceLine:
    try:
        memory = psutil.Process(server.pid).memory_info().rss
    except psutil.Error:
        memory = 0
    state = "running" if server.alive else "failed"
    return ServiceLine(server.name.lower(), state, server.pid, memory, f"127.0.0.1:{server.port}")


def _service_line(service: Service) -> ServiceLine:
    if service.exit_status is not None:
        return ServiceLine(service.name, "ended", None, 0, service.url or "")
    state = str(service.status.get("state", "starting" if service.url else "running"))
    return ServiceLine(service.name, state, service.process.pid, service.memory_bytes(), service.url or "")
