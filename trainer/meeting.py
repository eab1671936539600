"""Told to stop while the ranks meet: they wait in C++ then, where no signal handler of Python runs."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
MET = 0
"""No signal has this number."""


@contextmanager
def ends_when_told(write_done: Callable[[], object]) -> Iterator[None]:
    """Inside, one of `STOPS` ends this process at once, in order: `write_done`, then status 0. Main thread only.

    The handlers that stand must be Python's: only those wake the thread that listens here.
    """
    listening, waking = socket.socketpair()
    waking.setblocking(False)

    def listen() -> None:
        while (number := listening.recv(1)[0]) != MET:
            if number in STOPS:
                write_done()
                os._exit(0)

    thread = threading.Thread(target=listen, name="meeting", daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(waking.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        waking.send(bytes([MET]))
        thread.join()
        listening.close()
        waking.close()
