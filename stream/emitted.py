"""What the batches topic says of a partition that has neither a commit nor a journal: it may not be new."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from dedup_cache import BatchError, wire
from stream.config import Config, KafkaConfig
from stream.kafka import Message, Reader, begin_offsets, end_offsets

LOOK_BACK = 500
"""Newest records of a partition of batches that are looked at first; each further step takes twice as many."""
POLL_MESSAGES = 20
"""Batches are large, and only what they tell is kept."""
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

    Source partitions share a partition of batches, so one may stand far behind the others: whoever is not found is
    looked for back to the beginning. `on_wait` is called between polls and may raise to give up.
    """
    kafka, topic, left = config.kafka, config.topics.batches, set(partitions)
    found: dict[int, Emitted] = {}
    if not left:
        return found
    behind = end_offsets(kafka, topic)
    count, step = len(behind), LOOK_BACK
    while True:
        begins = begin_offsets(kafka, topic)
        places = {p % count for p in left}
        spans = {p: (max(begins[p], behind[p] - step), behind[p]) for p in places if begins[p] < behind[p]}
        if not spans:
            return found
        for message in _messages(kafka, topic, spans=spans, on_wait=on_wait):
            reach = _reach(message, config.topics.interactions)
            if reach is not None and reach[0] in left:
                partition, offset, seq = reach
                before = found.get(partition, Emitted(topic, 0, 0))
                found[partition] = Emitted(topic, max(before.offset, offset), max(before.seq, seq))
        left -= found.keys()
        behind |= {place: start for place, (start, _) in spans.items()}
        step *= 2


def _messages(
    kafka: KafkaConfig, topic: str, *, spans: Mapping[int, tuple[int, int]], on_wait: Callable[[], object]
) -> Iterator[Message]:
    """Committed records of some partitions from one offset on, before another."""
    with Reader(kafka, topic=topic, positions={place: start for place, (start, _) in spans.items()}) as reader:
        while any(reader.positions()[p] < end and p not in reader.ended for p, (_, end) in spans.items()):
            on_wait()
            for message in reader.poll(max_messages=POLL_MESSAGES, timeout_ms=POLL_MS):
                if message.offset < spans[message.partition][1]:
                    yield message


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
