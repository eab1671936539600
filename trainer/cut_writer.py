"""Cuts are written in a thread of their own, so that training stands still only while the state is copied."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from trainer.cut import CutStore
from trainer.cut_files import CutError, CutRecord
from trainer.staging import Staging, Tensors

logger = logging.getLogger("trainer.cut_writer")


@dataclass(frozen=True)
class Written:
    """How writing one cut ended; `error` is None where it is in force."""

    name: str
    step: int
    stalled_s: float
    """How long training stood still: the copy, and the wait for the cut before, where there was one."""
    written_s: float
    error: CutError | None


class CutWriter:
    """Writes one cut at a time. All ranks make the same calls in the same order, each with its own part."""

    def __init__(self, store: CutStore, *, staging: Staging) -> None:
        """`store` agrees through a process group of its own: its collectives run beside those of the steps."""
        self._store = store
        self._staging = staging
        self._thread: threading.Thread | None = None
        self._done: list[Written] = []
        self.owes = False
        """Whether the last one was not written, or not yet."""

    @property
    def busy(self) -> bool:
        """Whether a cut is being written."""
        return self._thread is not None and self._thread.is_alive()

    def begin(
        self,
        tensors: Tensors,
        *,
        record: CutRecord,
        arrays: Mapping[str, np.ndarray],
        before: Callable[[], object],
        started_s: float,
    ) -> None:
        """Copy the state, then write it in the background; waits for the cut before, whose buffers are reused.

        `before`: see CutStore.write, it is called in the background; `started_s`: since when training stands still.
        """
        self.wait()
        copies = self._staging.copy(tensors)
        stalled_s = time.monotonic() - started_s

        def write() -> None:
            began_s, name, error = time.monotonic(), "", None
            try:
                name = self._store.write(copies, record=record, arrays=arrays, before=before)
                self.owes = False
            except CutError as failure:
                error = failure
            except Exception as failure:
                logger.exception("writing a cut failed")
                error = CutError(f"{self._store.root}: the cut could not be written: {failure}")
            self._done.append(Written(name, record.step, stalled_s, time.monotonic() - began_s, error))

        self.owes = True
        self._thread = threading.Thread(target=write, name="cut", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return when nothing is being written."""
        if self._thread is not None:
            self._thread.join()

    def ended(self) -> list[Written]:
        """Those that ended since the last call, in their order."""
        done, self._done = self._done, []
        return done
