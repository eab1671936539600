"""Versions go out in a thread of their own, so that a slow or full store never stops training."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from trainer.announcements import Announcer
from trainer.ranks import Ranks
from trainer.sharding import ShardedModel
from trainer.touched import Rows
from trainer.versions import Manifest, Snapshot, VersionError, VersionStore

logger = logging.getLogger("trainer.publishing")


@dataclass(frozen=True)
class Moment:
    """What a snapshot stands for."""

    step: int
    samples: int
    stream_time_ms: int
    config: dict[str, Any]
    lineage: str
    base: int
    """The version that a delta builds on; 0 for a full snapshot."""


def take_snapshot(model: ShardedModel, *, ranks: Ranks, moment: Moment, rows: Rows | None = None) -> Snapshot | None:
    """Copy the weights of all ranks at a step boundary to rank 0 (None on the others); a collective.

    `rows` by table leaves out all others: a delta.
    """
    weights_ms = time.time_ns() // 1_000_000
    parts = ranks.collect(model.table_shards(rows))
    if ranks.rank != 0:
        return None
    return Snapshot(
        step=moment.step,
        samples=moment.samples,
        stream_time_ms=moment.stream_time_ms,
        weights_ms=weights_ms,
        dense=model.dense_weights(),
        shards=[shard for part in parts for shard in part],
        config=moment.config,
        lineage=moment.lineage,
        base=0 if rows is None else moment.base,
    )


class Plan(NamedTuple):
    """What the next version is to be."""

    base: int
    """The version that a delta would build on; 0 where it has to be full."""
    full_form: bool
    """Write the delta's version once more as a full one, so that chains stay short."""
    lost: bool
    """The last snapshot reached no version: what it had is due again."""


@dataclass
class PublisherCounts:
    """What was published since the start."""

    versions_published: int = 0
    publish_failures: int = 0
    deltas_published: int = 0
    full_written: int = 0
    delta_bytes: int = 0
    full_bytes: int = 0
    delta_rows: int = 0


class Publisher:
    """Writes one snapshot at a time. What could not be written is reported; the next one brings what it had."""

    def __init__(
        self,
        store: VersionStore,
        *,
        full_share: float = 0.5,
        max_deltas: int = 100,
        announcer: Announcer | None = None,
        hook: Callable[[str], object] = lambda _: None,
    ) -> None:
        """A full version is due when deltas since the last one weigh `full_share` of it, or are `max_deltas`."""
        self._store = store
        self._full_share = full_share
        self._max_deltas = max_deltas
        self._announcer = announcer
        self._hook = hook
        self._thread: threading.Thread | None = None
        self._full_thread: threading.Thread | None = None
        self._sizes: list[tuple[int, int]] = []
        """Version and bytes of each delta since the last full version."""
        self._full_size = 0
        self._chained = False
        """Whether the newest version has this run's weights before it: a delta may follow."""
        self.lineage = secrets.token_hex(8)
        self.version = 0
        """The newest one that this process published or found; 0 for none."""
        self.counts = PublisherCounts()
        self.delta_share = 0.0
        """Bytes of the newest delta in those of the newest full version."""
        self.owes = False
        """Whether the last snapshot was not written: the next one is due although nothing may have changed."""
        self.last_error = ""
        try:
            self.version = store.newest() or 0
        except VersionError as error:
            self._note(error)

    @property
    def busy(self) -> bool:
        """Whether a snapshot is being written."""
        return self._thread is not None and self._thread.is_alive()

    def plan(self) -> Plan:
        """What the next version is to be; waits for the one that is being written."""
        self.wait()
        writing = self._full_thread is not None and self._full_thread.is_alive()
        weight = sum(size for _, size in self._sizes)
        heavy = weight > self._full_share * self._full_size or len(self._sizes) >= self._max_deltas
        return Plan(self.version if self._chained else 0, self._chained and heavy and not writing, self.owes)

    def begin_lineage(self) -> None:
        """Weights have come from elsewhere: the next version is full, and builds on nothing before it."""
        self.wait()
        self.lineage = secrets.token_hex(8)
        self._chained = False

    def offer(self, snapshot: Snapshot, *, full_form: Snapshot | None = None) -> None:
        """Write it in the background; waits for the one before.

        `full_form` holds all weights of a delta's moment and is written beside it, in its own time.
        """
        self.wait()
        self._thread = threading.Thread(target=self._publish, args=(snapshot, full_form), name="publisher", daemon=True)
        self._thread.start()

    def serve(self, version: int) -> None:
        """Make a version that is there the one that servers take, and keep it so until the next one, a full one.

        Waits for the snapshot that is being written. Raises VersionError.
        """
        self.begin_lineage()
        manifest = self._store.serve(version)
        self.version = version
        if self._announcer is not None:
            self._announcer.announce(manifest, url=self._store.url)

    def wait(self, *, timeout_s: float | None = None) -> bool:
        """Return when no version is being written; False where that did not come about within `timeout_s`."""
        if self._thread is not None:
            self._thread.join(timeout_s)
        return not self.busy

    def wait_for_full(self, *, timeout_s: float) -> None:
        """Let a full form that is being written come to its end."""
        if self._full_thread is not None:
            self._full_thread.join(timeout_s)

    def _publish(self, snapshot: Snapshot, full_form: Snapshot | None) -> None:
        self._hook("publishing")
        before = self._store.published
        self.owes, self.last_error = True, ""
        try:
            self._store.publish(snapshot)
        except VersionError as error:
            self._note(error)
        except Exception as error:
            logger.exception("publishing failed")
            self._note(error)
        if (written := self._store.published) is not None and written is not before:
            self._settle(written, snapshot)
        if not self.owes and full_form is not None:
            arguments = (full_form, self.version)
            self._full_thread = threading.Thread(target=self._write_full, args=arguments, name="full", daemon=True)
            self._full_thread.start()

    def _settle(self, written: Manifest, snapshot: Snapshot) -> None:
        """The version is in force."""
        if self._announcer is not None:
            self._announcer.announce(written, url=self._store.url)
        counts = self.counts
        counts.versions_published += 1
        if snapshot.base:
            self._sizes.append((written.version, written.size))
            counts.deltas_published += 1
            counts.delta_bytes += written.size
            counts.delta_rows += sum(len(shard.ids) for shard in snapshot.shards if shard.ids is not None)
            self.delta_share = written.size / max(1, self._full_size)
        else:
            self._sizes = []
            self._has_full(written)
        self.version = written.version
        self._chained = True
        self.owes = False
        self._hook("published")
        fields = {"version": written.version, "kind": written.kind, "bytes": written.size, "step": snapshot.step}
        logger.info("published", extra=fields)

    def _write_full(self, snapshot: Snapshot, version: int) -> None:
        self._hook("writing full")
        try:
            written = self._store.add_full(snapshot, version=version)
        except VersionError as error:
            self._note(error)
        except Exception as error:
            logger.exception("a full version was not written")
            self._note(error)
        else:
            self._sizes = [(number, size) for number, size in self._sizes if number > version]
            self._has_full(written)
            self._hook("full written")
            logger.info("full version written", extra={"version": version, "bytes": written.size})

    def _has_full(self, written: Manifest) -> None:
        self._full_size = written.size
        self.counts.full_written += 1
        self.counts.full_bytes += written.size

    def _note(self, error: Exception) -> None:
        self.counts.publish_failures += 1
        self.last_error = str(error)
        logger.error("a version was not published", extra={"reason": str(error)})
