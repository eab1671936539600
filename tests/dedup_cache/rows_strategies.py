"""Rows, groups and batches for the tests: hypothesis strategies, and slow obvious forms to compare with."""

import numpy as np
from hypothesis import strategies as st

from dedup_cache import (
    Batch,
    BatchMeta,
    BatchSchema,
    Group,
    GroupSchema,
    Jagged,
    Rows,
    check_bits,
    deduplicate,
    refer,
    sample_id,
)

SALT = b"v1"
IDS = st.one_of(st.integers(0, 3), st.integers(-(2**63), 2**63 - 1))
NUMBERS = st.one_of(st.sampled_from([0.0, -0.0, 1.0, float("nan")]), st.floats(width=32))
USER = GroupSchema("user", ("age", "rate"), ("history", "tags"))
ITEM = GroupSchema("item", (), ("category",))
CONTEXT = GroupSchema("context", ("hour",), ())
SCHEMA = BatchSchema((USER, ITEM, CONTEXT), ("click", "buy"), "v1")


@st.composite
def jaggeds(draw: st.DrawFn, num_rows: int) -> Jagged:
    """Slices of one short list: they overlap, repeat, and leave gaps."""
    values = draw(st.lists(IDS, max_size=12))
    starts = [draw(st.integers(0, len(values))) for _ in range(num_rows)]
    lengths = [draw(st.integers(0, len(values) - start)) for start in starts]
    return Jagged(np.array(values, np.int64), np.array(starts, np.int32), np.array(lengths, np.int32))


@st.composite
def rows_of(draw: st.DrawFn, group: GroupSchema, num_rows: int) -> Rows:
    """Rows of a group, drawn from a few distinct ones so that some repeat."""
    shape = (num_rows, len(group.dense))
    size = shape[0] * shape[1]
    dense = np.array(draw(st.lists(NUMBERS, min_size=size, max_size=size)), np.float32).reshape(shape)
    rows = Rows(dense, {name: draw(jaggeds(num_rows)) for name in group.lists})
    picks = draw(st.lists(st.integers(0, num_rows - 1), min_size=num_rows, max_size=num_rows)) if num_rows else []
    picked = np.array(picks, np.int64)
    lists = {name: Jagged(c.values, c.starts[picked], c.lengths[picked]) for name, c in rows.lists.items()}
    return Rows(rows.dense[picked], lists)


@st.composite
def batches(draw: st.DrawFn, max_samples: int = 6) -> Batch:
    """Batches of SCHEMA, some rows by reference."""
    size = draw(st.integers(0, max_samples))
    groups = {}
    for schema in SCHEMA.groups:
        made = deduplicate(draw(rows_of(schema, size)), salt=SALT)
        groups[schema.name] = draw(referred(made.group, made.fingerprints))
    return batch_of(groups, size=size)


@st.composite
def referred(draw: st.DrawFn, group: Group, fingerprints: np.ndarray) -> Group:
    """The group, perhaps with some rows by reference."""
    if draw(st.booleans()):
        return group
    flags = draw(st.lists(st.booleans(), min_size=group.rows.num_rows, max_size=group.rows.num_rows))
    ids = np.arange(group.rows.num_rows, dtype=np.int64)
    return refer(group, ids=ids, checks=check_bits(fingerprints), inline=np.array(flags, np.bool_))


def batch_of(groups: dict[str, Group], *, size: int, schema: BatchSchema = SCHEMA) -> Batch:
    offsets = np.arange(100, 100 + size)
    num_labels = len(schema.labels)
    meta = BatchMeta(
        format_version=1,
        schema_digest=schema.digest(),
        generation="g1",
        source_topic="interactions",
        source_partition=3,
        first_offset=100,
        last_offset=99 + size,
        seq=7,
        min_event_time_ms=-5,
        max_event_time_ms=1_700_000_000_000,
        written_ms=1_700_000_000_001,
    )
    return Batch(
        labels=np.arange(size * num_labels, dtype=np.float32).reshape(size, num_labels) % 2,
        weights=np.ones(size, np.float32),
        scores=np.full((size, num_labels), np.nan, np.float32),
        sample_ids=sample_id(3, offsets),
        event_times_ms=1_700_000_000_000 + offsets,
        append_times_ms=1_700_000_000_500 + offsets,
        groups=groups,
        meta=meta,
    )


def row_tuples(rows: Rows) -> list[tuple[object, ...]]:
    """Each row as plain Python values; NaN, whatever its bits, is 'nan', and -0.0 is 0.0."""
    dense = [tuple("nan" if np.isnan(x) else float(x) + 0.0 for x in row) for row in rows.dense]
    lists = [[tuple(row.tolist()) for row in column.rows()] for column in rows.lists.values()]
    return [(numbers, *(column[at] for column in lists)) for at, numbers in enumerate(dense)]


def same_arrays(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    """Whether both hold the same names, types, shapes and bits."""
    return one.keys() == other.keys() and all(
        (array.dtype, array.shape, array.tobytes()) == (other[name].dtype, other[name].shape, other[name].tobytes())
        for name, array in one.items()
    )
