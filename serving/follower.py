"""Keeps the newest version in service, or the one that was asked for."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from serving.buffers import Buffers
from serving.model import ServedModel
from serving.telemetry import Telemetry
from trainer.versions import VersionError, VersionStore

logger = logging.getLogger("serving")

FIRST_RETRY_S = 0.5
LAST_RETRY_S = 30.0
TOLD_POLL_S = 1.0
"""How often one who is told of versions looks by himself: the broker may be away."""


@dataclass(slots=True)
class _Refusal:
    """A version that could not be loaded, and when it is worth another try."""

    reason: str
    pause_s: float
    due_s: float


class Follower(threading.Thread):
    """Looks for the wanted version every `poll_ms`, loads it, and puts it into service by one assignment.

    A version that cannot be loaded is refused: logged, counted once, and tried again ever more rarely as long as it is
    the wanted one; what is in service stays. A server that has nothing in service goes back to the newest version that
    it can load. `clock_ms` is the wall clock.
    """

    def __init__(self, store: VersionStore, *, poll_ms: int, telemetry: Telemetry, clock_ms: Callable[[], int]) -> None:
        super().__init__(name="follower", daemon=True)
        self.model: ServedModel | None = None
        """In service; replaced as a whole, so a request that took it keeps it to its end."""
        self.pinned: int | None = None
        """The version to stay at; None follows the newest."""
        self._store = store
        self._buffers = Buffers(store)
        self._poll_s = poll_ms / 1000
        self.is_told = False
        """Whether someone calls `told` for every version; otherwise the store is asked every `poll_ms`."""
        self._telemetry = telemetry
        self._clock_ms = clock_ms
        self._refused: dict[int, _Refusal] = {}
        self._store_error = ""
        self._caught_up = False
        self._changing = threading.Lock()
        self._ended = threading.Event()
        self._look = threading.Event()

    def go_to(self, version: int | None) -> None:
        """Take `version` now and stay there, or follow the newest again (None).

        Blocks while the version is loaded. VersionError where it cannot be: then everything stays as it was.
        """
        with self._changing:
            before, self.pinned = self.pinned, version
            self._refused.clear()
            self._step()
            if version is not None and (self.model is None or self.model.version != version):
                self.pinned = before
                refusal = self._refused.get(version)
                raise VersionError(refusal.reason if refusal else f"version {version}: {self._store_error}")
        logger.info("reload", extra={"version": version or "newest"})

    def look(self) -> None:
        """There may be a newer version: look for it at once."""
        self._look.set()

    def told(self) -> None:
        """Somebody announces versions: look for this one at once, and by itself less often."""
        self.is_told = True
        self._look.set()

    def stop(self) -> None:
        """End the thread and wait for it; the model stays usable."""
        self._ended.set()
        self._look.set()
        if self.is_alive():
            self.join()

    def run(self) -> None:
        """Until `stop`."""
        while not self._ended.is_set():
            try:
                with self._changing:
                    self._step(measured=self._caught_up)
            except Exception:
                # What nobody foresaw must not end the thread: the server would grow stale without a word.
                self._telemetry.store_errors.inc()
                logger.exception("version not taken")
                self._ended.wait(FIRST_RETRY_S)
            self._look.wait(max(self._poll_s, TOLD_POLL_S) if self.is_told else self._poll_s)
            self._look.clear()

    def _step(self, *, measured: bool = False) -> None:
        """One look: at most one version is put into service. `measured`: its arrival tells how fresh the server is."""
        try:
            for version in self._wanted():
                in_service = self.model is not None and self.model.version == version
                if in_service or (self._is_due(version) and self._take(version, measured=measured)):
                    break
            self._store_error = ""
        except VersionError as error:
            self._note_store_error(str(error))

    def _note_store_error(self, reason: str) -> None:
        if reason != self._store_error:
            self._telemetry.store_errors.inc()
            logger.error("newest version unknown", extra={"reason": reason, "in_service": self._number})
        self._store_error = reason

    def _wanted(self) -> Iterator[int]:
        """The version to go to, then those to make do with while nothing is in service."""
        wanted = self._store.newest() if self.pinned is None else self.pinned
        self._caught_up = self._caught_up or wanted is None or self.model is not None
        if wanted is None:
            return
        yield wanted
        if self.model is None and self.pinned is None:
            yield from (version for version in reversed(self._store.versions()) if version < wanted)

    def _is_due(self, version: int) -> bool:
        refusal = self._refused.get(version)
        return refusal is None or time.monotonic() >= refusal.due_s

    def _take(self, version: int, *, measured: bool) -> bool:
        begin = time.monotonic()
        try:
            model = self._buffers.take(version)
        except VersionError as error:
            self._refuse(version, reason=str(error))
            return False
        except Exception as error:  # noqa: BLE001 - a model that cannot be built is a version that cannot be served
            self._refuse(version, reason=f"version {version}: {type(error).__name__}: {error}")
            return False
        self.model = model
        self._refused.clear()
        elapsed_ms = self._clock_ms() - model.manifest.weights_ms
        self._telemetry.version_loaded(version, weights_to_server_ms=elapsed_ms if measured else None)
        load_ms = round(1000 * (time.monotonic() - begin), 1)
        kind, copies = model.manifest.kind, self._buffers.copies
        fields = {"version": version, "kind": kind, "load_ms": load_ms, "age_ms": elapsed_ms, "copies": copies}
        logger.info("version in service", extra=fields)
        return True

    def _refuse(self, version: int, *, reason: str) -> None:
        former = self._refused.get(version)
        pause_s = FIRST_RETRY_S if former is None else min(2 * former.pause_s, LAST_RETRY_S)
        self._refused[version] = _Refusal(reason, pause_s, time.monotonic() + pause_s)
        if former is None:
            self._telemetry.version_rejected()
            fields = {"version": version, "reason": reason, "in_service": self._number}
            logger.error("version refused", extra=fields)

    @property
    def _number(self) -> int | None:
        return self.model.version if self.model else None
