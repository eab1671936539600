"""Versions go out in a thread of their own, so that a slow or full store never stops training."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from trainer.ranks import Ranks
from trainer.sharding import ShardedModel
from trainer.versions import Snapshot, VersionError, VersionStore

logger = logging.getLogger("trainer.publishing")


def take_snapshot(
    model: ShardedModel, *, ranks: Ranks, config: dict[str, Any], step: int, samples: int, stream_time_ms: int
) -> Snapshot | None:
    """Copy the weights of all ranks at a step boundary to rank 0 (None on the others); a collective."""
    weights_ms = time.time_ns() // 1_000_000
    parts = ranks.gather(model.table_shards())
    if ranks.rank != 0:
        return None
    return Snapshot(
        step=step,
        samples=samples,
        stream_time_ms=stream_time_ms,
        weights_ms=weights_ms,
        dense=model.dense_weights(),
        shards=[shard for part in parts for shard in part],
        config=config,
    )


class Publisher:
    """Writes one snapshot at a time. What could not be written is reported; the next one brings what it had."""

    def __init__(self, store: VersionStore, *, hook: Callable[[str], object] = lambda _: None) -> None:
        self._store = store
        self._hook = hook
        self._thread: threading.Thread | None = None
        self.version = 0
        """The newest one that this process published or found; 0 for none."""
        self.published = 0
        self.owes = False
        """Whether the last snapshot was not written: the next one is due although nothing may have changed."""
        self.failures = 0
        self.last_error = ""
        try:
            self.version = store.newest() or 0
        except VersionError as error:
            self._note(error)

    @property
    def busy(self) -> bool:
        """Whether a snapshot is being written."""
        return self._thread is not None and self._thread.is_alive()

    def offer(self, snapshot: Snapshot) -> None:
        """Write it in the background; waits for the one before."""
        self.wait()
        self._thread = threading.Thread(target=self._publish, args=(snapshot,), name="publisher", daemon=True)
        self._thread.start()

    def wait(self, *, timeout_s: float | None = None) -> bool:
        """Return when nothing is being written; False where that did not come about within `timeout_s`."""
        if self._thread is not None:
            self._thread.join(timeout_s)
        return not self.busy

    def _publish(self, snapshot: Snapshot) -> None:
        self._hook("publishing")
        self.owes = True
        try:
            self.version = self._store.publish(snapshot)
        except VersionError as error:
            self._note(error)
        except Exception as error:
            logger.exception("publishing failed")
            self._note(error)
        else:
            self.published += 1
            self.owes = False
            self.last_error = ""
            self._hook("published")
            logger.info("published", extra={"version": self.version, "step": snapshot.step})

    def _note(self, error: Exception) -> None:
        self.failures += 1
        self.last_error = str(error)
        logger.error("a version was not published", extra={"reason": str(error)})
