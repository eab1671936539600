"""Records of the source that are read again, because nobody kept their bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from stream.config import Config
from stream.kafka import Message, OffsetOutOfRange, Reader, TransactionAborted
from stream.records import Rejected

POLL_MS = 100
QUIET_POLLS = 50
MAX_MESSAGES = 500
SKIP_RECORDS = 500
"""Records that are rather read and dropped than jumped over."""


def with_originals(config: Config, partition: int, rejected: Sequence[Rejected]) -> list[Rejected]:
    """Each with key, value and timestamp of its record; without them, and `detail` says so, where it is gone.

    Raises TransactionAborted where the broker gives nothing: the records are there, and are read when it is done again.
    """
    messages: dict[int, Message] = {}
    offsets = sorted({one.offset for one in rejected})
    if offsets:
        with Reader(config.kafka, topic=config.topics.interactions, positions={partition: offsets[0]}) as reader:
            for run in _runs(offsets):
                if reader.positions()[partition] != run[0]:
                    reader.seek(partition, run[0])
                messages |= {message.offset: message for message in _read(reader, partition, run)}
    return [_original(one, messages.get(one.offset)) for one in rejected]


def _runs(offsets: Sequence[int]) -> list[list[int]]:
    """Ascending offsets, cut where a jump is cheaper than what lies between."""
    runs = [[offsets[0]]]
    for offset in offsets[1:]:
        if offset - runs[-1][-1] > SKIP_RECORDS:
            runs.append([])
        runs[-1].append(offset)
    return runs


def _read(reader: Reader, partition: int, run: Sequence[int]) -> Iterable[Message]:
    """Those of the run that are still there: what the broker says is out of its log, or was read past, is not."""
    wanted, quiet = set(run), 0
    while (left := run[-1] + 1 - (position := reader.positions()[partition])) > 0:
        try:
            messages = reader.poll(max_messages=min(left, MAX_MESSAGES), timeout_ms=POLL_MS)
        except OffsetOutOfRange:
            later = [offset for offset in run if offset > position]
            if not later:
                return
            reader.seek(partition, later[0])
            quiet = 0
            continue
        quiet = 0 if messages else quiet + 1
        if quiet == QUIET_POLLS:
            raise TransactionAborted(
                f"record {position} of partition {partition} was rejected and cannot be read again: the broker gave "
                f"nothing for {QUIET_POLLS * POLL_MS} ms"
            )
        yield from (message for message in messages if message.offset in wanted)


def _original(rejected: Rejected, message: Message | None) -> Rejected:
    if message is None:
        return replace(rejected, detail=f"{rejected.detail}; its bytes could not be read again")
    return replace(rejected, append_time_ms=message.timestamp_ms, key=message.key, value=message.value)
