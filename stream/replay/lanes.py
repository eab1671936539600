"""The partitions of a replay side by side: the one whose event time is least goes first, as it was in life."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from stream.partition import cut_block
from stream.records import RecordBlock, SampleBlock
from stream.replay.history import Records
from stream.replay.partition import Emitted, ReplayPartition

MAX_WAITING = 50_000
"""Records of one partition that wait for the others before it is paused."""


@dataclass(slots=True)
class Lane:
    """One partition: what was read and not processed, and what came out since the last journal entry."""

    partition: ReplayPartition
    blocks: deque[RecordBlock] = field(default_factory=deque)
    waiting: int = 0
    paused: bool = False
    held: list[SampleBlock] = field(default_factory=list)

    def queue(self, block: RecordBlock) -> None:
        """Behind what waits."""
        self.blocks.append(block)
        self.waiting += len(block.offsets)

    def take(self, most: int) -> RecordBlock:
        """The next records, at most so many."""
        block = self.blocks.popleft()
        if len(block.offsets) > most:
            self.blocks.appendleft(cut_block(block, most, len(block.offsets)))
            block = cut_block(block, 0, most)
        self.waiting -= len(block.offsets)
        return block

    def clear(self) -> None:
        """Forget what waits: it is to be read again from elsewhere."""
        self.blocks.clear()
        self.waiting = 0


class Lanes:
    """All lanes of one replay, fed by one reader."""

    def __init__(self, records: Records, partitions: Iterable[ReplayPartition]) -> None:
        self._records = records
        self._lanes = {partition.number: Lane(partition) for partition in partitions}

    def fill(self) -> None:
        """Read on. Raises OffsetOutOfRange, TopicMissing, KafkaError."""
        for block in self._records.poll():
            lane = self._lanes.get(block.partition)
            if lane is not None and not lane.partition.done:
                lane.queue(block)
        for number, lane in self._lanes.items():
            full = lane.partition.done or lane.waiting > (MAX_WAITING // 2 if lane.paused else MAX_WAITING)
            if full != lane.paused:
                (self._records.pause if full else self._records.resume)(number)
                lane.paused = full

    def next(self) -> Lane | None:
        """The lane to go on with; None when all are done."""
        under_way = [lane for lane in self._lanes.values() if not lane.partition.done]
        return min(under_way, key=lambda lane: lane.partition.event_time_ms, default=None)

    def step(self, lane: Lane, *, most: int) -> list[Emitted]:
        """Process at most so many records of the lane; nothing where nothing has arrived."""
        partition = lane.partition
        if lane.blocks:
            block = lane.take(most)
            read_to = int(block.offsets[-1]) + 1
            emitted = partition.feed(block, read_to=read_to)
        else:
            read_to = max(partition.position, self._records.positions()[partition.number])
            emitted = partition.feed_nothing(read_to=read_to)
        if partition.position != read_to and not partition.done:
            lane.clear()
            self._records.seek(partition.number, partition.position)
        return emitted

    def needs_records(self, lane: Lane) -> bool:
        """Whether the lane can only go on when more is read."""
        return not lane.blocks
