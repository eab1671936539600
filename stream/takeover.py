"""Taking over partitions: what the log, the journal and the commits say, decided, and built into live state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from dedup_cache import BatchSchema
from stream.builder import BatchBuilder, BatchLimits
from stream.config import Config
from stream.idle import Silence
from stream.indexer import Indexer
from stream.journal import JournalEntry, JournalMarks, Parameters, read_journal
from stream.kafka import (
    BrokerUnavailable,
    Committed,
    GroupConsumer,
    OffsetOutOfRange,
    begin_offsets,
    end_offsets,
    partition_count,
    topic_id,
)
from stream.partition import OwnedPartition, Source
from stream.pipeline import PartitionPipeline, PipelineConfig
from stream.recovery import Allowed, Found, JournalBehindError, Plan, RecoveryError, commit_metadata, decide
from stream.transforms import Transforms

MIN_PATIENCE_MS, MAX_PATIENCE_MS = 100, 3_000
"""How long committed offsets are waited for, while other partitions wait: longer each time that it was in vain."""
PROBES_PER_IDLE = 4
MIN_PROBE_MS, MAX_PROBE_MS = 50, 250


@dataclass(slots=True)
class Overrides:
    """What the operator allowed on the command line; a loss is accepted once, by the commit that holds its note."""

    accept_loss: set[int] = field(default_factory=set)
    close_all: bool = False

    def of(self, partition: int) -> Allowed:
        """For one partition."""
        return Allowed(accept_loss=partition in self.accept_loss, close_all=self.close_all)

    def committed(self, partitions: Iterable[OwnedPartition]) -> None:
        """These go on for good, and the journal says what was accepted."""
        self.accept_loss.difference_update(partition.number for partition in partitions)


@dataclass(frozen=True, slots=True)
class Taken:
    """The partitions that go on, and why others do not."""

    partitions: list[OwnedPartition]
    refused: dict[int, RecoveryError]
    later: dict[int, Exception]
    """Look again: no answer, or a transaction of the former owner is still open."""
    source: Source


@dataclass(frozen=True, slots=True)
class _Log:
    """By partition, where the log begins and ends."""

    begins: dict[int, int]
    ends: dict[int, int]


def probe_every_ms(config: Config) -> int:
    """How often the broker is asked for the ends of partitions."""
    return min(MAX_PROBE_MS, max(MIN_PROBE_MS, config.session.idle_after_ms // PROBES_PER_IDLE))


class Takeover:
    """Builds the state of partitions that were assigned to this worker."""

    def __init__(
        self,
        config: Config,
        *,
        schema: BatchSchema,
        limits: BatchLimits,
        indexer: Indexer,
        overrides: Overrides,
        journal_partitions: int,
    ) -> None:
        self._config = config
        self._schema = schema
        self._limits = limits
        self._indexer = indexer
        self._overrides = overrides
        self._journal_partitions = journal_partitions
        self._parameters = Parameters.of(config)
        self._transforms = Transforms(config.features, config.derived)
        self._patience_ms = MIN_PATIENCE_MS

    def take(self, consumer: GroupConsumer, partitions: Sequence[int], *, on_wait: Callable[[], object]) -> Taken:
        """Decide for each partition how it goes on. Raises BrokerUnavailable, TopicMissing: nothing has changed."""
        kafka, topic = self._config.kafka, self._config.topics.interactions
        source = Source(topic, topic_id(kafka, topic), partition_count(kafka, topic))
        log = _Log(begin_offsets(kafka, topic), end_offsets(kafka, topic, committed=False))
        taken = Taken([], {}, {}, source)
        for partition in partitions:
            try:
                plan, marks = self._plan(consumer, partition, source=source, log=log, on_wait=on_wait)
            except RecoveryError as error:
                taken.refused[partition] = error
            except (BrokerUnavailable, JournalBehindError) as error:
                taken.later[partition] = error
            else:
                taken.partitions.append(self._build(partition, plan, marks))
        self._overrides.committed(partition for partition in taken.partitions if not partition.plan.note)
        self._patience_ms = min(2 * self._patience_ms, MAX_PATIENCE_MS) if taken.later else MIN_PATIENCE_MS
        return taken

    def _plan(
        self,
        consumer: GroupConsumer,
        partition: int,
        *,
        source: Source,
        log: _Log,
        on_wait: Callable[[], object],
    ) -> tuple[Plan, JournalMarks]:
        committed = consumer.committed([partition], timeout_ms=self._patience_ms)[partition]
        entries: list[JournalEntry] = []
        journal_cut, before = "", None
        try:
            entries, next_journal = self._journal(partition, committed, on_wait=on_wait)
        except OffsetOutOfRange as error:
            journal_cut = str(error)
            ends = end_offsets(self._config.kafka, self._config.topics.journal)
            next_journal = ends[partition % self._journal_partitions]
        if committed is None and not entries:
            commits = consumer.committed(range(source.partitions), timeout_ms=self._patience_ms)
            before = _partitions_before(source.topic, commits)
        found = Found(
            topic=source.topic,
            topic_id=source.topic_id,
            partition=partition,
            partitions=source.partitions,
            begin=log.begins[partition],
            end=log.ends[partition],
            committed=committed,
            entries=entries,
            parameters=self._parameters,
            journal_cut=journal_cut,
            partitions_before=before,
        )
        return decide(found, self._overrides.of(partition)), JournalMarks.of(entries, next_offset=next_journal)

    def pipeline_config(self, parameters: Parameters | None = None) -> PipelineConfig:
        """The pipeline's part of the configuration, with the session parameters of a journal record."""
        own = PipelineConfig.of(self._config)
        if parameters is None:
            return own
        session = msgspec.structs.replace(own.session, **msgspec.structs.asdict(parameters.session))
        return PipelineConfig(own.events, own.features, own.labels, session)

    def closed(self, partition: OwnedPartition) -> None:
        """Every session was closed under the old parameters, and that is committed: go on under the new ones."""
        start = partition.committed
        pipeline = PartitionPipeline(self.pipeline_config(), partition=partition.number, start=start)
        partition.restart_pipeline(pipeline, parameters=self._parameters)

    def _journal(
        self, partition: int, committed: Committed | None, *, on_wait: Callable[[], object]
    ) -> tuple[list[JournalEntry], int]:
        place = f"{self._config.topics.interactions}[{partition}]"
        metadata = commit_metadata(place, committed)
        return read_journal(
            self._config.kafka,
            self._config.topics.journal,
            journal_partition=partition % self._journal_partitions,
            start=metadata.journal if metadata else None,
            partition=partition,
            on_wait=on_wait,
        )

    def _build(self, partition: int, plan: Plan, marks: JournalMarks) -> OwnedPartition:
        every_ms = probe_every_ms(self._config)
        return OwnedPartition(
            partition,
            plan=plan,
            pipeline=PartitionPipeline(self.pipeline_config(plan.parameters), partition=partition, start=plan.start),
            builder=BatchBuilder(
                self._schema,
                topic=self._config.topics.interactions,
                partition=partition,
                seq=plan.seq,
                limits=self._limits,
                indexer=self._indexer,
                transforms=self._transforms,
            ),
            marks=marks,
            silence=Silence(self._config.session.idle_after_ms, max(500, PROBES_PER_IDLE * every_ms)),
        )


def _partitions_before(topic: str, commits: dict[int, Committed | None]) -> int | None:
    known = (commit_metadata(f"{topic}[{p}]", committed) for p, committed in commits.items())
    return next((metadata.partitions for metadata in known if metadata), None)
