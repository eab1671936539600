"""Ctrl-C and SIGTERM, heard once as a wish for an orderly end, twice as an order to end at once."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_INTERRUPTED = 130


class StopRequestedError(Exception):
    """Ctrl-C or SIGTERM: stop in order and report what was done."""


class Signals:
    """SIGINT and SIGTERM. The first stops what runs, in order; the second ends this process, and so its children."""

    def __init__(self) -> None:
        self.received = 0
        self._raising = True

    def handle(self, _number: int, _frame: object) -> None:
        """The handler of both."""
        self.received += 1
        if self.received > 1:
            sys.exit(EXIT_INTERRUPTED)
        if self._raising:
            raise StopRequestedError

    @contextmanager
    def installed(self) -> Iterator[None]:
        """While inside, this object hears the signals."""
        before = {number: signal.signal(number, self.handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def defer(self) -> None:
        """From now on the first is only counted: what follows is the orderly end itself."""
        self._raising = False
