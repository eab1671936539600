"""A rank of the trainer, as torchrun starts it: `python -m trainer --config recd.yaml`."""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
from pathlib import Path

from stream.config import ConfigError, load
from trainer.run_folder import RunFolder

PR_SET_PDEATHSIG = 1
EXIT_USAGE = 2


def die_with_parent() -> None:
    """Linux: be killed when the process that started this one ends, however it ends."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    launcher = os.environ.get("RECD_LAUNCHER_PID")
    if launcher is not None and os.getppid() != int(launcher):  # it died before the line above
        sys.exit(1)


def end_in_order_until_training() -> None:
    """SIGTERM and SIGINT while the libraries load: there is nothing to keep yet. `trainer.app` takes over."""

    def end(*_: object) -> None:
        RunFolder.from_environment().write_done()
        os._exit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def main() -> int:
    """Parse, load, run."""
    parser = argparse.ArgumentParser(prog="python -m trainer", description="One rank of the trainer.")
    parser.add_argument("--config", "-c", type=Path)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="A.B=C")
    arguments = parser.parse_args()
    try:
        config = load(arguments.config, overrides=tuple(arguments.overrides))
    except ConfigError as error:
        sys.stderr.write(f"trainer: {error}\n")
        return EXIT_USAGE
    from trainer.app import run

    return run(config)


if __name__ == "__main__":
    die_with_parent()
    end_in_order_until_training()
    sys.exit(main())
