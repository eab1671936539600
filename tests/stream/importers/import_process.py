"""An import that kills itself: `python -m tests.stream.importers.import_process CONFIG FORMAT FILE POINT:N ...`.

Transactions are small. At the Nth POINT (sent: a record was handed over; committed: a transaction is) the process
gets SIGKILL; without a point it runs to its end.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from stream.config import load
from stream.importers import import_files, run
from stream.kafka import TransactionalWriter


def main() -> None:
    config_path, format_name, file, *crash = sys.argv[1:]
    point, _, count = "".join(crash).partition(":")
    seen: Counter[str] = Counter()

    class Mortal(TransactionalWriter):
        def send(self, *args: Any, **kwargs: Any) -> None:
            super().send(*args, **kwargs)
            self._reached("sent")

        def commit(self, *args: Any, **kwargs: Any) -> None:
            super().commit(*args, **kwargs)
            self._reached("committed")

        def _reached(self, name: str) -> None:
            seen[name] += 1
            if name == point and seen[name] == int(count):
                os.kill(os.getpid(), signal.SIGKILL)

    run.TransactionalWriter = Mortal  # type: ignore[misc]
    run.COMMIT_EVENTS = 40
    report = import_files(load(Path(config_path)), [Path(file)], format=format_name)
    print(report.files[0].resumed_rows)


if __name__ == "__main__":
    main()
