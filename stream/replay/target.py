"""The topic that a replay writes: batches and how far it came, in one transaction.

1. `open` fences what an earlier process with the same target left, and reads how far that came.
2. Samples are held back until their journal entry is reached; then they go into batches.
3. `commit` cuts what is left, adds the progress of every partition, and commits until the outcome is known.

A crash before 3 ends leaves nothing of it, after it everything: the next process goes on behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from dedup_cache import BatchSchema, MemoryStore
from stream.builder import BatchBuilder, BatchLimits, BuiltBatch, LargeSample
from stream.columns import batch_schema
from stream.config import Config
from stream.indexer import Indexer, ReferencePolicy
from stream.journal import JournalRecord
from stream.kafka import (
    Bookmarks,
    BrokerUnavailable,
    KafkaError,
    TopicExists,
    TopicMissing,
    TransactionalWriter,
    begin_offsets,
    create_topic,
    end_offsets,
    partition_count,
    topic_settings,
)
from stream.records import SampleBlock
from stream.replay.errors import Diverged, OtherReplay, ReplayError
from stream.replay.live import LiveBatch
from stream.replay.progress import Progress, decode_progress, encode_progress
from stream.topics import RECORD_OVERHEAD_BYTES, topic_specs
from stream.transforms import Transforms

PRODUCER_BATCH_BYTES = 1_000_000
EVERYTHING_INLINE = 1 << 62
OnWait = Callable[[str], object]


@dataclass(slots=True)
class Tally:
    """What one transaction, or the whole replay, wrote."""

    samples: int = 0
    batches: int = 0
    bytes: int = 0
    live_samples: int = 0
    live_batches: int = 0

    def add(self, other: Tally) -> None:
        """Field by field."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Target:
    """One replay's output. Ids stand inline, so neither Redis nor the topic `values` of the live run is touched."""

    def __init__(self, config: Config, topic: str, *, begin: str) -> None:
        self._config = config
        self._topic = topic
        self._begin = begin
        self._schema: BatchSchema = batch_schema(config)
        self._indexer = Indexer(
            self._schema, store=MemoryStore(), policy=ReferencePolicy(EVERYTHING_INLINE, EVERYTHING_INLINE)
        )
        self._builders: dict[int, BatchBuilder] = {}
        self._counts: dict[int, int] = {}
        self._reached: dict[int, Progress] = {}
        self._tally = Tally()
        self._name = f"{config.stream.group_id}-replay-{topic}"
        _make_topic(config, topic)
        self._num_partitions = partition_count(config.kafka, topic)
        self._limits = _limits(config, topic)
        self._writer = TransactionalWriter(
            config.kafka,
            transactional_id=self._name,
            timeout_ms=config.stream.transaction_timeout_ms,
            compression=config.batch.compression,
            max_batch_bytes=min(PRODUCER_BATCH_BYTES, self._limits.max_bytes),
        )
        self._bookmarks = Bookmarks(config.kafka, group=self._name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(KafkaError):  # what is left open is aborted by the next process, or by its timeout
            self._writer.abort(on_wait=_once)
        self._writer.close()
        self._bookmarks.close()

    @property
    def samples_under_way(self) -> int:
        """In batches that are not committed yet."""
        return self._tally.samples + self._tally.live_samples

    def open(self, *, on_wait: OnWait) -> dict[int, Progress]:
        """By source partition, how far this replay came before. Raises OtherReplay, Fenced, KafkaError."""
        self._writer.init(on_wait=on_wait)
        topics, kafka = self._config.topics, self._config.kafka
        committed = self._bookmarks.read(topics.interactions, range(partition_count(kafka, topics.interactions)))
        place = f"{self._topic} of {topics.interactions}"
        found = {p: decode_progress(one, place=f"{place}[{p}]") for p, one in committed.items()}
        if not found and begin_offsets(kafka, self._topic) != end_offsets(kafka, self._topic):
            raise OtherReplay(
                f"topic '{self._topic}' is not empty, and no replay is known to have written it: choose another with "
                "--into, or delete it"
            )
        for partition, progress in found.items():
            if progress.begin != self._begin:
                raise OtherReplay(
                    f"topic '{self._topic}' holds a replay of {topics.interactions}[{partition}] from "
                    f"{progress.begin}, not from {self._begin}: choose another with --into, or delete it"
                )
        return found

    def begin_at(self, partition: int, *, seq: int, transforms: Transforms) -> None:
        """Of this partition, `seq` samples come before what is written next; `transforms` are yet to be done."""
        self._counts[partition] = seq
        self._builders[partition] = BatchBuilder(
            self._schema,
            topic=self._config.topics.interactions,
            partition=partition,
            seq=seq,
            limits=self._limits,
            indexer=self._indexer,
            transforms=transforms,
        )

    def take(self, partition: int, blocks: Iterable[SampleBlock], *, reached: JournalRecord, now_ms: int) -> None:
        """The samples up to a journal entry. Raises Diverged, TransactionAborted, Fenced."""
        for block in blocks:
            self._add(partition, block, now_ms=now_ms)
        if (count := self._counts[partition]) != reached.seq:
            raise Diverged(
                f"{self._config.topics.interactions}[{partition}]@{reached.resume}: the live run had made "
                f"{reached.seq} samples by commit {reached.commit}, the replay {count}. Nothing of this was "
                "written. Use the configuration that the live run had (events, features, labels, batch.max_bytes)"
            )
        self._reached[partition] = self._progress(reached.commit, reached.resume, reached.seq)

    def take_archived(
        self, partition: int, block: SampleBlock, *, after: Progress, file: tuple[int, int], now_ms: int
    ) -> Progress:
        """Samples of the file that begins at this place of the live batches; returns how far the partition is then.

        Raises ReplayError (a sample that does not fit into a batch), TransactionAborted, Fenced.
        """
        if large := self._add(partition, block, now_ms=now_ms):
            raise ReplayError(
                f"{self._config.topics.interactions}[{partition}]@{large[0].offset}: the sample has {large[0].size} "
                f"bytes, and batches here have at most {self._limits.max_bytes}: raise batch.max_bytes to that of the "
                "live run, and max.message.bytes of the topic"
            )
        resume = max(after.resume, int(block.offsets.max()) + 1)
        progress = self._progress(0, resume, self._counts[partition], file=file)
        self._reached[partition] = progress
        return progress

    def copy(self, batch: LiveBatch, *, after: Progress) -> Progress:
        """A live batch as it stands; returns how far the partition is then. Raises TransactionAborted, Fenced."""
        self._begin_transaction()
        place = batch.partition % self._num_partitions
        self._writer.send(self._topic, batch.value, partition=place, headers=batch.headers)
        self._tally.live_batches += 1
        self._tally.live_samples += batch.num_samples
        self._tally.bytes += len(batch.value)
        progress = self._progress(after.commit, after.resume, batch.seq + batch.num_samples, live=batch.offset + 1)
        self._reached[batch.partition] = progress
        return progress

    def commit(self, *, now_ms: int, on_wait: OnWait) -> Tally:
        """All that was reached; returns what it held. Raises TransactionAborted (`abort` must follow), Fenced."""
        for partition, builder in self._builders.items():
            self._send(partition, builder.flush(now_ms=now_ms))
        if self._reached:
            self._begin_transaction()
            offsets = {partition: encode_progress(progress) for partition, progress in self._reached.items()}
            self._writer.send_offsets(
                self._config.topics.interactions, offsets, metadata=self._bookmarks.metadata(), on_wait=on_wait
            )
            self._writer.commit(on_wait=on_wait)
        self._reached.clear()
        done, self._tally = self._tally, Tally()
        return done

    def abort(self, *, on_wait: OnWait) -> None:
        """Drop everything that is not committed. Raises Fenced."""
        self._writer.abort(on_wait=on_wait)
        self._builders.clear()
        self._reached.clear()
        self._tally = Tally()

    def _progress(
        self, commit: int, resume: int, seq: int, *, live: int | None = None, file: tuple[int, int] | None = None
    ) -> Progress:
        return Progress(begin=self._begin, commit=commit, resume=resume, seq=seq, live=live, file=file)

    def _add(self, partition: int, block: SampleBlock, *, now_ms: int) -> list[LargeSample]:
        """Returns the samples that no batch can hold."""
        added = self._builders[partition].add(block, now_ms=now_ms)
        self._counts[partition] += block.num_samples - len(added.too_large)
        self._send(partition, added.batches)
        return added.too_large

    def _begin_transaction(self) -> None:
        if not self._writer.in_transaction:
            self._writer.begin()

    def _send(self, partition: int, batches: Iterable[BuiltBatch]) -> None:
        for built in batches:
            self._begin_transaction()
            self._writer.send(self._topic, built.payload, partition=partition % self._num_partitions)
            self._tally.batches += 1
            self._tally.samples += built.num_samples
            self._tally.bytes += len(built.payload)


def _once(message: str) -> None:
    """Do not wait."""
    raise BrokerUnavailable(message)


def _make_topic(config: Config, topic: str) -> None:
    """Create the target where it is missing, as the topic of the live batches is made."""
    topics = config.topics
    taken = {spec.name for spec in topic_specs(config)} | {topics.control}
    if topic in taken:
        raise ReplayError(f"--into {topic}: that is a topic of the live run; name one of the replay's own")
    spec = next(spec for spec in topic_specs(config) if spec.name == topics.batches)
    try:
        partitions = partition_count(config.kafka, topics.batches)
    except TopicMissing:
        partitions = topics.partitions
    try:
        create_topic(config.kafka, topic, partitions=partitions, replication=topics.replication, settings=spec.settings)
    except TopicExists:
        return


def _limits(config: Config, topic: str) -> BatchLimits:
    """Those of the live run, which decide what is too large a sample."""
    try:
        limit = _largest(config, config.topics.batches)
    except TopicMissing:
        limit = config.batch.max_bytes
    limits = BatchLimits(config.batch.max_samples, min(config.batch.max_bytes, limit))
    if (takes := _largest(config, topic)) < limits.max_bytes:
        raise ReplayError(
            f"topic '{topic}' takes batches of at most {takes} bytes (max.message.bytes), those of the live run may "
            f"have {limits.max_bytes}: raise it to {limits.max_bytes + RECORD_OVERHEAD_BYTES}"
        )
    return limits


def _largest(config: Config, topic: str) -> int:
    return int(topic_settings(config.kafka, topic).get("max.message.bytes", 1_048_588)) - RECORD_OVERHEAD_BYTES
