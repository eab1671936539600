"""What the trainer leaves behind and comes back to: cuts, versions, and weights of another version."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch

from stream.config import Config
from stream.event_schema import EventSchema
from trainer.cut import CutRecord, CutStore
from trainer.cut_files import LastVersion
from trainer.cut_writer import CutWriter
from trainer.description import describe
from trainer.evaluation import Evaluation
from trainer.guarding import Guarding
from trainer.latency import Ages
from trainer.progress import TrainingState, merge_partitions
from trainer.publishing import Publisher
from trainer.ranks import Ranks
from trainer.releases import Releases
from trainer.resume import (
    METRICS,
    RANDOM,
    Conditions,
    Origin,
    check_origin,
    column_shards,
    restore_metrics,
    restore_random,
    tell,
    warn_of_other_losses,
)
from trainer.sharding import ShardedModel
from trainer.staging import Staging
from trainer.steps import StepLog
from trainer.takeover import TakenOver
from trainer.versions import Version, VersionError

__all__ = ["Keeper", "KeeperCounts", "Origin", "Trained"]

logger = logging.getLogger("trainer.keeper")

GUARDS = "guards/"
NO_CUT, NOT_TAKEN = "the cut was not written", "the version was not taken"


@dataclass(frozen=True)
class Trained:
    """All that changes while training, of one rank."""

    model: ShardedModel
    state: TrainingState
    evaluation: Evaluation
    ages: Ages
    steps: StepLog


@dataclass
class KeeperCounts:
    """What was kept, and what was not."""

    cuts: int = 0
    cut_failures: int = 0
    cut_stall_ms: int = 0
    """How long training stood still for them."""
    cut_fallbacks: int = 0
    reloads: int = 0
    reload_failures: int = 0


class Keeper:
    """Every method that says nothing else is a collective: all ranks call it at the same step boundary."""

    def __init__(
        self, trained: Trained, *, config: Config, origin: Origin, ranks: Ranks, hook: Callable[[str], object]
    ) -> None:
        trainer = config.trainer
        self._trained = trained
        self._origin = origin
        self._ranks = ranks
        self._threads = trainer.threads
        url, keep = trainer.checkpoint_url, trainer.keep_checkpoints
        self._cuts = CutStore(url, keep=keep, ranks=ranks.apart(), hook=hook)
        self.cuts = CutWriter(self._cuts, staging=Staging(ranks))
        self._model = describe(config)
        shown = _version_config(config)
        self.releases = Releases(trained.model, config=config, shown=shown, ranks=ranks, hook=hook)
        self.guarding = Guarding(
            config, ranks=ranks, root=self._cuts.root, versions=self.releases.store, publisher=self.publisher
        )
        self.releases.watch(self.guarding.published)
        self.counts = KeeperCounts()
        self.cut = ""
        """The cut in force that this process wrote or came from."""
        self.taken_over: TakenOver | None = None
        """What became of the model when it went on from a cut."""
        self._errors: dict[str, str] = {}

    @property
    def publisher(self) -> Publisher:
        """Writes the versions."""
        return self.releases.publisher

    @property
    def last_error(self) -> str:
        """The newest failure of what has not been done since; empty where there is none."""
        return next(reversed(self._errors.values()), "")

    def restore(self) -> None:
        """Continue from the cut in force, or begin anew where there is none. CutError where none can be used.

        From here on no other trainer can use the folder of cuts, nor publish to the same versions.
        """
        trained = self._trained
        self._cuts.hold(versions_url=self.releases.store.url)
        self._cuts.clean()
        loaded = self._cuts.load(trained.model.tensors(), model=self._model, check=self._check_origin)
        if loaded is None:
            trained.steps.keep_until(0)
            return
        for reason in loaded.passed_over:
            logger.error("a damaged cut was passed over", extra={"reason": reason, "taken": loaded.name})
        self.counts.cut_fallbacks += len(loaded.passed_over)
        record, state, ranks = loaded.record, trained.state, self._ranks
        now = Conditions(self._threads, ranks.world_size, column_shards(trained.model))
        warn_of_other_losses(record, now)
        state.step, state.stream_time_ms = record.step, record.stream_time_ms
        own = {int(p): progress for p, progress in record.partitions.items()}
        state.partitions = {p: v for p, v in own.items() if p % ranks.world_size == ranks.rank}
        if record.world_size == ranks.world_size:
            state.next_partition = record.schedule[ranks.rank]
        restore_random(loaded.arrays, ranks=ranks)
        labels = self._model.labels
        restore_metrics(trained.evaluation, loaded.arrays, record=record, now=labels, ranks=ranks)
        trained.model.rates.restore(record.rates)
        self.guarding.restore(
            [{k.removeprefix(GUARDS): v for k, v in a.items() if k.startswith(GUARDS)} for a in loaded.arrays]
        )
        trained.steps.keep_until(record.step)
        self.cut, self.taken_over = loaded.name, loaded.taken_over
        if ranks.rank == 0:
            tell(loaded.taken_over, self._cuts.root)
        logger.info("resumed", extra={"cut": loaded.name, "step": record.step, "samples": record.samples})

    def release(self) -> None:
        """Let another trainer have the folder of cuts. Not a collective."""
        self._cuts.release()

    def _check_origin(self, name: str, record: CutRecord) -> None:
        check_origin(name, record, self._origin)

    def begin_cut(self) -> None:
        """Copy the state and write it as a cut in the background; waits for the one before."""
        started_s = time.monotonic()
        trained = self._trained
        trained.steps.flush()
        self.cuts.begin(
            trained.model.tensors(),
            record=self._record(),
            arrays=self._arrays(),
            before=trained.steps.sync,
            started_s=started_s,
        )

    def checkpoint(self) -> bool:
        """Write a cut and wait for it; False where that failed. The former one is then still in force."""
        self.begin_cut()
        self.cuts.wait()
        self.note_cuts()
        return not self.cuts.owes

    def note_cuts(self) -> None:
        """Count and report the cuts that ended in the background. Not a collective."""
        for cut in self.cuts.ended():
            self.counts.cut_stall_ms += round(cut.stalled_s * 1000)
            if cut.error is not None:
                self.counts.cut_failures += 1
                self._report(NO_CUT, cut.error)
                continue
            self.counts.cuts += 1
            self.cut = cut.name
            self._errors.pop(NO_CUT, None)
            seconds = {"stalled": round(cut.stalled_s, 3), "seconds": round(cut.written_s, 3)}
            logger.info("cut", extra={"cut": cut.name, "step": cut.step, **seconds})

    def publish(self) -> None:
        """Copy what has changed since the last version, and write it as one in the background."""
        trained = self._trained
        parts = self._ranks.gather((trained.state.samples, trained.state.stream_time_ms))
        self.releases.publish(
            step=trained.state.step,
            samples=sum(samples for samples, _ in parts),
            stream_time_ms=max(time_ms for _, time_ms in parts),
        )
        trained.ages.taken(time.time_ns() // 1_000_000)

    def reload(self, number: int) -> bool:
        """Take the weights of a version; optimizer state and positions stay. False, counted, where it cannot be had."""
        version, error = self._load(number)
        error = self._ranks.first_error(error)
        if error is not None or version is None:
            self.counts.reload_failures += 1
            self._report(NOT_TAKEN, VersionError(error or f"version {number}"))
            return False
        self._trained.model.take_weights(version)
        self.releases.begin_lineage()
        self.guarding.reloaded()
        self.counts.reloads += 1
        self._errors.pop(NOT_TAKEN, None)
        logger.info("took the weights of a version", extra={"version": number})
        return True

    def _load(self, number: int) -> tuple[Version | None, str | None]:
        try:
            version = self.releases.store.load(number)
            self._trained.model.check_fit(version)
        except VersionError as error:
            return None, str(error)
        return version, None

    def _record(self) -> CutRecord:
        state = self._trained.state
        parts = self._ranks.gather((state.partitions, state.next_partition, state.stream_time_ms))
        partitions = merge_partitions(part for part, _, _ in parts)
        return CutRecord(
            step=state.step,
            samples=sum(progress.samples for progress in partitions.values()),
            stream_time_ms=max(time_ms for _, _, time_ms in parts),
            world_size=self._ranks.world_size,
            threads=self._threads,
            column_shards=column_shards(self._trained.model),
            written_ms=time.time_ns() // 1_000_000,
            topic=self._origin.topic,
            topic_id=self._origin.topic_id,
            schema=self._origin.schema,
            partitions={str(p): partitions[p] for p in sorted(partitions)},
            schedule=tuple(first for _, first, _ in parts),
            versions=LastVersion(last=self.publisher.version),
            model=self._model,
            rates=self._trained.model.rates.state(),
        )

    def _arrays(self) -> dict[str, np.ndarray]:
        metrics = {f"{METRICS}{name}": array for name, array in self._trained.evaluation.state().items()}
        guards = {f"{GUARDS}{name}": array for name, array in self.guarding.state().items()}
        return metrics | guards | {RANDOM: torch.get_rng_state().numpy()}

    def _report(self, what: str, error: Exception) -> None:
        self._errors.pop(what, None)  # the newest stands last
        self._errors[what] = str(error)
        logger.error(what, extra={"reason": str(error)})


def _version_config(config: Config) -> dict[str, Any]:
    """What a server builds the model from."""
    events = EventSchema(config.events, features=config.features, labels=config.labels)
    parts = {
        "features": config.features,
        "derived": config.derived,
        "labels": config.labels,
        "model": config.trainer.model,
        "items": events.types[config.events.fields.item],
    }
    built: dict[str, Any] = msgspec.to_builtins(parts, str_keys=True)
    return built
