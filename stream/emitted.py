"""What the batches topic says of a partition that has neither a commit nor a journal: it may not be new."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dedup_cache import BatchError, wire
from stream.config import Config
from stream.kafka import Message, Reader, begin_offsets, end_offsets

LOOK_BACK = 500
"""Newest records of a partition of batches that are looked at; several source partitions may share it."""
POLL_MS = 100


@dataclass(frozen=True, slots=True)
class Emitted:
    """How far the newest batches of a source partition reach."""

    topic: str
    """Where they stand."""
    offset: int
    """Behind the last of their impressions, in the source."""
    seq: int
    """Samples of the partition made so far."""


def newest_batches(
    config: Config, partitions: Iterable[int], *, on_wait: Callable[[], object] = lambda: None
) -> dict[int, Emitted]:
    """By source partition, what its newest batches tell; without those that have none. Raises KafkaError.

    `on_wait` is called between polls and may raise to give up.
    """
    kafka, topic, asked = config.kafka, config.topics.batches, set(partitions)
    if not asked:
        return {}
    begins, ends = begin_offsets(kafka, topic), end_offsets(kafka, topic)
    places = {partition % len(ends) for partition in asked}
    first = {place: max(begins[place], ends[place] - LOOK_BACK) for place in places if begins[place] < ends[place]}
    found: dict[int, Emitted] = {}
    if not first:
        return found
    with Reader(kafka, topic=topic, positions=first) as reader:
        while not reader.at_end:
            on_wait()
            for message in reader.poll(max_messages=LOOK_BACK, timeout_ms=POLL_MS):
                reach = _reach(message, config.topics.interactions)
                if reach is not None and reach[0] in asked:
                    partition, offset, seq = reach
                    before = found.get(partition, Emitted(topic, 0, 0))
                    found[partition] = Emitted(topic, max(before.offset, offset), max(before.seq, seq))
    return found


def _reach(message: Message, source: str) -> tuple[int, int, int] | None:
    """Of a batch its source partition, and the offset and the count of samples behind it; None for anything else."""
    try:
        metadata, arrays = wire.read(message.value or b"")
        if metadata["source_topic"] != source:
            return None
        seq = int(metadata["seq"]) + len(arrays["sample_ids"])
        return int(metadata["source_partition"]), int(metadata["last_offset"]) + 1, seq
    except (BatchError, KeyError, ValueError):
        return None
