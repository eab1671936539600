"""How a worker feels: what it was told to do, whether the broker answers, what went wrong last."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from stream.roster import Roster
from stream.status import Mode, WorkerView

logger = logging.getLogger("stream.worker")


@dataclass(slots=True)
class Health:
    """Kept by the worker's thread; `view` makes what others see."""

    mode: Mode = Mode.STARTING
    broker_answers: bool = True
    last_error: str = ""

    def trouble(self, error: Exception) -> None:
        """Something went wrong that passes; said once in the log."""
        if str(error) != self.last_error:
            logger.warning("trouble", extra={"reason": str(error), "kind": type(error).__name__})
        self.last_error = str(error)

    def silent(self, error: Exception) -> None:
        """The broker does not answer."""
        self.broker_answers = False
        self.trouble(error)

    def view(self, roster: Roster, *, member: bool, at_ms: int) -> WorkerView:
        """What `/status` shows."""
        mode = self.mode if self.broker_answers else Mode.WAITING_FOR_BROKER
        return WorkerView.of(mode, roster=roster, last_error=self.last_error, member=member, at_ms=at_ms)
