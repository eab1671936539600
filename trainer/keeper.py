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
from torch.distributed._shard.sharded_tensor.api import ShardedTensor

from stream.config import Config
from stream.event_schema import EventSchema
from trainer.cut import CutError, CutRecord, CutStore, LoadedCut
from trainer.cut_files import LastVersion
from trainer.evaluation import Evaluation, merge_states
from trainer.latency import Ages
from trainer.progress import TrainingState, merge_partitions
from trainer.publishing import Publisher, take_snapshot
from trainer.ranks import Ranks
from trainer.sharding import TABLES, ShardedModel
from trainer.steps import StepLog
from trainer.versions import Version, VersionError, VersionStore

logger = logging.getLogger("trainer.keeper")

METRICS, RANDOM = "metrics/", "random/torch"
NO_CUT, NOT_TAKEN = "the cut was not written", "the version was not taken"


@dataclass(frozen=True)
class Trained:
    """All that changes while training, of one rank."""

    model: ShardedModel
    state: TrainingState
    evaluation: Evaluation
    ages: Ages
    steps: StepLog


@dataclass(frozen=True)
class Origin:
    """What a cut must agree with to be used."""

    topic: str
    topic_id: str
    partitions: int
    schema: str


@dataclass
class KeeperCounts:
    """What was kept, and what was not."""

    cuts: int = 0
    cut_failures: int = 0
    cut_fallbacks: int = 0
    reloads: int = 0
    reload_failures: int = 0


class Keeper:
    """Every method but the properties is a collective: all ranks call it at the same step boundary."""

    def __init__(
        self, trained: Trained, *, config: Config, origin: Origin, ranks: Ranks, hook: Callable[[str], object]
    ) -> None:
        trainer = config.trainer
        self._trained = trained
        self._origin = origin
        self._ranks = ranks
        self._threads = trainer.threads
        self._cuts = CutStore(trainer.checkpoint_url, keep=trainer.keep_checkpoints, ranks=ranks, hook=hook)
        self._versions = VersionStore(trainer.versions_url, keep=trainer.keep_versions)
        self._config = _version_config(config)
        self.publisher = Publisher(self._versions, hook=hook)
        self.counts = KeeperCounts()
        self.cut = ""
        """The cut in force that this process wrote or came from."""
        self._errors: dict[str, str] = {}

    @property
    def last_error(self) -> str:
        """The newest failure of what has not been done since; empty where there is none."""
        return next(reversed(self._errors.values()), "")

    def restore(self) -> None:
        """Continue from the cut in force, or begin anew where there is none. CutError where none can be used.

        From here on no other trainer can use the folder of cuts.
        """
        trained = self._trained
        self._cuts.hold()
        self._cuts.clean()
        loaded = self._cuts.load(trained.model.tensors())
        if loaded is None:
            trained.steps.keep_until(0)
            return
        for reason in loaded.passed_over:
            logger.error("a damaged cut was passed over", extra={"reason": reason, "taken": loaded.name})
        self.counts.cut_fallbacks += len(loaded.passed_over)
        self._check_origin(loaded)
        self._warn_of_other_losses(loaded.record)
        record, state = loaded.record, trained.state
        state.step, state.stream_time_ms = record.step, record.stream_time_ms
        own = {int(p): progress for p, progress in record.partitions.items()}
        state.partitions = {p: v for p, v in own.items() if p % self._ranks.world_size == self._ranks.rank}
        self._restore_arrays(loaded)
        trained.steps.keep_until(record.step)
        self.cut = loaded.name
        logger.info("resumed", extra={"cut": loaded.name, "step": record.step, "samples": record.samples})

    def checkpoint(self) -> bool:
        """Write a cut; False, counted and reported, where that failed. The former one is then still in force."""
        trained = self._trained
        trained.steps.sync()
        started = time.monotonic()
        try:
            self.cut = self._cuts.write(trained.model.tensors(), record=self._record(), arrays=self._arrays())
        except CutError as error:
            self.counts.cut_failures += 1
            self._report(NO_CUT, error)
            return False
        self.counts.cuts += 1
        self._errors.pop(NO_CUT, None)
        seconds = round(time.monotonic() - started, 3)
        logger.info("cut", extra={"cut": self.cut, "step": trained.state.step, "seconds": seconds})
        return True

    def publish(self) -> None:
        """Copy the weights, and write them as a version in the background."""
        trained, ranks = self._trained, self._ranks
        parts = ranks.gather((trained.state.samples, trained.state.stream_time_ms))
        snapshot = take_snapshot(
            trained.model,
            ranks=ranks,
            config=self._config,
            step=trained.state.step,
            samples=sum(samples for samples, _ in parts),
            stream_time_ms=max(time_ms for _, time_ms in parts),
        )
        trained.ages.taken(time.time_ns() // 1_000_000)
        if snapshot is not None:
            self.publisher.offer(snapshot)

    def reload(self, number: int) -> bool:
        """Take the weights of a version; optimizer state and positions stay. False, counted, where it cannot be had."""
        version, error = self._load(number)
        error = self._ranks.first_error(error)
        if error is not None or version is None:
            self.counts.reload_failures += 1
            self._report(NOT_TAKEN, VersionError(error or f"version {number}"))
            return False
        self._trained.model.take_weights(version)
        self.counts.reloads += 1
        self._errors.pop(NOT_TAKEN, None)
        logger.info("took the weights of a version", extra={"version": number})
        return True

    def _load(self, number: int) -> tuple[Version | None, str | None]:
        try:
            version = self._versions.load(number)
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
            column_shards=_column_shards(self._trained.model),
            written_ms=time.time_ns() // 1_000_000,
            topic=self._origin.topic,
            topic_id=self._origin.topic_id,
            schema=self._origin.schema,
            partitions={str(p): partitions[p] for p in sorted(partitions)},
            schedule=tuple(first for _, first, _ in parts),
            versions=LastVersion(last=self.publisher.version),
        )

    def _arrays(self) -> dict[str, np.ndarray]:
        metrics = {f"{METRICS}{name}": array for name, array in self._trained.evaluation.state().items()}
        return metrics | {RANDOM: torch.get_rng_state().numpy()}

    def _restore_arrays(self, loaded: LoadedCut) -> None:
        rank = self._ranks.rank
        states = [{k.removeprefix(METRICS): v for k, v in a.items() if k.startswith(METRICS)} for a in loaded.arrays]
        if loaded.record.world_size == self._ranks.world_size:
            self._restore_metrics(states[rank])
            torch.set_rng_state(torch.from_numpy(loaded.arrays[rank][RANDOM].copy()))
            self._trained.state.next_partition = loaded.record.schedule[rank]
        elif rank == 0:
            self._restore_metrics(merge_states(states))

    def _restore_metrics(self, state: dict[str, np.ndarray]) -> None:
        """Metrics of another form (an older cut's, other labels') begin anew, loudly: they are no reason to stop."""
        try:
            self._trained.evaluation.restore(state)
        except ValueError as error:
            logger.warning("the cut's metrics are not taken over, they begin anew", extra={"reason": str(error)})

    def _check_origin(self, loaded: LoadedCut) -> None:
        record, origin = loaded.record, self._origin
        start_anew = "set trainer.checkpoint_url to an empty folder to start anew"
        if (record.topic, record.topic_id) != (origin.topic, origin.topic_id):
            raise CutError(
                f"{loaded.name} was trained from topic '{record.topic}' ({record.topic_id}), but topics.batches is "
                f"'{origin.topic}' ({origin.topic_id}): its positions mean nothing there; {start_anew}"
            )
        if any(int(p) >= origin.partitions for p in record.partitions):
            raise CutError(f"{loaded.name} names partitions that '{origin.topic}' does not have; {start_anew}")
        if record.schema != origin.schema:
            raise CutError(
                f"{loaded.name} was trained with other features, labels or dedup.salt, or another order of them: the "
                f"batch schema was {record.schema} and is {origin.schema} now; "
                f"go back to the former config, or {start_anew}"
            )

    def _warn_of_other_losses(self, record: CutRecord) -> None:
        was = (record.threads, record.world_size, record.column_shards)
        now = (self._threads, self._ranks.world_size, _column_shards(self._trained.model))
        names = ("threads", "world_size", "column_shards")
        if changed := {name: [a, b] for name, a, b in zip(names, was, now, strict=True) if a != b}:
            text = "losses will not be bit for bit those of the former run"
            logger.warning(text, extra={"was_and_is": changed})

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


def _column_shards(model: ShardedModel) -> dict[str, int]:
    shards: dict[str, int] = {}
    for key, tensor in model.module.state_dict().items():
        if key.startswith(TABLES):
            metadata = tensor.metadata().shards_metadata if isinstance(tensor, ShardedTensor) else []
            shards[key.split(".")[-2]] = len({shard.shard_offsets[1] for shard in metadata}) or 1
    return shards
