"""The live batches behind a replay: found by their count of samples, and checked to continue one another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dedup_cache import BatchError, wire
from stream.columns import batch_schema
from stream.config import Config
from stream.kafka import Message, Reader, begin_offsets, end_offsets, offsets_at
from stream.replay.errors import LiveGap, OtherConfig, ReplayError
from stream.replay.progress import Progress

POLL_MESSAGES = 1_000
MARGIN_MS = 60_000
"""How much the clocks of two producers may differ: the copy looks for its first batch so much earlier."""


@dataclass(frozen=True, slots=True)
class LiveBatch:
    """One record of the live batches."""

    partition: int
    """Source partition."""
    seq: int
    """Samples of the source partition before it."""
    num_samples: int
    offset: int
    value: bytes
    headers: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class Joint:
    """Where a source partition of the replay ends: the live batch that begins with sample `seq` comes next."""

    progress: Progress
    written_ms: int
    """When the live run committed that; only where `progress.live` is None."""


class LiveBatches:
    """Gives the live batches of some source partitions from their joints on, each exactly once."""

    def __init__(self, config: Config, joints: Mapping[int, Joint]) -> None:
        self._kafka = config.kafka
        self._topic = config.topics.batches
        self._source = config.topics.interactions
        self._digest = batch_schema(config).digest()
        self._next_seq = {partition: joint.progress.seq for partition, joint in joints.items()}
        self._begins = begin_offsets(self._kafka, self._topic)
        self._from_begin: set[int] = set()
        self._reader = Reader(self._kafka, topic=self._topic, positions=self._starts(joints))

    def poll(self, *, timeout_ms: int) -> list[LiveBatch]:
        """What comes next. Raises LiveGap, ReplayError (a record that is no batch), OffsetOutOfRange, TopicMissing."""
        found, sought = [], set()
        for message in self._reader.poll(max_messages=POLL_MESSAGES, timeout_ms=timeout_ms):
            batch = self._batch(message)
            if batch is None or message.partition in sought:
                continue
            if batch.seq > self._next_seq[batch.partition] and message.partition not in self._from_begin:
                sought.add(message.partition)
                self._from_begin.add(message.partition)
                self._reader.seek(message.partition, self._begins[message.partition])
            elif self._continues(batch):
                found.append(batch)
        return found

    def lag(self) -> int:
        """How many offsets are left to copy, as far as the broker says now. Raises BrokerUnavailable."""
        ends = end_offsets(self._kafka, self._topic)
        return sum(max(0, ends[p] - position) for p, position in self._reader.positions().items())

    def close(self) -> None:
        """Release the connection."""
        self._reader.close()

    def _starts(self, joints: Mapping[int, Joint]) -> dict[int, int]:
        """By partition of the live batches, an offset that none of the joints lies before, as far as is known."""
        starts: dict[int, int] = {}
        for partition, joint in joints.items():
            place = partition % len(self._begins)
            start = joint.progress.live
            if start is None:
                since = offsets_at(self._kafka, self._topic, time_ms=max(0, joint.written_ms - MARGIN_MS))
                start = since[place]
            starts[place] = min(starts.get(place, start), start)
        self._from_begin.update(place for place, start in starts.items() if start <= self._begins[place])
        return {place: max(start, self._begins[place]) for place, start in starts.items()}

    def _batch(self, message: Message) -> LiveBatch | None:
        """The batch in a record; None where it is of no partition that is asked for."""
        value = message.value or b""
        try:
            found = wire.read(value)
            metadata, num_samples = found.metadata, int(found.arrays["sample_ids"].shape[0])
            partition, seq = int(metadata["source_partition"]), int(metadata["seq"])
            source = metadata["source_topic"]
        except (BatchError, KeyError, ValueError) as error:
            place = f"{message.topic}[{message.partition}]@{message.offset}"
            raise ReplayError(f"{place}: not a batch of this version: {error}") from None
        if source != self._source or partition not in self._next_seq:
            return None
        if metadata["schema_digest"] != self._digest and seq >= self._next_seq[partition]:
            raise OtherConfig(
                f"{message.topic}[{message.partition}]@{message.offset}: the live run has gone over to batches of "
                f"schema {metadata['schema_digest']}, the replay writes {self._digest}: go on with the recd.yaml that "
                "it has now, into another topic"
            )
        return LiveBatch(partition, seq, num_samples, message.offset, value, message.headers)

    def _continues(self, batch: LiveBatch) -> bool:
        """Whether it is the next of its partition, and not one that is behind it. Raises LiveGap."""
        due = self._next_seq[batch.partition]
        if batch.seq + batch.num_samples <= due:
            return False
        if batch.seq != due:
            raise LiveGap(
                f"{self._topic}@{batch.offset}: the live batches of {self._source}[{batch.partition}] go on with "
                f"sample {batch.seq}, the replay ends at {due}: what lies between is not in the topic any more "
                "(retention). Replay again without --follow, then follow at once"
            )
        self._next_seq[batch.partition] = due + batch.num_samples
        return True
