"""The pipeline of a partition that is taken over: from its snapshot where there is one, else at the plan's start."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from stream.config import Config
from stream.pipeline import PartitionPipeline, PipelineConfig
from stream.recovery import Plan
from stream.sessions import RestoreError
from stream.snapshot_format import SnapshotError, SnapshotRef
from stream.snapshot_reader import LoadedSnapshot, load_snapshot
from stream.snapshots import SnapshotLimits, Snapshots

logger = logging.getLogger("stream.worker")

CHUNK_BYTES = 900_000
"""Of one record of the snapshots topic; below the default limit of a broker."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A partition's pipeline, and how it goes on from there."""

    number: int
    plan: Plan
    pipeline: PartitionPipeline
    snapshots: Snapshots


class Opener:
    """Opens the partitions of one takeover; `ends` are the ends of the snapshots topic, empty without snapshots."""

    def __init__(self, config: Config, *, ends: dict[int, int], on_wait: Callable[[], object]) -> None:
        self._config = config
        self._ends = ends
        self._on_wait = on_wait

    def open(self, partition: int, plan: Plan, *, pipeline: PipelineConfig) -> Opened:
        """At the plan's start or, with a snapshot that can be used, behind it. Raises TopicMissing."""
        limits = SnapshotLimits(self._config.stream.snapshot_every_events, CHUNK_BYTES)
        opened = PartitionPipeline(pipeline, partition=partition, start=plan.start)
        if not self._ends:
            return Opened(partition, plan, opened, Snapshots(partition, limits=limits, next_offset=0))
        restored = None
        if plan.snapshot is not None:
            try:
                loaded = self._load(partition, plan.snapshot, empty=opened)
                opened = PartitionPipeline.restore(
                    pipeline, partition=partition, state=loaded.state, events=loaded.events
                )
                restored = loaded.restored
            except (SnapshotError, RestoreError) as error:
                fields = {"partition": partition, "position": plan.snapshot.position, "reason": str(error)}
                logger.warning("snapshot not used, reading the log instead", extra=fields)
        advances = tuple(advance for advance in plan.advances if advance.position >= opened.position)
        next_offset = self._ends[partition % len(self._ends)]
        snapshots = Snapshots(partition, limits=limits, next_offset=next_offset, restored=restored)
        return Opened(partition, replace(plan, advances=advances), opened, snapshots)

    def _load(self, partition: int, ref: SnapshotRef, *, empty: PartitionPipeline) -> LoadedSnapshot:
        return load_snapshot(
            self._config.kafka,
            self._config.topics.snapshots,
            topic_partition=partition % len(self._ends),
            ref=ref,
            like=empty.no_impressions(),
            on_wait=self._on_wait,
        )
