"""Child processes that never outlive their parent, and that Ctrl-C does not reach before the parent does."""

import functools
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

LEASH = Path(__file__).with_name("leash.py")

Process = subprocess.Popen[bytes]
Job = tuple[Future[Process], Callable[[], Process]]


def spawn(
    command: Sequence[str], *, log_path: Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Process:
    """Start `command` in a session of its own, its output appended to `log_path`.

    The child is killed by the kernel when this process ends, however it ends (Linux). A program that cannot be
    executed shows as an exit with status 1 and the reason in the log.
    """

    def start() -> Process:
        leashed = [sys.executable, "-I", "-S", str(LEASH), str(os.getpid()), *command]
        with log_path.open("ab") as log:
            return Process(
                leashed, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, cwd=cwd, start_new_session=True
            )

    started: Future[Process] = Future()
    _spawner(os.getpid()).put((started, start))
    return started.result()


def stop(process: Process, *, timeout_s: float) -> int:
    """Ask with SIGTERM, after `timeout_s` insist with SIGKILL; returns the exit status."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout_s)
    return kill(process)


def kill(process: Process) -> int:
    """SIGKILL to the child and to all that it started in its group; returns the exit status."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


@functools.cache
def _spawner(_pid: int) -> queue.SimpleQueue[Job]:
    """The one thread that forks: the kernel ties a child to the thread that made it, not to the process."""
    jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
    threading.Thread(target=_serve, args=(jobs,), name="spawner", daemon=True).start()
    return jobs


def _serve(jobs: queue.SimpleQueue[Job]) -> None:
    while True:
        started, start = jobs.get()
        try:
            started.set_result(start())
        except Exception as error:  # noqa: BLE001 - the caller of `spawn` raises it
            started.set_exception(error)
