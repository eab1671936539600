"""One partition of a replay: the live run made again, entry of the journal by entry. No I/O and no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from stream.journal import Advance, JournalRecord, Parameters
from stream.partition import cut_block
from stream.pipeline import PartitionPipeline
from stream.records import CommitPoint, PipelineOutput, RecordBlock
from stream.recovery import START
from stream.replay.stretch import Stretch

MakePipeline = Callable[[Parameters, CommitPoint], PartitionPipeline]


class Emitted(NamedTuple):
    """What came out, or the journal entry that was reached: everything before it is out."""

    output: PipelineOutput | None = None
    reached: JournalRecord | None = None


@dataclass(slots=True)
class _Way:
    """What is to be done when every record before `position` has been processed; one of the four."""

    position: int
    advance: Advance | None = None
    live: bool = False
    """The rebuild ends here."""
    reached: JournalRecord | None = None
    anew: tuple[Parameters, CommitPoint] | None = None
    """A pipeline takes the place of the old one; the next ways rebuild it."""


class ReplayPartition:
    """Gives the samples of the stretch in the order in which the live run gave them.

    Where the live run began anew, because an operator accepted a loss or changed the session parameters, so does this.
    """

    def __init__(self, number: int, *, stretch: Stretch, make_pipeline: MakePipeline) -> None:
        self.number = number
        self._make_pipeline = make_pipeline
        start = stretch.start.record
        point = CommitPoint(start.offset, start.watermark_ms)
        self._pipeline = make_pipeline(start.parameters, point)
        self._ways = deque(_rebuild(start, stretch.advances))
        self._silent = True
        before, advances = start, list(stretch.advances)
        for entry in stretch.entries:
            advances += entry.record.advances
            self._ways.extend(_ways(entry.record, before=before, advances=advances))
            before = entry.record
        self._read_to = point.offset

    @property
    def position(self) -> int:
        """The next offset that is wanted."""
        return max(self._pipeline.position, self._read_to)

    @property
    def done(self) -> bool:
        """Whether the last entry of the stretch was reached."""
        return not self._ways

    @property
    def silent(self) -> bool:
        """Whether it is being rebuilt: nothing comes out."""
        return self._silent

    @property
    def event_time_ms(self) -> int:
        """The greatest event time so far."""
        return self._pipeline.max_event_time_ms

    def feed(self, block: RecordBlock, *, read_to: int) -> list[Emitted]:
        """Process records; nothing but them lies between `position` and `read_to`.

        Afterwards `position` is behind `read_to`, unless the pipeline began anew: then that is what is wanted next.
        """
        emitted: list[Emitted] = []
        done = 0
        while self._ways:
            way = self._ways[0]
            cut = max(done, int(np.searchsorted(block.offsets, way.position)))
            if done < cut:
                self._out(self._pipeline.feed(cut_block(block, done, cut)), emitted)
                done = cut
            if max(self._pipeline.position, self._read_to, read_to) < way.position:
                self._read_to = max(self._read_to, read_to)
                break
            self._ways.popleft()
            if way.anew is not None:
                self._begin_anew(*way.anew)
                return emitted
            self._take(way, emitted)
        return emitted

    def feed_nothing(self, *, read_to: int) -> list[Emitted]:
        """There is no record between `position` and `read_to`."""
        nothing = np.empty(0, np.int64)
        return self.feed(RecordBlock(self.number, nothing, nothing, [], []), read_to=read_to)

    def _take(self, way: _Way, emitted: list[Emitted]) -> None:
        if way.advance is not None:
            self._out(self._pipeline.advance(way.advance.watermark_ms), emitted)
        if way.live:
            self._silent = False
        if way.reached is not None:
            emitted.append(Emitted(reached=way.reached))

    def _begin_anew(self, parameters: Parameters, point: CommitPoint) -> None:
        self._pipeline = self._make_pipeline(parameters, point)
        self._read_to = point.offset
        self._silent = True

    def _out(self, output: PipelineOutput, emitted: list[Emitted]) -> None:
        if not self._silent:
            emitted.append(Emitted(output))


def _rebuild(record: JournalRecord, advances: Iterable[Advance]) -> list[_Way]:
    """As a worker that takes over behind this commit."""
    within = [a for a in advances if a.position >= record.offset] if record.offset < record.resume else []
    return [*(_Way(a.position, advance=a) for a in within), _Way(record.resume, live=True)]


def _ways(record: JournalRecord, *, before: JournalRecord, advances: Iterable[Advance]) -> list[_Way]:
    """From one entry to the next; `advances` are all so far."""
    end = _Way(record.resume, reached=record)
    if record.note and record.note != START:
        point = CommitPoint(record.offset, record.watermark_ms)
        return [_Way(before.resume, anew=(record.parameters, point)), *_rebuild(record, advances), end]
    ways = [_Way(a.position, advance=a) for a in record.advances]
    if record.parameters != before.parameters:
        point = CommitPoint(before.offset, before.watermark_ms)
        anew = _Way(before.resume, anew=(record.parameters, point))
        return [anew, _Way(before.resume, live=True), *ways, end]
    return [*ways, end]
