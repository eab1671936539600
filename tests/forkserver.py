"""Programs started warm: forked from a process that has the heavy imports (torch: six seconds) behind it.

Where the start itself is what a test is about, the test starts `python -m recd ...` instead.
"""

from __future__ import annotations

import functools
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

ROOT = Path(__file__).parent.parent
TRAINING = ("trainer.app", "serving.app", "recd.cli")
STREAMING = ("tests.stream.worker_process", "stream.compiled.sample")
POLL_S = 0.01


class WarmProcess:
    """A program in a session of its own, with the part of `subprocess.Popen` that tests use.

    `program` is a script's path, or `-m` and a module, with its arguments; `preload` are the modules that it finds
    imported. It dies with this process, but what it started itself may not. With `pipes`, its standard input and output
    are `stdin` and `stdout` here, else nothing and `log`, where standard error goes.
    """

    def __init__(
        self, program: Sequence[str], *, preload: tuple[str, ...], log: IO[bytes], pipes: bool = False
    ) -> None:
        self.returncode: int | None = None
        self.stdin: IO[bytes] | None = None
        self.stdout: IO[bytes] | None = None
        self._server = socket.socket(socket.AF_UNIX)
        self._server.connect(_address(preload, os.getpid()))
        its_in, its_out = os.open(os.devnull, os.O_RDONLY), os.dup(log.fileno())
        if pipes:
            os.close(its_in)
            os.close(its_out)
            its_in, stdin = os.pipe()
            stdout, its_out = os.pipe()
            self.stdin, self.stdout = os.fdopen(stdin, "wb"), os.fdopen(stdout, "rb")
        order = json.dumps({"program": list(program), "env": dict(os.environ)}).encode()
        socket.send_fds(self._server, [len(order).to_bytes(4)], [its_in, its_out, log.fileno()])
        self._server.sendall(order)
        os.close(its_in)
        os.close(its_out)
        self.pid = int.from_bytes(_receive(self._server, 4))

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._look(timeout_s=0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit status; subprocess.TimeoutExpired when it does not end within `timeout` seconds."""
        status = self._look(timeout_s=timeout)
        if status is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _look(self, *, timeout_s: float | None) -> int | None:
        if self.returncode is None:
            self._server.settimeout(timeout_s)
            try:
                self.returncode = int.from_bytes(_receive(self._server, 4), signed=True)
            except (BlockingIOError, TimeoutError):
                return None
            self._server.close()
        return self.returncode


def _receive(connection: socket.socket, count: int) -> bytes:
    """So many bytes, which the other side sends in one piece."""
    data = connection.recv(count)
    if len(data) != count:
        raise ConnectionError("the fork server has gone: its standard error says why")
    return data


@functools.cache
def _address(preload: tuple[str, ...], _pid: int) -> str:
    """Where the fork server of these modules listens; starts it at the first call."""
    folder = tempfile.TemporaryDirectory(prefix="recd-fork-")
    path = f"{folder.name}/socket"
    command = [sys.executable, "-m", "tests.forkserver", path, *preload]
    server = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE)  # its end says that this process has gone
    _ALIVE.append((folder, server))
    while not Path(path).exists():
        if server.poll() is not None:
            raise ConnectionError(f"the fork server ended with status {server.returncode}")
        time.sleep(POLL_S)
    return path


_ALIVE: list[tuple[tempfile.TemporaryDirectory[str], subprocess.Popen[bytes]]] = []


@dataclass(frozen=True, slots=True)
class Order:
    """What the forked process is to become."""

    program: list[str]
    env: dict[str, str]
    files: list[int]


class ForkServer:
    """Forks on request; tells each client its child's process id and, at the end, its exit status."""

    def __init__(self, path: str) -> None:
        self._children: dict[int, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._woken, waking = socket.socketpair()
        for end in (self._woken, waking):
            end.setblocking(False)
        self._waking = waking
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(waking.fileno(), warn_on_full_buffer=False)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"{path}.new")
        self._listener.listen(64)
        Path(f"{path}.new").rename(path)
        for source in (self._woken, self._listener, sys.stdin):
            self._selector.register(source, selectors.EVENT_READ)

    def serve(self) -> Order:
        """Returns only in a child. Ends, and all its children, when the client's process ends."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is sys.stdin:
                    self._end()
                elif key.fileobj is self._woken:
                    self._woken.recv(4096)
                    self._reap()
                elif (order := self._fork()) is not None:
                    return order

    def _fork(self) -> Order | None:
        client, _ = self._listener.accept()
        head, files, _, _ = socket.recv_fds(client, 4, 3)
        order = Order(files=files, **json.loads(client.recv(int.from_bytes(head), socket.MSG_WAITALL)))
        pid = os.fork()
        if pid == 0:
            self._forget()
            os.setsid()
            client.sendall(os.getpid().to_bytes(4))
            client.close()
            return order
        for file in files:
            os.close(file)
        self._children[pid] = client
        return None

    def _forget(self) -> None:
        """In the child: nothing of the server is left."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._selector.close()
        for own in (self._listener, self._woken, self._waking, *self._children.values()):
            own.close()

    def _reap(self) -> None:
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            client = self._children.pop(pid)
            try:
                client.sendall(os.waitstatus_to_exitcode(status).to_bytes(4, signed=True))
            except OSError:  # nobody wants to know
                continue
            finally:
                client.close()

    def _end(self) -> NoReturn:
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
        os._exit(0)


def become(order: Order) -> None:
    """Run the program as `python PROGRAM...` would."""
    for number, file in enumerate(order.files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(order.env)
    if order.program[0] == "-m":
        sys.argv = order.program[1:]
        runpy.run_module(order.program[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = order.program
        runpy.run_path(order.program[0], run_name="__main__")


if __name__ == "__main__":
    import gc
    import importlib

    for module in sys.argv[2:]:
        importlib.import_module(module)
    gc.freeze()
    become(ForkServer(sys.argv[1]).serve())
