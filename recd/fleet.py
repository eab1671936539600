"""The services of a demo, each its own process as in production, and what they say of themselves."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil

from recd import child

LOG_TAIL_LINES = 12
Status = dict[str, Any]


class ChildDiedError(Exception):
    """A process ended that should not have; says which, how, and where its log is."""

    def __init__(self, name: str, *, status: int, log_path: Path) -> None:
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        super().__init__(f"{name} {how}. Its log, {log_path}, ends with:\n{tail(log_path)}")
        self.name = name


@dataclass(slots=True)
class Service:
    """One running child; `url` is None for one without HTTP."""

    name: str
    process: child.Process
    log_path: Path
    url: str | None
    status: Status = field(default_factory=dict)
    ready: bool = False
    expected_to_end: bool = False

    @property
    def exit_status(self) -> int | None:
        """None while it runs."""
        return self.process.poll()

    def memory_bytes(self) -> int:
        """Resident memory of the process and its children."""
        total = 0
        try:
            root = psutil.Process(self.process.pid)
            for process in (root, *root.children(recursive=True)):
                total += process.memory_info().rss
        except psutil.Error:
            pass
        return total


class Fleet:
    """Starts `recd` subcommands, watches them, stops them in order."""

    def __init__(self, *, config_path: Path, log_dir: Path) -> None:
        self._config_path = config_path
        self._log_dir = log_dir
        self.services: dict[str, Service] = {}

    def start(self, name: str, arguments: Sequence[str], *, port: int | None = None) -> Service:
        """Start `recd ARGUMENTS --config ...` as the child `name`."""
        log_path = self._log_dir / f"{name}.log"
        command = [sys.executable, "-m", "recd", *arguments, "--config", str(self._config_path)]
        process = child.spawn(command, log_path=log_path)
        url = f"http://127.0.0.1:{port}" if port else None
        service = Service(name=name, process=process, log_path=log_path, url=url, expected_to_end=url is None)
        self.services[name] = service
        return service

    def check(self) -> None:
        """Raise ChildDiedError when a service has ended by itself, or a tool has failed."""
        for service in self.services.values():
            status = service.exit_status
            if status is not None and not (service.expected_to_end and status == 0):
                raise ChildDiedError(service.name, status=status, log_path=service.log_path)

    def poll(self) -> None:
        """Refresh every service's status; one that does not answer keeps its last one."""
        threads = [threading.Thread(target=_refresh, args=(s,), daemon=True) for s in self.services.values() if s.url]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=3)

    def wait_ready(self, names: Sequence[str], *, timeout_s: float, tick: Callable[[], None]) -> None:
        """Until these services are ready; `tick` is called between looks."""
        deadline = time.monotonic() + timeout_s
        while True:
            self.check()
            self.poll()
            waiting = [name for name in names if not self.services[name].ready]
            if not waiting:
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"not ready after {timeout_s:.0f} s: {', '.join(waiting)} (logs in {self._log_dir})")
            tick()
            time.sleep(0.2)

    def stop(self, name: str, *, timeout_s: float = 60.0) -> int | None:
        """Orderly end of one service; its exit status, None when there is none of that name."""
        service = self.services.get(name)
        if service is None:
            return None
        service.expected_to_end = True
        return child.stop(service.process, timeout_s=timeout_s)

    def kill_all(self) -> None:
        """SIGKILL to all that still run."""
        for service in self.services.values():
            service.expected_to_end = True
            child.kill(service.process)


def tail(path: Path, *, lines: int = LOG_TAIL_LINES) -> str:
    """The last lines of a log, indented."""
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        return f"  ({error.strerror})"
    return "\n".join(f"  {line[:400]}" for line in text.splitlines()[-lines:])


def fetch(url: str, *, timeout_s: float = 2.0) -> tuple[int, Status]:
    """HTTP status and JSON object of a GET; (0, {}) when nobody answers."""
    try:
        with urlopen(url, timeout=timeout_s) as answer:
            body = json.loads(answer.read() or b"{}")
            return answer.status, body if isinstance(body, dict) else {}
    except (OSError, HTTPException, ValueError):
        return 0, {}


def _refresh(service: Service) -> None:
    code, status = fetch(f"{service.url}/status")
    if code == 200:
        service.status = status
    if not service.ready:
        service.ready = fetch(f"{service.url}/ready")[0] == 200
