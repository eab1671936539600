"""A stream worker without its host, as a process that tests kill: `python -m tests.stream.worker_process ...`.

Prints one JSON line per second look of its state; `--crash POINT:N` kills the process with SIGKILL when it comes to
POINT for the Nth time.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from stream.config import load
from stream.context import Clock, Command, WorkerContext
from stream.index_store import open_store
from stream.log import configure_logging
from stream.takeover import Overrides
from stream.worker import StreamWorker


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("--worker", default="w")
    parser.add_argument("--crash", default="")
    parser.add_argument("--accept-loss", type=int, action="append", default=[])
    parser.add_argument("--close-all", action="store_true")
    arguments = parser.parse_args()
    configure_logging(arguments.worker)
    config = load(arguments.config)
    point, _, count = arguments.crash.partition(":")
    seen: Counter[str] = Counter()

    def crash(reached: str) -> None:
        seen[reached] += 1
        if reached == point and seen[reached] == int(count or 1):
            os.kill(os.getpid(), signal.SIGKILL)

    context = WorkerContext(
        transactional_id=f"{config.stream.group_id}-{arguments.worker}",
        clock=Clock(lambda: time.time_ns() // 1_000_000, lambda: time.monotonic_ns() // 1_000_000),
        store=open_store(config),
        overrides=Overrides(set(arguments.accept_loss), arguments.close_all),
        crash_point=crash,
    )
    worker = StreamWorker(config, context)
    signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    threading.Thread(target=_report, args=(worker, context), daemon=True).start()
    threading.Thread(target=_obey, args=(context,), daemon=True).start()
    worker.run()


def _report(worker: StreamWorker, context: WorkerContext) -> None:
    while True:
        line = {**asdict(worker.view), "ready": worker.view.ready, "counters": asdict(context.counters)}
        print(json.dumps(line), flush=True)
        time.sleep(0.1)


def _obey(context: WorkerContext) -> None:
    for line in sys.stdin:
        context.commands.put(Command(line.strip()))


if __name__ == "__main__":
    main()
