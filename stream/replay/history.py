"""Where a replay reads from: the log and the journal as they stand in Kafka, or (stream.archive) in an archive."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, Self

import numpy as np

from stream.config import Config
from stream.journal import decode_record
from stream.kafka import Message, Reader, begin_offsets, end_offsets, offsets_at, topic_id
from stream.records import RecordBlock
from stream.replay.stretch import Entry

POLL_RECORDS = 10_000
POLL_MS = 100


class Records(Protocol):
    """Reads some partitions from some positions on."""

    def poll(self) -> list[RecordBlock]:
        """What comes next, at most one block a partition; may be nothing."""
        ...

    def positions(self) -> Mapping[int, int]:
        """By partition, the next offset to be read."""
        ...

    def seek(self, partition: int, offset: int) -> None:
        """Go on elsewhere."""
        ...

    def pause(self, partition: int) -> None:
        """Give nothing of this partition for a while (but for what has arrived)."""
        ...

    def resume(self, partition: int) -> None:
        """The end of `pause`."""
        ...

    def close(self) -> None:
        """Release what is held."""
        ...


class History(Protocol):
    """The records of `interactions` and the entries of its journal."""

    def begins(self) -> Mapping[int, int]:
        """By partition, the oldest offset that can be read."""
        ...

    def at(self, time_ms: int) -> Mapping[int, int]:
        """By partition, the offset of the first record whose timestamp is not before `time_ms`; the end without one."""
        ...

    def entries(self, partitions: Iterable[int]) -> Mapping[int, list[Entry]]:
        """By partition, its journal entries in order."""
        ...

    def open(self, positions: Mapping[int, int]) -> Records:
        """Read from there on. Nothing outside a journal entry's reach is asked for."""
        ...


class KafkaHistory:
    """The topics of the configuration."""

    def __init__(self, config: Config) -> None:
        self._kafka = config.kafka
        self._topics = config.topics

    def begins(self) -> Mapping[int, int]:
        """See History. Raises TopicMissing, BrokerUnavailable."""
        return begin_offsets(self._kafka, self._topics.interactions)

    def at(self, time_ms: int) -> Mapping[int, int]:
        """See History."""
        return offsets_at(self._kafka, self._topics.interactions, time_ms=time_ms)

    def entries(self, partitions: Iterable[int]) -> Mapping[int, list[Entry]]:
        """See History; of the topic as it is now. Raises JournalError, TopicMissing."""
        found: dict[int, list[Entry]] = {partition: [] for partition in partitions}
        present = topic_id(self._kafka, self._topics.interactions)
        for message in read_to_end(self._kafka_reader()):
            entry = entry_of(message)
            if entry.record.partition in found and entry.record.topic_id == present:
                found[entry.record.partition].append(entry)
        return found

    def open(self, positions: Mapping[int, int]) -> KafkaRecords:
        """See History."""
        return KafkaRecords(Reader(self._kafka, topic=self._topics.interactions, positions=positions))

    def _kafka_reader(self) -> Reader:
        topic = self._topics.journal
        begins, ends = begin_offsets(self._kafka, topic), end_offsets(self._kafka, topic)
        return Reader(self._kafka, topic=topic, positions={p: b for p, b in begins.items() if b < ends[p]})


class KafkaRecords:
    """Committed records of `interactions`, without a consumer group."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def poll(self) -> list[RecordBlock]:
        """See Records. Raises OffsetOutOfRange, TopicMissing."""
        by_partition: dict[int, list[Message]] = {}
        for message in self._reader.poll(max_messages=POLL_RECORDS, timeout_ms=POLL_MS):
            by_partition.setdefault(message.partition, []).append(message)
        return [block_of(partition, messages) for partition, messages in by_partition.items()]

    def positions(self) -> Mapping[int, int]:
        """See Records."""
        return self._reader.positions()

    def seek(self, partition: int, offset: int) -> None:
        """See Records."""
        self._reader.seek(partition, offset)

    def pause(self, partition: int) -> None:
        """See Records."""
        self._reader.pause(partition)

    def resume(self, partition: int) -> None:
        """See Records."""
        self._reader.resume(partition)

    def close(self) -> None:
        """See Records."""
        self._reader.close()


def read_to_end(reader: Reader) -> Iterable[Message]:
    """Everything from the reader's positions to the end; closes it."""
    with reader:
        while not reader.at_end:
            yield from reader.poll(max_messages=POLL_RECORDS, timeout_ms=POLL_MS)


def entry_of(message: Message) -> Entry:
    """The journal entry in a record of the journal. Raises JournalError."""
    place = f"{message.topic}[{message.partition}]@{message.offset}"
    return Entry(decode_record(message.value or b"", place=place), message.timestamp_ms)


def block_of(partition: int, messages: list[Message]) -> RecordBlock:
    """The records as columns."""
    return RecordBlock(
        partition,
        np.array([m.offset for m in messages], np.int64),
        np.array([m.timestamp_ms for m in messages], np.int64),
        [m.key for m in messages],
        [m.value for m in messages],
    )
