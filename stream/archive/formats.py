"""What the files of each log hold: records as they are, or the samples of batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dedup_cache import Batch, BatchError, BatchSchema, decode, wire
from stream.archive.errors import ArchiveError, OtherSchema
from stream.archive.event_files import encode_records
from stream.archive.sample_files import encode_samples
from stream.kafka import Message
from stream.records import RecordBlock


class RecordFiles:
    """Records of `interactions` or of the journal."""

    poll_records = 5_000

    def rows(self, message: Message) -> int:
        """Every record is one."""
        return 1

    def encode(self, messages: Sequence[Message]) -> tuple[bytes, int]:
        """See run.Format."""
        block = RecordBlock(
            messages[0].partition,
            np.array([m.offset for m in messages], np.int64),
            np.array([m.timestamp_ms for m in messages], np.int64),
            [m.key for m in messages],
            [m.value for m in messages],
        )
        return encode_records([block]), len(messages)


class SampleFiles:
    """Samples of batches of one schema; `resolve` puts in the rows that a batch names by id."""

    poll_records = 16

    def __init__(self, schema: BatchSchema, *, resolve: Callable[[Batch], Batch]) -> None:
        self._schema = schema
        self._resolve = resolve

    def rows(self, message: Message) -> int:
        """See run.Format."""
        place = f"{message.topic}[{message.partition}]@{message.offset}"
        try:
            found = wire.read(message.value or b"")
            digest, rows = found.metadata["schema_digest"], int(found.arrays["sample_ids"].shape[0])
        except (BatchError, KeyError) as error:
            raise ArchiveError(f"{place}: not a batch: {error}") from None
        if digest == self._schema.digest():
            return rows
        raise OtherSchema(
            f"{place}: the batch was made for schema {digest}, this configuration has {self._schema.digest()}; "
            "everything before it is archived. Go on with the recd.yaml of that batch, then with this one"
        )

    def encode(self, messages: Sequence[Message]) -> tuple[bytes, int]:
        """See run.Format. Raises whatever `resolve` raises."""
        batches = [self._resolve(decode(message.value or b"", self._schema)) for message in messages]
        return encode_samples(batches, self._schema), sum(batch.num_samples for batch in batches)
