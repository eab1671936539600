"""All ranks' side of publishing: what the next version holds, taken at a step boundary."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from stream.config import Config
from trainer.announcements import Announcer
from trainer.publishing import Moment, Plan, Publisher, take_snapshot
from trainer.ranks import Ranks
from trainer.sharding import ShardedModel
from trainer.touched import Rows, united
from trainer.versions import Snapshot, VersionStore


class Releases:
    """Versions of one model: a full one, then deltas. Methods but the properties are collectives."""

    def __init__(
        self,
        model: ShardedModel,
        *,
        config: Config,
        shown: dict[str, Any],
        ranks: Ranks,
        hook: Callable[[str], object] = lambda _: None,
    ) -> None:
        """`shown` is what a server builds the model from."""
        trainer = config.trainer
        self.store = VersionStore(trainer.versions_url, keep=trainer.keep_versions, hook=hook)
        self._model = model
        self._ranks = ranks
        self._shown = shown
        self._full_share = trainer.full_share
        self._announcer: Announcer | None = None
        if trainer.announce and ranks.rank == 0:
            self._announcer = Announcer(
                config.kafka,
                topic=config.topics.versions,
                model=trainer.model_name,
                replication=config.topics.replication,
            )
        self.publisher = Publisher(
            self.store,
            full_share=trainer.full_share,
            max_deltas=trainer.max_deltas,
            announcer=self._announcer,
            hook=hook,
        )
        self._taken: Rows = {}
        self._watcher: Callable[[Snapshot], object] = lambda _: None
        self.stalled_ms = 0.0
        """How long training stood still while weights were copied."""

    def publish(self, *, step: int, samples: int, stream_time_ms: int) -> None:
        """Copy what has changed, and write it as a version in the background."""
        plan = self._plan()
        started = time.monotonic()
        rows = self._touched(plan)
        lineage = self.publisher.lineage
        moment = Moment(step, samples, stream_time_ms, self._shown, lineage, plan.base)
        snapshot = take_snapshot(self._model, ranks=self._ranks, moment=moment, rows=rows)
        full_form = None
        if plan.full_form and rows is not None:
            full_form = take_snapshot(self._model, ranks=self._ranks, moment=moment)
        self.stalled_ms += 1000 * (time.monotonic() - started)
        if snapshot is not None:
            self._watcher(snapshot)
            self.publisher.offer(snapshot, full_form=full_form)

    def watch(self, watcher: Callable[[Snapshot], object]) -> None:
        """Show every snapshot to `watcher`, on rank 0, before it is written."""
        self._watcher = watcher

    def begin_lineage(self) -> None:
        """The weights have come from elsewhere, none from the version before: the next version is full."""
        self._model.touched.take()
        self._taken = {}
        self.publisher.begin_lineage()

    def close(self) -> None:
        """Announce what is left to announce."""
        if self._announcer is not None:
            self._announcer.close()

    def counters(self) -> dict[str, int]:
        """Totals of this process; of all versions only on rank 0."""
        announcer = self._announcer
        said = {} if announcer is None else {"announced": announcer.announced, "announce_failures": announcer.failures}
        return asdict(self.publisher.counts) | {"publish_stall_ms": round(self.stalled_ms)} | said

    def _plan(self) -> Plan:
        """Rank 0 knows what was written, and says it to all."""
        own = self.publisher.plan() if self._ranks.rank == 0 else Plan(0, full_form=False, lost=False)
        base, full_form, lost = self._ranks.sums([int(value) for value in own])
        return Plan(base, bool(full_form), bool(lost))

    def _touched(self, plan: Plan) -> Rows | None:
        """The rows of a delta, None where the version is to be full."""
        touched = self._model.touched
        if plan.lost:
            touched.give_back(self._taken)
        self._taken = touched.take()
        if not plan.base:
            return None
        rows = united(self._ranks.gather(self._taken))
        heavy = touched.share_of(rows) > self._full_share
        return None if heavy else rows
