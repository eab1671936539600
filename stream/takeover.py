"""Taking over partitions: what the log, the journal and the commits say, decided, and built into live state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import msgspec

from dedup_cache import BatchSchema
from stream.builder import BatchBuilder, BatchLimits
from stream.config import Config
from stream.emitted import Emitted, newest_batches
from stream.idle import Silence
from stream.indexer import Indexer
from stream.journal import JournalMarks, JournalPart, Parameters, read_journals
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
from stream.opening import Opened, Opener
from stream.partition import OwnedPartition, Source
from stream.pipeline import PartitionPipeline, PipelineConfig
from stream.recovery import Allowed, Found, JournalBehindError, Plan, RecoveryError, commit_metadata, decide
from stream.transforms import Transforms

MOST_QUESTIONS = 32
MIN_PATIENCE_MS, MAX_PATIENCE_MS = 100, 1_000
"""How long committed offsets are waited for, while other partitions wait: longer each time that it was in vain."""
PROBES_PER_IDLE = 4
MIN_PROBE_MS, MAX_PROBE_MS = 50, 250


JOURNAL, SNAPSHOT, BATCHES = "reading the journal", "reading a snapshot", "looking for batches of former times"
OnWait = Callable[[str], object]


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


@dataclass(frozen=True, slots=True)
class _FoundJournal:
    part: JournalPart
    cut: str = ""
    """Why it cannot be read from where the commit says."""
    emitted: Emitted | None = None
    """What the batches say; looked for only where there is neither an entry nor a commit."""

    @property
    def is_known(self) -> bool:
        """Whether it had entries, once at least."""
        return bool(self.part.entries or self.cut)


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

    def take(self, consumer: GroupConsumer, partitions: Sequence[int], *, on_wait: OnWait) -> Taken:
        """Decide for each partition how it goes on. Raises BrokerUnavailable, TopicMissing: nothing has changed.

        `on_wait` hears again and again what is being done, and may raise to give up.
        """
        kafka, topic = self._config.kafka, self._config.topics.interactions
        journal_id = topic_id(kafka, self._config.topics.journal)
        source = Source(topic, topic_id(kafka, topic), partition_count(kafka, topic), journal_id)
        log = _Log(begin_offsets(kafka, topic), end_offsets(kafka, topic, committed=False))
        taken = Taken([], {}, {}, source)
        commits = self._commits(consumer, partitions, later=taken.later)
        journals = self._journals(commits, journal_id=journal_id, on_wait=on_wait)
        unknown = [p for p, known in commits.items() if known is None and not journals[p].is_known]
        for p, emitted in newest_batches(self._config, unknown, on_wait=partial(on_wait, BATCHES)).items():
            journals[p] = replace(journals[p], emitted=emitted)
        opener = Opener(self._config, ends=self._snapshot_ends(), on_wait=partial(on_wait, SNAPSHOT))
        for partition, committed in commits.items():
            journal = journals[partition]
            try:
                plan = self._plan(consumer, partition, committed=committed, journal=journal, source=source, log=log)
            except RecoveryError as error:
                taken.refused[partition] = error
            except (BrokerUnavailable, JournalBehindError) as error:
                taken.later[partition] = error
            else:
                marks = JournalMarks.of(journal.part.entries, next_offset=journal.part.next_offset)
                opened = opener.open(partition, plan, pipeline=self.pipeline_config(plan.parameters))
                taken.partitions.append(self._build(opened, marks=marks))
        self._overrides.committed(partition for partition in taken.partitions if not partition.plan.note)
        self._patience_ms = min(2 * self._patience_ms, MAX_PATIENCE_MS) if taken.later else MIN_PATIENCE_MS
        return taken

    def _commits(
        self, consumer: GroupConsumer, partitions: Sequence[int], *, later: dict[int, Exception]
    ) -> dict[int, Committed | None]:
        """One question each, all at once: the answer for one that has a commit under way holds back no other."""
        commits: dict[int, Committed | None] = {}
        with ThreadPoolExecutor(min(max(1, len(partitions)), MOST_QUESTIONS), thread_name_prefix="commits") as pool:
            ask = partial(consumer.committed, timeout_ms=self._patience_ms)
            answers = {partition: pool.submit(ask, [partition]) for partition in partitions}
        for partition, answer in answers.items():
            try:
                commits |= answer.result()
            except BrokerUnavailable as error:
                later[partition] = error
        return commits

    def _journals(
        self, commits: dict[int, Committed | None], *, journal_id: str, on_wait: OnWait
    ) -> dict[int, _FoundJournal]:
        """In one pass; where one of them was cut, one by one."""
        kafka, topic, count = self._config.kafka, self._config.topics.journal, self._journal_partitions
        starts: dict[int, int | None] = {}
        replaced: dict[int, _FoundJournal] = {}
        for partition, committed in commits.items():
            metadata = commit_metadata(f"{self._config.topics.interactions}[{partition}]", committed)
            starts[partition] = metadata.journal if metadata else None
            if metadata and metadata.journal_id not in ("", journal_id):
                del starts[partition]
                cut = f"the topic has the id {journal_id}, the commit knows {metadata.journal_id}"
                end = end_offsets(kafka, topic)[partition % count]
                replaced[partition] = _FoundJournal(JournalPart([], end), cut=cut)
        if not starts:
            return replaced
        try:
            parts = read_journals(
                kafka, topic, journal_partitions=count, starts=starts, on_wait=partial(on_wait, JOURNAL)
            )
        except OffsetOutOfRange as error:
            if len(starts) == 1:
                (partition,) = starts
                end = end_offsets(kafka, topic)[partition % count]
                return replaced | {partition: _FoundJournal(JournalPart([], end), cut=str(error))}
            alone = [self._journals({p: commits[p]}, journal_id=journal_id, on_wait=on_wait) for p in starts]
            return replaced | {partition: found for one in alone for partition, found in one.items()}
        return replaced | {partition: _FoundJournal(part) for partition, part in parts.items()}

    def _plan(
        self,
        consumer: GroupConsumer,
        partition: int,
        *,
        committed: Committed | None,
        journal: _FoundJournal,
        source: Source,
        log: _Log,
    ) -> Plan:
        before = None
        if committed is None and not journal.part.entries:
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
            entries=journal.part.entries,
            parameters=self._parameters,
            journal_cut=journal.cut,
            partitions_before=before,
            emitted=journal.emitted,
        )
        return decide(found, self._overrides.of(partition))

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

    def _snapshot_ends(self) -> dict[int, int]:
        """By partition of the snapshots topic, where it ends; none without snapshots."""
        if not self._config.stream.snapshot_every_events:
            return {}
        return end_offsets(self._config.kafka, self._config.topics.snapshots, committed=False)

    def _build(self, opened: Opened, *, marks: JournalMarks) -> OwnedPartition:
        every_ms = probe_every_ms(self._config)
        return OwnedPartition(
            opened.number,
            plan=opened.plan,
            pipeline=opened.pipeline,
            builder=BatchBuilder(
                self._schema,
                topic=self._config.topics.interactions,
                partition=opened.number,
                seq=opened.plan.seq,
                limits=self._limits,
                indexer=self._indexer,
                transforms=self._transforms,
            ),
            marks=marks,
            silence=Silence(self._config.session.idle_after_ms, max(500, PROBES_PER_IDLE * every_ms)),
            snapshots=opened.snapshots,
        )


def _partitions_before(topic: str, commits: dict[int, Committed | None]) -> int | None:
    known = (commit_metadata(f"{topic}[{p}]", committed) for p, committed in commits.items())
    return next((metadata.partitions for metadata in known if metadata), None)
