"""One owned source partition: silent while it is rebuilt, then live; what it owes to the next commit."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from stream.builder import BatchBuilder
from stream.idle import Silence
from stream.journal import Advance, CommitMetadata, JournalMarks, JournalRecord, Parameters, encode_metadata
from stream.kafka import Committed
from stream.pipeline import PartitionPipeline
from stream.records import NO_WATERMARK, CommitPoint, PipelineOutput, RecordBlock
from stream.recovery import Plan
from stream.snapshots import Chunk, SnapshotPart, Snapshots


@dataclass(frozen=True, slots=True)
class Source:
    """The topic that partitions belong to, as the journal names it, and the broker's id of the journal."""

    topic: str
    topic_id: str
    partitions: int
    journal_id: str = ""


@dataclass(frozen=True, slots=True)
class CommitState:
    """What one partition adds to a transaction besides its output."""

    record: JournalRecord
    committed: Committed
    chunks: tuple[Chunk, ...] = ()
    """Records of the snapshots topic."""


class OwnedPartition:
    """State of one partition between its assignment and its loss.

    The pipeline begins at the plan's start or, restored from a snapshot, behind it.
    """

    def __init__(
        self,
        number: int,
        *,
        plan: Plan,
        pipeline: PartitionPipeline,
        builder: BatchBuilder,
        marks: JournalMarks,
        silence: Silence,
        snapshots: Snapshots,
    ) -> None:
        self.number = number
        self.pipeline = pipeline
        self.builder = builder
        self.marks = marks
        self.silence = silence
        self.snapshots = snapshots
        self.plan = plan
        self.parameters: Parameters = plan.parameters
        self.dirty = bool(plan.note)
        self.end = plan.resume
        """End of the partition as the broker last told."""
        self.reached = 0
        """Offset up to which nothing is left to read, behind control records."""
        self.committed = CommitPoint(plan.start.offset, plan.start.watermark_ms)
        self.committed_resume = plan.resume
        self.committed_seq = plan.seq
        self.closed_all = False
        """With a plan to close all: whether that was done."""
        self._note = plan.note
        self._commits = plan.commit
        self._replay: deque[Advance] = deque(plan.advances)
        self._advances: list[Advance] = []
        self.rebuilding = True
        self._settle()

    @property
    def resume(self) -> int:
        """Every record before this offset is processed."""
        return max(self.plan.resume, self.pipeline.position)

    @property
    def must_close_all(self) -> bool:
        """Rebuilt under old parameters: no further record may be processed before every session is closed."""
        return self.plan.close_all and not self.closed_all and not self.rebuilding

    @property
    def at_end(self) -> bool:
        """Whether nothing is left to read, as far as the broker last told."""
        return not self.rebuilding and max(self.resume, self.reached) >= self.end

    @property
    def lag(self) -> int:
        """Records (or control records) between the position and the end."""
        return max(0, self.end - max(self.pipeline.position, self.reached))

    def feed(self, block: RecordBlock) -> PipelineOutput:
        """Process records; while the partition is rebuilt nothing comes out.

        Records behind a rebuild that must close all are dropped: they have to be read again.
        """
        if self.rebuilding:
            block = self._rebuild(block)
        if not block.offsets.size or self.must_close_all:
            return PipelineOutput()
        self.dirty = True
        return self.pipeline.feed(block)

    def reached_end(self, offset: int) -> None:
        """There is nothing left before `offset`, the end."""
        self.reached = offset
        if self.rebuilding and offset >= self.plan.resume:
            self._finish_rebuild()

    def advance(self, watermark_ms: int) -> PipelineOutput:
        """Raise the watermark and remember it for the journal."""
        position = self.resume
        if self._advances and self._advances[-1].position == position:
            self._advances.pop()
        self._advances.append(Advance(position, watermark_ms))
        self.dirty = True
        return self.pipeline.advance(watermark_ms)

    def age(self, asked_ms: int) -> int | None:
        """The watermark that silence has earned, None where it would close nothing. See Silence.confirmed."""
        watermark_ms = self.pipeline.watermark_ms
        earned_ms = self.silence.confirmed(asked_ms, watermark_ms=watermark_ms)
        closes_ms = self.pipeline.next_close_watermark_ms()
        if earned_ms is None or closes_ms is None or watermark_ms == NO_WATERMARK:
            return None
        return earned_ms if earned_ms >= closes_ms else None

    def commit_state(self, source: Source) -> CommitState:
        """What has to go into the transaction. Nothing changes until `was_committed`, but for marks and snapshots."""
        point = self._commit_point()
        resume = self.resume
        snapshot = self._snapshot()
        self.marks.wrote(resume=resume)
        record = JournalRecord(
            topic=source.topic,
            topic_id=source.topic_id,
            partition=self.number,
            partitions=source.partitions,
            commit=self._commits + 1,
            offset=point.offset,
            watermark_ms=point.watermark_ms,
            resume=resume,
            seq=self.builder.seq,
            advances=tuple(self._advances),
            parameters=self.parameters,
            note=self._note,
            snapshot=snapshot.ref,
        )
        metadata = CommitMetadata(
            commit=record.commit,
            resume=resume,
            watermark_ms=record.watermark_ms,
            seq=record.seq,
            journal=self.marks.covering(point.offset),
            journal_id=source.journal_id,
            partitions=source.partitions,
        )
        return CommitState(record, Committed(point.offset, encode_metadata(metadata)), snapshot.chunks)

    def was_committed(self, state: CommitState) -> None:
        """The transaction that held `state` is in force."""
        self._commits = state.record.commit
        self._advances.clear()
        self._note = ""
        self.committed = CommitPoint(state.record.offset, state.record.watermark_ms)
        self.committed_resume = state.record.resume
        self.committed_seq = state.record.seq
        self.dirty = False

    def restart_pipeline(self, pipeline: PartitionPipeline, *, parameters: Parameters) -> None:
        """Go on with other parameters, when no session is open."""
        self.pipeline = pipeline
        self.parameters = parameters
        self.closed_all = True
        self.snapshots.forget()

    def _snapshot(self) -> SnapshotPart:
        if self.rebuilding:
            return SnapshotPart()
        return self.snapshots.take(self.pipeline, commit=self._commits + 1)

    def _commit_point(self) -> CommitPoint:
        if self.rebuilding:
            return self.plan.start
        if self.pipeline.open_sessions:
            return self.pipeline.commit_point()
        return CommitPoint(self.resume, self.pipeline.watermark_ms)

    def _rebuild(self, block: RecordBlock) -> RecordBlock:
        """Feed what lies before `resume`, with the advances at their places; returns the rest."""
        done = 0
        while self._replay:
            cut = int(np.searchsorted(block.offsets, self._replay[0].position))
            self._feed_silently(block, done, cut)
            done = cut
            if cut == len(block.offsets) and self.pipeline.position < self._replay[0].position:
                return cut_block(block, cut, cut)
            self.pipeline.advance(self._replay.popleft().watermark_ms)
        cut = int(np.searchsorted(block.offsets, self.plan.resume))
        self._feed_silently(block, done, cut)
        if cut < len(block.offsets) or self.pipeline.position >= self.plan.resume:
            self._finish_rebuild()
        return cut_block(block, cut, len(block.offsets))

    def _feed_silently(self, block: RecordBlock, start: int, stop: int) -> None:
        if start < stop:
            self.pipeline.feed(cut_block(block, start, stop))

    def _settle(self) -> None:
        """Nothing to rebuild: live at once."""
        if self.pipeline.position >= self.plan.resume:
            self._finish_rebuild()

    def _finish_rebuild(self) -> None:
        while self._replay:
            self.pipeline.advance(self._replay.popleft().watermark_ms)
        self.rebuilding = False


def cut_block(block: RecordBlock, start: int, stop: int) -> RecordBlock:
    """Records [start, stop) of a block."""
    if start == 0 and stop == len(block.offsets):
        return block
    return RecordBlock(
        block.partition,
        block.offsets[start:stop],
        block.append_times_ms[start:stop],
        block.keys[start:stop],
        block.values[start:stop],
    )
