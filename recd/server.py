"""What an embedded server is: a child process with a port, a folder and a log."""

import random
import socket
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Self

import psutil

from recd import child

HOST = "127.0.0.1"
LOG_TAIL_LINES = 15
POLL_S = 0.03
MIB = 1 << 20

PORT_REMEDY = "choose another or stop the process that has it"

# What a server writes before it dies, and what can be done about it.
REMEDIES = {
    "Address already in use": PORT_REMEDY,
    "No space left on device": "the disk is full: free some space",
    "insufficient memory": "too little memory: stop something or give the server less",
    "Cannot allocate memory": "too little memory: stop something or give the server less",
    "was killed at start": "too little memory, most likely: stop something or give the server less",
    "OutOfMemoryError": "its heap is too small: give it more",
}


class EmbeddedError(Exception):
    """An embedded server cannot do what was asked; the message says why and what to do."""


class PortTakenError(EmbeddedError):
    """The port was free when it was chosen and is not any more."""


class EmbeddedServer(ABC):
    """A server on the loopback interface with its data in one folder.

    `start` returns when the server answers, on a port that stays the same over stop, kill and restart. The data stay in
    `data_dir`. The server runs in a session of its own and dies with this process, whatever ends it.
    """

    name: ClassVar[str]
    attempts: ClassVar[int] = 3
    start_timeout_s: ClassVar[float] = 120.0
    min_free_disk_bytes: ClassVar[int] = 256 * MIB

    def __init__(self, data_dir: Path, *, port: int | None = None) -> None:
        self.data_dir = data_dir.absolute()
        self._port = port
        self._process: child.Process | None = None
        self._log_start = 0

    @property
    def port(self) -> int:
        """The port; known once `start` was called."""
        if self._port is None:
            raise EmbeddedError(f"{self.name} has no port before its first start")
        return self._port

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        if self._process is None:
            raise EmbeddedError(f"{self.name} is not running")
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the server runs; False without a stop or kill before means that it died by itself."""
        return self._process is not None and self._process.poll() is None

    @property
    def log_path(self) -> Path:
        return self.data_dir / f"{self.name.lower()}.log"

    @property
    def exit_status(self) -> int | None:
        """Of the last process; None while it runs, negative for a signal."""
        return self._process.poll() if self._process is not None else 0

    def start(self) -> Self:
        """Start, or start again; EmbeddedError with the reason and the remedy when the server does not come up."""
        if self.alive:
            return self
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self._check_resources()
        announced = self._port
        for attempts_left in reversed(range(self.attempts)):
            self._port = announced or free_port()
            try:
                self._check_port(self._port)
                self._start_once()
                break
            except EmbeddedError as error:
                self._port = announced
                if attempts_left == 0 or not isinstance(error, PortTakenError):
                    raise
                time.sleep(0.2)
        return self

    def stop(self, *, timeout_s: float = 30.0) -> None:
        """Orderly end: SIGTERM, and SIGKILL after `timeout_s`."""
        if self._process is not None:
            child.stop(self._process, timeout_s=timeout_s)
            self._process = None

    def kill(self) -> None:
        """The end that a crash makes: SIGKILL, at once."""
        if self._process is not None:
            child.kill(self._process)
            self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_error: object) -> None:
        self.stop()

    @abstractmethod
    def _command(self) -> list[str]:
        """What to run; called before every start."""

    @abstractmethod
    def _answers(self) -> bool:
        """Whether this very server, not another on the same port, takes requests."""

    def _check_resources(self) -> None:
        free = psutil.disk_usage(str(self.data_dir)).free
        if free < self.min_free_disk_bytes:
            raise EmbeddedError(
                f"{self.name} needs {self.min_free_disk_bytes // MIB} MiB of disk in {self.data_dir}, "
                f"{free // MIB} MiB are free: free some or choose another folder"
            )

    def _check_port(self, port: int) -> None:
        with socket.socket() as probe:
            # As the servers do: what lingers of a closed connection does not hold a port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError as error:
                message = f"{self.name} cannot have port {port} ({error.strerror}): {PORT_REMEDY}"
                raise PortTakenError(message) from error

    def _start_once(self) -> None:
        command = self._command()
        self._mark_log()
        self._process = child.spawn(command, log_path=self.log_path, cwd=self.data_dir)
        deadline = time.monotonic() + self.start_timeout_s
        try:
            while not self._answers():
                if (status := self._process.poll()) is not None:
                    raise self._died("was killed at start" if status == -9 else f"died at start with status {status}")
                if time.monotonic() > deadline:
                    raise self._died(f"did not answer within {self.start_timeout_s:.0f} s")
                time.sleep(POLL_S)
        except BaseException:
            self.kill()
            raise

    def _mark_log(self) -> None:
        self._log_start = self.log_path.stat().st_size if self.log_path.exists() else 0

    def _log_since_start(self) -> str:
        with suppress(FileNotFoundError), self.log_path.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")
        return ""

    def _died(self, what: str) -> EmbeddedError:
        log = self._log_since_start()
        remedies = (remedy for sign, remedy in REMEDIES.items() if sign in what or sign in log)
        remedy = next(remedies, "its log has the reason")
        tail = "\n".join(log.splitlines()[-LOG_TAIL_LINES:])
        kind = PortTakenError if "Address already in use" in log else EmbeddedError
        return kind(f"{self.name} on port {self._port} {what}: {remedy}. {self.log_path} ends with:\n{tail}")


def free_port() -> int:
    """A free port of the loopback interface, outside the range that the kernel hands to clients.

    A client that keeps dialling a stopped server on a port of that range sooner or later connects to itself and so
    takes the port.
    """
    low, high = 32768, 60999
    with suppress(OSError, ValueError):
        low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    candidates = [port for port in range(10_000, 65_536) if not low <= port <= high] or list(range(10_000, 65_536))
    for port in random.SystemRandom().sample(candidates, min(100, len(candidates))):
        with suppress(OSError), socket.socket() as probe:
            probe.bind((HOST, port))
            return port
    raise EmbeddedError("no free port among a hundred tried: stop something that listens")
