"""A replay of archived samples: as they stand in the files, in the order in which the live run made them.

Nothing is joined, transformed or sampled again, so neither the events nor the journal are needed, and a configuration
whose sessions or labels changed since gives the same samples. A stretch begins and ends, by source partition, at the
first sample whose event arrived at or behind the bound; two stretches that meet share nothing and leave nothing out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from threading import Event

import msgspec
import numpy as np

from stream.archive.errors import ArchiveError
from stream.archive.sample_history import ArchivedSamples
from stream.archive.sample_reader import ArchivedBlock
from stream.builder import slice_samples
from stream.config import Config
from stream.context import Clock
from stream.kafka import partition_count, topic_id
from stream.records import NO_WATERMARK, SampleBlock
from stream.replay.errors import ReplayError
from stream.replay.live import Joint
from stream.replay.pace import Pace
from stream.replay.progress import Progress
from stream.replay.request import PartitionReport, ReplayRequest
from stream.replay.runner import Done, Runner
from stream.replay.stretch import Bound
from stream.replay.target import Target
from stream.transforms import Transforms

NO_TRANSFORMS = Transforms(())


class _Lane:
    """One partition of the batches topic: its files from some place on, block by block."""

    def __init__(self, archive: ArchivedSamples, partition: int, *, start: int) -> None:
        self._archive = archive
        self._files = [file for file in archive.files[partition] if file.next_offset > start]
        self._blocks = self._read()
        self.file = (partition, start)
        """Where the file of the waiting block begins."""
        self.event_time_ms = NO_WATERMARK
        """The greatest of what was taken."""
        self.num_rows = sum(file.rows for file in self._files)
        self.waiting = next(self._blocks, None)
        """None at the end."""

    def step(self, *, taken: int) -> None:
        """So many samples of the waiting block are done. Raises FileDamaged, OtherSchema."""
        if self.waiting is None:
            return
        block, count = self.waiting.samples, self.waiting.samples.num_samples
        self.event_time_ms = max(self.event_time_ms, int(block.event_times_ms[:taken].max(initial=NO_WATERMARK)))
        if taken < count:
            self.waiting = replace(
                self.waiting, seq=self.waiting.seq + taken, samples=slice_samples(block, taken, count)
            )
        else:
            self.waiting = next(self._blocks, None)

    def _read(self) -> Iterator[ArchivedBlock]:
        for file in self._files:
            self.file = (file.partition, file.first_offset)
            yield from self._archive.read(file)


class SampleReplay(Runner):
    """A replay of archived samples."""

    def __init__(
        self, config: Config, request: ReplayRequest, *, archive: ArchivedSamples, clock: Clock, stop: Event
    ) -> None:
        super().__init__(config, request, begin=f"{request.first} of the archived samples", clock=clock, stop=stop)
        self._archive = archive
        self._source = config.topics.interactions
        self._pace = Pace(request.speed)
        self._wanted: frozenset[int] = frozenset()
        self._reached: dict[int, Progress] = {}
        self._passed: dict[int, int] = {}
        """By source partition that has not begun: samples before the stretch."""
        self._ended: set[int] = set()
        self._others: set[str] = set()
        """Topics whose samples were passed over."""
        self._done_rows = self._num_rows = 0
        self.report.what = "archived samples"

    def _make(self, target: Target, progress: Mapping[int, Progress]) -> None:
        """See Runner. Raises ArchiveError where samples are missing, FileDamaged, OtherSchema."""
        self._wanted = self._sources()
        self._reached, self._passed, self._ended = {}, {}, set()
        for number, one in progress.items():
            self._go_on(target, number, one)
        lanes = [self._lane(partition, progress) for partition in self._archive.files]
        self._done_rows, self._num_rows = 0, sum(lane.num_rows for lane in lanes)
        while not self._stop.is_set() and len(self._ended) < len(self._wanted):
            waiting = [(lane, lane.waiting) for lane in lanes if lane.waiting is not None]
            if not waiting:
                break
            self._step(target, *min(waiting, key=lambda one: one[0].event_time_ms))
            self._commit_when_due(target)
        if self._others and not self._reached and not self._stop.is_set():
            raise ArchiveError(
                f"{self._archive.url}: no sample of {self._source}, its samples are of "
                f"{', '.join(sorted(self._others))} - at $.topics.interactions"
            )
        self._commit(target)

    def _sources(self) -> frozenset[int]:
        count = partition_count(self._config.kafka, self._source)
        if missing := [number for number in self._request.partitions if number >= count]:
            raise ReplayError(f"{self._source} has no partition {missing[0]}: it has {count}")
        return frozenset(self._request.partitions or range(count))

    def _lane(self, partition: int, progress: Mapping[int, Progress]) -> _Lane:
        """From the file on that an earlier run was at: what stands before it, it has committed or left out."""
        at = [one.file[1] for one in progress.values() if one.file is not None and one.file[0] == partition]
        return _Lane(self._archive, partition, start=max([self._archive.files[partition][0].first_offset, *at]))

    # Block by block.

    def _step(self, target: Target, lane: _Lane, block: ArchivedBlock) -> None:
        """What is due of the block that waits."""
        count = block.samples.num_samples
        first, last = self._chosen(block)
        wanted = slice_samples(block.samples, first, last)
        due = self._pace.num_due(wanted.event_times_ms, now_ms=self._clock.monotonic_ms())
        if wanted.num_samples and not due:
            self._nap(self._pace.wait_ms(int(wanted.event_times_ms[0]), now_ms=self._clock.monotonic_ms()))
            return
        if due:
            self._take(target, block, slice_samples(wanted, 0, due), seq=block.seq + first, file=lane.file)
        taken = first + due if due < wanted.num_samples else count
        if due == wanted.num_samples and last < count:
            self._ended.add(block.partition)
        self._done_rows += taken
        lane.step(taken=taken)

    def _chosen(self, block: ArchivedBlock) -> tuple[int, int]:
        """Which samples of the block belong to the stretch and are not done: [first, last)."""
        number, count = block.partition, block.samples.num_samples
        if block.topic != self._source:
            self._others.add(block.topic)
        if block.topic != self._source or number not in self._wanted or number in self._ended:
            return count, count
        if number in self._reached:
            first = max(0, self._reached[number].seq - block.seq)
        else:
            first = _first_behind(self._request.first, block.samples, none=count)
            self._passed[number] = block.seq + first
        first = min(first, count)
        if self._request.last == Bound():
            return first, count
        return first, first + _first_behind(
            self._request.last, slice_samples(block.samples, first, count), none=count - first
        )

    def _take(
        self, target: Target, block: ArchivedBlock, samples: SampleBlock, *, seq: int, file: tuple[int, int]
    ) -> None:
        number = block.partition
        if number not in self._reached:
            resume = int(samples.offsets.max()) + 1
            self._go_on(target, number, Progress(begin=self._begin, commit=0, resume=resume, seq=seq))
        before = self._reached[number]
        if before.seq != seq:
            raise ArchiveError(
                f"{self._archive.url}: behind sample {before.seq} of {self._source}[{number}] comes sample {seq}: what "
                f"lies between was never archived. Replay what comes after it into another topic, with --from"
            )
        after = target.take_archived(number, samples, after=before, file=file, now_ms=self._clock.wall_ms())
        self._reached[number] = after
        report = self.report.partitions[number]
        report.from_offset = min(report.from_offset, int(samples.offsets.min()))
        report.to_offset, report.to_sample = after.resume, after.seq
        self.report.events += samples.num_samples

    def _go_on(self, target: Target, number: int, progress: Progress) -> None:
        """Behind `progress`."""
        self._reached[number] = progress
        if progress.live is not None:
            self._ended.add(number)
        target.begin_at(number, seq=progress.seq, transforms=NO_TRANSFORMS)
        here = PartitionReport(progress.resume, progress.resume, progress.seq, progress.seq)
        self.report.partitions.setdefault(number, here)

    def _done(self) -> Done:
        return Done(self._done_rows, self._num_rows)

    # Behind the stretch.

    def _joints(self, progress: Mapping[int, Progress]) -> Mapping[int, Joint]:
        """Behind the last file of their partition, or, in a batches topic that was made anew, from its beginning."""
        kafka, batches = self._config.kafka, self._config.topics.batches
        num_places, same = partition_count(kafka, batches), topic_id(kafka, batches) == self._archive.topic_id
        joints = {}
        for number in self._wanted:
            files = self._archive.files.get(number % num_places, ()) if same else ()
            behind = files[-1].next_offset if files else 0
            seq = self._passed.get(number, 0)
            reached = self._reached.get(number) or Progress(begin=self._begin, commit=0, resume=0, seq=seq)
            if reached.live is None:
                reached = msgspec.structs.replace(reached, live=behind)
            joints[number] = Joint(reached, 0)
            self.report.partitions.setdefault(number, PartitionReport(0, 0, reached.seq, reached.seq))
        return joints


def _first_behind(bound: Bound, samples: SampleBlock, *, none: int) -> int:
    """The place of the first sample whose event arrived at the bound or later; `none` without one."""
    if bound.time_ms is not None:
        behind = samples.append_times_ms >= bound.time_ms
    elif bound.offset is not None:
        behind = samples.offsets >= bound.offset
    else:
        return 0
    return int(np.argmax(behind)) if behind.any() else none
