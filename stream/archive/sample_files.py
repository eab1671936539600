"""Samples of the batches as a Parquet file: one row a sample, one column per feature, every id resolved.

The rows stand in the order in which the samples were made, in which those of a session stand next to each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from dedup_cache import Batch, BatchSchema, Jagged, expand
from stream.archive.parquet import to_bytes

SAMPLE_ID, PARTITION, SEQ = "recd.sample_id", "recd.source_partition", "recd.seq"
EVENT_TIME, APPEND_TIME, WEIGHT = "recd.event_time_ms", "recd.append_time_ms", "recd.weight"
LABEL, SCORE = "label.", "score."


def encode_samples(batches: Sequence[Batch], schema: BatchSchema) -> bytes:
    """The samples of consecutive batches; all rows must be inline (resolved)."""
    columns = [*_own(batches), *_labels(batches, schema)]
    for group in schema.groups:
        rows = [expand(batch.groups[group.name]) for batch in batches]
        dense = np.concatenate([part.dense for part in rows])
        columns += [(name, pa.array(dense[:, i])) for i, name in enumerate(group.dense)]
        columns += [(name, _list_column([part.lists[name] for part in rows])) for name in group.lists]
    metadata = {"recd.kind": "samples", "recd.version": "1", "recd.schema_digest": schema.digest()}
    return to_bytes([(pa.field(name, array.type), array) for name, array in columns], metadata=metadata)


def _own(batches: Sequence[Batch]) -> list[tuple[str, pa.Array]]:
    sizes = [batch.num_samples for batch in batches]
    seqs = [batch.meta.seq + np.arange(batch.num_samples, dtype=np.int64) for batch in batches]
    return [
        (SAMPLE_ID, pa.array(np.concatenate([batch.sample_ids for batch in batches]))),
        (PARTITION, pa.array(np.repeat([batch.meta.source_partition for batch in batches], sizes).astype(np.int32))),
        (SEQ, pa.array(np.concatenate(seqs))),
        (EVENT_TIME, pa.array(np.concatenate([batch.event_times_ms for batch in batches]))),
        (APPEND_TIME, pa.array(np.concatenate([batch.append_times_ms for batch in batches]))),
        (WEIGHT, pa.array(np.concatenate([batch.weights for batch in batches]))),
    ]


def _labels(batches: Sequence[Batch], schema: BatchSchema) -> list[tuple[str, pa.Array]]:
    labels = np.concatenate([batch.labels for batch in batches])
    scores = np.concatenate([batch.scores for batch in batches])
    columns = [(LABEL + name, pa.array(labels[:, i])) for i, name in enumerate(schema.labels)]
    return columns + [(SCORE + name, pa.array(scores[:, i], from_pandas=True)) for i, name in enumerate(schema.labels)]


def _list_column(parts: Sequence[Jagged]) -> pa.Array:
    compact = [part.compact() for part in parts]
    values = np.concatenate([values for values, _ in compact])
    lengths = np.concatenate([lengths for _, lengths in compact])
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))
