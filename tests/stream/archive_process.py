"""`recd archive --what ... --until-end` as a process that kills itself: `python -m ... CONFIG WHAT POINT:N`."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from pathlib import Path
from threading import Event

from recd.archive import ArchiveOptions, make_archiver
from stream.config import load


def main() -> None:
    config, what, crash = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    point, _, count = crash.partition(":")
    seen: Counter[str] = Counter()

    def crash_point(reached: str) -> None:
        seen[reached] += 1
        if reached == point and seen[reached] == int(count):
            os.kill(os.getpid(), signal.SIGKILL)

    options = ArchiveOptions(what=(what,), until_end=True, accept_gap=False)
    make_archiver(load(config), options, what=what, stop=Event(), crash_point=crash_point).run()


if __name__ == "__main__":
    main()
