"""The open transaction: output, journal and source offsets, all of it or nothing.

1. `begin` takes the group metadata: who we are while this transaction is made.
2. Batches, values, late and quarantined records are handed over as they come.
3. `commit` adds one journal record per partition, with a snapshot where one is due, then the source offsets, then
   commits until the outcome is known.

A crash before 3 ends leaves nothing of it; the broker aborts what is open after `transaction_timeout_ms`. A crash
after it leaves everything. Values become known to other workers only behind 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from stream.builder import BuiltBatch, LargeSample
from stream.config import TopicsConfig
from stream.counters import Tally
from stream.indexer import Indexer
from stream.journal import JournalMarks, encode_record
from stream.kafka import GroupMetadata, TransactionAborted, TransactionalWriter
from stream.partition import OwnedPartition, Source
from stream.records import PipelineOutput, Rejected
from stream.rejects import reject_record
from stream.snapshots import Chunk, Snapshots

CrashPoint = Callable[[str], object]
"""Hears of every point at which a crash is interesting; for tests that kill the process there."""


Originals = Callable[[int, Sequence[Rejected]], list[Rejected]]
"""The same rejects of a partition with their records' own bytes, read again."""


@dataclass(frozen=True, slots=True)
class TopicLayout:
    """Partitions of the output topics, and the largest record that `late` and `quarantine` take."""

    batches: int
    values: int
    journal: int
    snapshots: int
    late: int
    quarantine: int
    late_bytes: int
    quarantine_bytes: int


class OpenTransaction:
    """Everything that one commit of the worker holds. One at a time, from one thread."""

    def __init__(
        self,
        writer: TransactionalWriter,
        *,
        topics: TopicsConfig,
        layout: TopicLayout,
        indexer: Indexer,
        membership: Callable[[], GroupMetadata],
        originals: Originals,
        crash_point: CrashPoint,
    ) -> None:
        self._writer = writer
        self._topics = topics
        self._layout = layout
        self._indexer = indexer
        self._membership = membership
        self._originals = originals
        self._crash_point = crash_point
        self._metadata: GroupMetadata | None = None
        self.tally = Tally()

    def begin(self) -> GroupMetadata:
        """Open it, unless it is; returns who opened it.

        Raises TransactionAborted while this process is not a member of its group.
        """
        if self._metadata is None or not self._writer.in_transaction:
            self._metadata = self._membership()
            if self._metadata.generation < 0:
                raise TransactionAborted("this worker is not a member of its group at the moment")
            self._writer.begin()
            self._crash_point("begun")
        return self._metadata

    def add(self, partition: OwnedPartition, output: PipelineOutput, *, now_ms: int) -> None:
        """What a live partition gave. Raises TransactionAborted, Fenced."""
        self.tally.saw(output.counts)
        quarantined = output.quarantined
        if output.samples is not None:
            added = partition.builder.add(output.samples, now_ms=now_ms)
            self._add_batches(partition.number, added.batches)
            if added.too_large:
                quarantined = [*quarantined, *self._too_large(partition.number, added.too_large)]
        late = self._with_bytes(partition.number, output.late)
        self._add_rejected(partition.number, late=late, quarantined=quarantined)

    def commit(
        self,
        partitions: Sequence[OwnedPartition],
        *,
        source: Source,
        now_ms: int,
        on_wait: Callable[[str], object],
    ) -> Tally:
        """Flush and commit what is here for `partitions`; returns what was done.

        Raises TransactionAborted (`abort` must follow), Fenced (start anew).
        """
        metadata = self.begin()
        for partition in partitions:
            self._add_batches(partition.number, partition.builder.flush(now_ms=now_ms))
        states = {partition: partition.commit_state(source) for partition in partitions}
        for partition, state in states.items():
            self._add_snapshot(partition, state.chunks)
            self._writer.send(
                self._topics.journal,
                encode_record(state.record),
                key=str(partition.number).encode(),
                partition=partition.number % self._layout.journal,
                on_offset=_note_offset(partition.marks),
            )
        self._crash_point("journal_sent")
        offsets = {partition.number: state.committed for partition, state in states.items()}
        self._writer.send_offsets(source.topic, offsets, metadata=metadata, on_wait=on_wait)
        self._crash_point("offsets_sent")
        self._writer.commit(on_wait=on_wait)
        self._crash_point("committed")
        for partition, state in states.items():
            partition.was_committed(state)
        self._indexer.committed()
        done, self.tally = self.tally, Tally()
        return done

    def abort(self, *, on_wait: Callable[[str], object]) -> None:
        """Nothing of it will ever be seen. Raises Fenced."""
        self._writer.abort(on_wait=on_wait)
        self._indexer.aborted()
        self.tally = Tally()

    def _add_batches(self, partition: int, batches: Iterable[BuiltBatch]) -> None:
        for built in batches:
            self.begin()
            for value in built.values:
                self._writer.send(
                    self._topics.values, value.blob, key=value.key, partition=value.row_id % self._layout.values
                )
            self._writer.send(self._topics.batches, built.payload, partition=partition % self._layout.batches)
            self.tally.built(
                built.stats,
                num_bytes=len(built.payload),
                values=len(built.values),
                event_times_ms=built.event_times_ms,
            )
            self._crash_point("batch_sent")

    def _add_snapshot(self, partition: OwnedPartition, chunks: Sequence[Chunk]) -> None:
        for chunk in chunks:
            self._writer.send(
                self._topics.snapshots,
                chunk.value,
                key=chunk.key,
                partition=partition.number % self._layout.snapshots,
                on_offset=_note_offset(partition.snapshots),
            )
            self.tally.counters.snapshot_bytes += len(chunk.value)
            self._crash_point("snapshot_sent")

    def _add_rejected(self, partition: int, *, late: Sequence[Rejected], quarantined: Sequence[Rejected]) -> None:
        layout, topics = self._layout, self._topics
        for records, topic, count, limit in (
            (late, topics.late, layout.late, layout.late_bytes),
            (quarantined, topics.quarantine, layout.quarantine, layout.quarantine_bytes),
        ):
            for rejected in records:
                self.begin()
                record = reject_record(rejected, topic=topics.interactions, partition=partition, max_bytes=limit)
                self._writer.send(
                    topic, record.value, key=record.key, partition=partition % count, headers=record.headers
                )

    def _too_large(self, partition: int, samples: Sequence[LargeSample]) -> list[Rejected]:
        self.tally.counters.samples -= len(samples)
        self.tally.counters.quarantined += len(samples)
        text = "the sample alone makes a batch of {} bytes, more than batch.max_bytes"
        large = [Rejected(one.offset, -1, "too_large", text.format(one.size), None, None) for one in samples]
        return self._originals(partition, large)

    def _with_bytes(self, partition: int, late: Sequence[Rejected]) -> Sequence[Rejected]:
        """A snapshot has the bytes of engagements only; an event that was accepted never had none."""
        lost = {i: one for i, one in enumerate(late) if one.value is None}
        if not lost:
            return late
        found = dict(zip(lost, self._originals(partition, list(lost.values())), strict=True))
        return [found.get(i, one) for i, one in enumerate(late)]


def _note_offset(marks: JournalMarks | Snapshots) -> Callable[[int], None]:
    def note(offset: int) -> None:
        marks.next_offset = max(marks.next_offset, offset + 1)

    return note
