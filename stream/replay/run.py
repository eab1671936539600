"""A replay: a stretch of the interactions' history through the pipeline once more, into a topic of its own.

The samples of a partition are those of the live run, in its order: the journal says when it committed, when silence
let time go on, under which parameters, and how many samples it had made, which is compared at every entry. Killed at
any moment and started again, it goes on behind what it committed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from threading import Event

import msgspec

from stream.config import Config
from stream.context import Clock
from stream.journal import Parameters
from stream.pipeline import PartitionPipeline, PipelineConfig
from stream.records import CommitPoint
from stream.replay.errors import OtherConfig, ReplayError
from stream.replay.history import History
from stream.replay.lanes import Lane, Lanes
from stream.replay.live import Joint
from stream.replay.pace import Pace, Strides
from stream.replay.partition import Emitted, ReplayPartition
from stream.replay.progress import Progress
from stream.replay.request import PartitionReport, ReplayRequest
from stream.replay.runner import Done, Runner
from stream.replay.stretch import Bound, Stretch, choose, go_on
from stream.replay.target import Target
from stream.transforms import Transforms


class Replay(Runner):
    """A replay of events, made again as the journal says."""

    def __init__(self, config: Config, request: ReplayRequest, *, history: History, clock: Clock, stop: Event) -> None:
        super().__init__(config, request, begin=str(request.first), clock=clock, stop=stop)
        self._history = history
        self._parameters = Parameters.of(config)
        self._pace = Pace(request.speed)
        self._transforms = Transforms(config.features, config.derived)
        self._strides = Strides(is_bound=self._pace.is_bound)
        self._stretches: dict[int, Stretch] = {}
        self._positions: dict[int, int] = {}

    def _make(self, target: Target, progress: Mapping[int, Progress]) -> None:
        self._stretches = self._choose(progress)
        for number, stretch in self._stretches.items():
            target.begin_at(number, seq=stretch.start.record.seq, transforms=self._transforms)
        self._replay(target)

    # The stretch.

    def _choose(self, progress: Mapping[int, Progress]) -> dict[int, Stretch]:
        """By partition, what is left of the stretch."""
        begins = self._history.begins()
        numbers = self._request.partitions or tuple(begins)
        if missing := [number for number in numbers if number not in begins]:
            raise ReplayError(f"{self._config.topics.interactions} has no partition {missing[0]}: it has {len(begins)}")
        first, last = self._offsets(self._request.first), self._offsets(self._request.last)
        histories = self._history.entries(numbers)
        chosen = {}
        for number in numbers:
            if number in progress and progress[number].live is not None:
                self._note_live(number, progress[number])
                continue
            place, begin = f"{self._config.topics.interactions}[{number}]", begins[number]
            end = last.get(number)
            if number in progress:
                commit = progress[number].commit
                chosen[number] = go_on(histories[number], place=place, begin=begin, commit=commit, last=end)
            else:
                chosen[number] = choose(histories[number], place=place, begin=begin, first=first.get(number), last=end)
            self._check_schema(place, chosen[number])
            self._note(number, chosen[number])
        return chosen

    def _offsets(self, bound: Bound) -> Mapping[int, int]:
        """By partition, the offset of a bound; empty where there is none."""
        if bound.time_ms is not None:
            return self._history.at(bound.time_ms)
        if bound.offset is None:
            return {}
        return dict.fromkeys(self._request.partitions, bound.offset)

    def _check_schema(self, place: str, stretch: Stretch) -> None:
        for record in [stretch.start.record, *(entry.record for entry in stretch.entries)]:
            if record.parameters.schema != self._parameters.schema:
                raise OtherConfig(
                    f"{place}@{record.resume}: commit {record.commit} was made with other events, features or labels "
                    "than those of this configuration: replay it with the recd.yaml of that time"
                )

    def _note(self, number: int, stretch: Stretch) -> None:
        start, last = stretch.start.record, stretch.last.record
        known = self.report.partitions.setdefault(
            number, PartitionReport(start.resume, last.resume, start.seq, last.seq)
        )
        known.to_offset, known.to_sample = last.resume, max(known.to_sample, last.seq)
        self._positions[number] = start.resume

    def _note_live(self, number: int, progress: Progress) -> None:
        """An earlier run was at the live batches already."""
        here = PartitionReport(progress.resume, progress.resume, progress.seq, progress.seq)
        self.report.partitions.setdefault(number, here)

    def _replay(self, target: Target) -> None:
        """Every partition to the end of its stretch, or until told to stop."""
        partitions = [
            ReplayPartition(number, stretch=stretch, make_pipeline=self._pipeline_maker(number))
            for number, stretch in self._stretches.items()
            if stretch.entries
        ]
        records = self._history.open({partition.number: partition.position for partition in partitions})
        try:
            lanes = Lanes(records, partitions)
            while (lane := lanes.next()) is not None and not self._stop.is_set():
                if lanes.needs_records(lane):
                    lanes.fill()
                waited = self._wait(lane)
                if not waited:
                    for emitted in lanes.step(lane, most=self._strides.next(waited=waited)):
                        self._take(target, lane, emitted)
                else:
                    self._strides.next(waited=True)
                self._commit_when_due(target)
        finally:
            records.close()
        self._commit(target)

    def _wait(self, lane: Lane) -> bool:
        """Sleep a little where it is not time yet to go on."""
        if lane.partition.silent:
            return False
        wait_ms = self._pace.wait_ms(lane.partition.event_time_ms, now_ms=self._clock.monotonic_ms())
        if wait_ms:
            self._nap(wait_ms)
        return wait_ms > 0

    def _take(self, target: Target, lane: Lane, emitted: Emitted) -> None:
        """Samples wait until the entry that they belong to is reached: a transaction ends between two entries."""
        if emitted.output is not None:
            self.report.saw(emitted.output.counts)
            if emitted.output.samples is not None:
                lane.held.append(emitted.output.samples)
        if emitted.reached is not None:
            number = lane.partition.number
            target.take(number, lane.held, reached=emitted.reached, now_ms=self._clock.wall_ms())
            lane.held.clear()
            self._positions[number] = emitted.reached.resume

    def _pipeline_maker(self, number: int) -> Callable[[Parameters, CommitPoint], PartitionPipeline]:
        own = PipelineConfig.of(self._config)

        def make(parameters: Parameters, start: CommitPoint) -> PartitionPipeline:
            session = msgspec.structs.replace(own.session, **msgspec.structs.asdict(parameters.session))
            return PartitionPipeline(replace(own, session=session), partition=number, start=start)

        return make

    # Behind the stretch.

    def _joints(self, progress: Mapping[int, Progress]) -> Mapping[int, Joint]:
        joints = {number: Joint(one, 0) for number, one in progress.items() if one.live is not None}
        for number, stretch in self._stretches.items():
            last = stretch.last.record
            here = Progress(begin=self._begin, commit=last.commit, resume=last.resume, seq=last.seq)
            joints[number] = Joint(here, stretch.last.written_ms)
        return joints

    def _done(self) -> Done:
        done = sum(self._positions[p] - s.start.record.resume for p, s in self._stretches.items())
        return Done(done, sum(stretch.num_offsets for stretch in self._stretches.values()))
