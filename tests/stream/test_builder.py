"""Batches from samples: whatever the cuts, the samples and their features come out as they went in."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dedup_cache import (
    BatchSchema,
    GroupSchema,
    Jagged,
    MemoryStore,
    Rows,
    StoreUnavailable,
    decode,
    decode_rows,
    encode_rows,
    expand,
    resolve,
    sample_id,
)
from dedup_cache.arrays import Int64, UInt64
from dedup_cache.assign import Assignment
from stream.builder import BatchBuilder, BatchLimits, BuiltBatch, concat_samples, slice_samples
from stream.indexer import Indexer, ReferencePolicy, row_bytes
from stream.records import SampleBlock
from stream.transforms import Transforms

SCHEMA = BatchSchema((GroupSchema("user", ("age",), ("history", "seen")), GroupSchema("item", (), ("id",))), ("click",))
NOW_MS = 1_000_000


def block(first: int, rows: list[tuple[float, list[int], list[int]]]) -> SampleBlock:
    """Samples at offsets first, first + 2, ...; rows are (age, history, seen)."""
    count = len(rows)
    offsets = first + 2 * np.arange(count)
    user = Rows(
        np.array([[age] for age, _, _ in rows], np.float32).reshape(count, 1),
        {
            "history": Jagged.from_rows([history for _, history, _ in rows]),
            "seen": Jagged.from_rows([seen for _, _, seen in rows]),
        },
    )
    item = Rows(np.empty((count, 0), np.float32), {"id": Jagged.from_rows([[int(offset)] for offset in offsets])})
    return SampleBlock(
        offsets=offsets,
        event_times_ms=offsets * 10,
        append_times_ms=offsets * 10 + 1,
        labels=(offsets[:, None] % 4 == 0).astype(np.float32),
        weights=np.ones(count, np.float32),
        scores=np.full((count, 1), np.nan, np.float32),
        groups={"user": user, "item": item},
    )


def builder(
    store: MemoryStore, *, max_samples: int = 4, max_bytes: int = 1 << 20, inline_bytes: int = 10**6
) -> tuple[BatchBuilder, Indexer]:
    indexer = Indexer(SCHEMA, store=store, policy=ReferencePolicy(inline_bytes, 10**6))
    limits = BatchLimits(max_samples, max_bytes)
    return (
        BatchBuilder(SCHEMA, topic="t", partition=3, seq=10, limits=limits, indexer=indexer, transforms=Transforms(())),
        indexer,
    )


def samples_of(built: list[BuiltBatch]) -> list[tuple[int, float, list[int], list[int], list[int]]]:
    """What a reader sees, sample by sample, references resolved from the shipped values."""
    values = {value.key: value.blob for batch in built for value in batch.values}
    seen = []
    for one in built:
        batch = decode(one.payload, SCHEMA)
        plain = {}
        for schema in SCHEMA.groups:
            group = batch.groups[schema.name]
            missing = group.missing()
            if missing.size:
                keys = [f"{batch.meta.generation}/{schema.name}/{group.ids[row]}".encode() for row in missing]
                group = resolve(group, decode_rows([values[key] for key in keys], schema), missing)
            plain[schema.name] = expand(group)
        lists = [plain["user"].lists["history"], plain["user"].lists["seen"], plain["item"].lists["id"]]
        columns = [[ids.tolist() for ids in column.rows()] for column in lists]
        seen += list(zip(batch.sample_ids.tolist(), plain["user"].dense[:, 0].tolist(), *columns, strict=True))
    return seen


ROWS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 1.5]),
        st.lists(st.integers(0, 3), max_size=6),
        st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
    ),
    max_size=13,
)


@settings(deadline=None)
@given(blocks=st.lists(ROWS, max_size=5), inline_bytes=st.sampled_from([0, 60, 10**6]), flushes=st.booleans())
def test_samples_come_out_as_they_went_in(
    blocks: list[list[tuple[float, list[int], list[int]]]], inline_bytes: int, flushes: bool
) -> None:
    cutter, _ = builder(MemoryStore(), inline_bytes=inline_bytes)
    built, expected, first = [], [], 0
    for rows in blocks:
        one = block(first, rows)
        ids = sample_id(3, one.offsets).tolist()
        places = one.offsets.tolist()
        expected += [(ids[i], age, history, seen, [places[i]]) for i, (age, history, seen) in enumerate(rows)]
        first += 2 * len(rows)
        built += cutter.add(one, now_ms=NOW_MS).batches
        built += cutter.flush(now_ms=NOW_MS) if flushes else []
    built += cutter.flush(now_ms=NOW_MS)
    assert samples_of(built) == expected
    assert cutter.seq == 10 + len(expected)
    sequence = [decode(one.payload, SCHEMA).meta.seq for one in built]
    assert sequence == (10 + np.cumsum([0, *(one.num_samples for one in built)]))[:-1].tolist()
    assert all(0 < one.num_samples <= 4 for one in built)


def test_only_rows_that_go_by_reference_take_an_id() -> None:
    store = MemoryStore("g")
    cutter, _ = builder(store, inline_bytes=60)
    long = list(range(20))
    (built,) = cutter.add(
        block(100, [(1.0, [1], []), (2.0, long, []), (3.0, long, []), (1.0, [1], [])]), now_ms=1
    ).batches
    groups = decode(built.payload, SCHEMA).groups
    assert groups["item"].ids is None
    assert groups["user"].ids is not None
    assert groups["user"].ids.tolist() == [-1, 0, 1]
    assert [value.row_id for value in built.values] == [0, 1]


def test_meta_says_where_the_samples_came_from() -> None:
    cutter, _ = builder(MemoryStore("g"), inline_bytes=0)
    (built,) = cutter.add(block(100, [(1.0, [1], [2])] * 4), now_ms=NOW_MS).batches
    meta = decode(built.payload, SCHEMA).meta
    assert (meta.source_topic, meta.source_partition, meta.seq, meta.generation) == ("t", 3, 10, "g")
    assert (meta.first_offset, meta.last_offset) == (100, 106)
    assert (meta.min_event_time_ms, meta.max_event_time_ms, meta.written_ms) == (1000, 1060, NOW_MS)
    assert built.stats.rows_distinct == 1 + 4


def test_a_value_is_shipped_once_until_the_transaction_is_aborted() -> None:
    store = MemoryStore()
    cutter, indexer = builder(store, inline_bytes=0, max_samples=2)
    rows = [(1.0, [1, 2, 3], [4])] * 2

    def shipped(first: int) -> list[str]:
        return sorted(value.group for b in cutter.add(block(first, rows), now_ms=NOW_MS).batches for value in b.values)

    assert shipped(0) == ["item", "item", "user"]
    assert shipped(0) == [], "already in this transaction"
    indexer.aborted()
    assert shipped(0) == ["item", "item", "user"], "nobody has it"
    indexer.committed()
    assert shipped(0) == [], "everybody has it"
    other, _ = builder(store, inline_bytes=0, max_samples=2)
    assert not [v for b in other.add(block(0, rows), now_ms=NOW_MS).batches for v in b.values], "another worker"


def test_splitting_ships_every_value_that_the_halves_name() -> None:
    cutter, _ = builder(MemoryStore(), inline_bytes=100, max_samples=64, max_bytes=30_000)
    rows = [(1.0, [], list(range(i, i + 10))) for i in range(64)]
    wide = [(0.0, [7] * 8, []) if i % 2 else row for i, row in enumerate(rows)]
    built = cutter.add(block(0, wide), now_ms=NOW_MS).batches
    assert [row[3] for row in samples_of(built)] == [seen for _, _, seen in wide]
    assert len({value.key for b in built for value in b.values}) == sum(len(b.values) for b in built)


def test_too_large_does_not_depend_on_references() -> None:
    huge = (0.0, list(range(3_000)), [])
    for inline_bytes in (0, 10**6):
        cutter, _ = builder(MemoryStore(), inline_bytes=inline_bytes, max_bytes=30_000)
        added = cutter.add(block(0, [(0.0, [1], []), huge, (0.0, [2], [])]), now_ms=NOW_MS)
        assert [large.offset for large in added.too_large] == [2]
        (built,) = cutter.flush(now_ms=NOW_MS)
        assert built.num_samples == 2


class Unreachable(MemoryStore):
    """A store that has gone away."""

    def assign(self, group: str, fingerprints: UInt64) -> Assignment:
        raise StoreUnavailable("gone")


def test_without_an_answer_everything_is_inline() -> None:
    cutter, indexer = builder(Unreachable(), inline_bytes=0)
    (built,) = cutter.add(block(0, [(1.0, [1], [2])] * 4), now_ms=NOW_MS).batches
    batch = decode(built.payload, SCHEMA)
    assert batch.meta.generation == ""
    assert not built.values
    assert all(group.ids is None for group in batch.groups.values())
    assert (indexer.take_errors(), indexer.last_error) == (1, "gone")
    assert indexer.take_errors() == 0


def test_row_bytes_are_those_of_the_blobs() -> None:
    rows = block(0, [(1.0, [1, 2], []), (2.0, [], [1]), (0.0, [], [])]).groups
    for group in SCHEMA.groups:
        blobs = encode_rows(rows[group.name], group)
        assert row_bytes(rows[group.name], group).tolist() == [len(blob) for blob in blobs]


def test_cutting_and_joining_blocks() -> None:
    whole = block(0, [(float(i), [i], [i, i]) for i in range(7)])
    parts = [slice_samples(whole, 0, 3), slice_samples(whole, 3, 7)]
    joined = concat_samples(parts)
    offsets: Int64 = joined.offsets
    assert offsets.tolist() == whole.offsets.tolist()
    assert [r.tolist() for r in joined.groups["user"].lists["seen"].rows()] == [[i, i] for i in range(7)]
