"""`recd stream` with a fuse: `python -m tests.storm.worker --config ... --set ...`; orders come on standard input.

An order is a JSON line: at the COUNTth time that the worker comes to POINT, and `delay_ms` later, it sends itself
SIGKILL, or SIGSTOP. Without a delay nothing else of the process runs in between. It ends with its parent. SIGUSR1
makes it log what each of its threads does.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import signal
import sys
import threading
import time
from pathlib import Path

import msgspec

from stream.app import run
from stream.config import load

POINTS_OF_A_TRANSACTION = ("begun", "batch_sent", "journal_sent", "offsets_sent", "committed")
POINTS_OF_A_REBALANCE = ("assigned", "opened", "revoked")


class Order(msgspec.Struct, frozen=True):
    """When and how the process hits itself."""

    point: str
    count: int = 1
    delay_ms: float = 0.0
    stop: bool = False
    """SIGSTOP instead of SIGKILL."""


class Fuse:
    """Hears of every point; `arm` from another thread."""

    def __init__(self) -> None:
        self._order: Order | None = None
        self._left = 0

    def arm(self, order: Order) -> None:
        """Replaces what was armed before."""
        self._left = order.count
        self._order = order

    def reach(self, point: str) -> None:
        """The worker is at this point."""
        order = self._order
        if order is None or order.point != point:
            return
        self._left -= 1
        if self._left:
            return
        self._order = None
        if order.delay_ms:
            threading.Thread(target=_hit, args=(order,), daemon=True).start()
        else:
            _hit(order)


def _hit(order: Order) -> None:
    time.sleep(order.delay_ms / 1000)
    os.kill(os.getpid(), signal.SIGSTOP if order.stop else signal.SIGKILL)


def _obey(fuse: Fuse) -> None:
    for line in sys.stdin:
        fuse.arm(msgspec.json.decode(line, type=Order))
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path)
    parser.add_argument("--set", action="append", default=[])
    arguments = parser.parse_args()
    faulthandler.register(signal.SIGUSR1)
    fuse = Fuse()
    threading.Thread(target=_obey, args=(fuse,), daemon=True).start()
    sys.exit(run(load(arguments.config, overrides=tuple(arguments.set)), crash_point=fuse.reach))


if __name__ == "__main__":
    main()
