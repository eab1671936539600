"""Samples as Parquet: whatever repeats or slides, the plain columns come back, and what repeats is stored once."""

from __future__ import annotations

from dataclasses import replace
from itertools import zip_longest

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from dedup_cache import (
    Batch,
    BatchMeta,
    BatchSchema,
    GroupSchema,
    Jagged,
    Rows,
    deduplicate,
    expand,
    sample_id,
    sample_position,
)
from dedup_cache.schema import Slicing
from stream.archive.errors import ArchiveError, FileDamaged, OtherSchema
from stream.archive.id_columns import smallest
from stream.archive.parquet import from_bytes, to_bytes
from stream.archive.sample_files import encode_samples, plain_column
from stream.archive.sample_reader import ArchivedBlock, decode_samples

AUTO = (Slicing.AUTO, Slicing.ALWAYS)
SCHEMA = BatchSchema(
    (GroupSchema("user", ("age",), ("history", "seen"), AUTO), GroupSchema("item", (), ("item",))), ("click",)
)
LISTS = st.lists(st.integers(-3, 2**40), max_size=4) | st.lists(st.integers(0, 5), max_size=4)
ODD = {0.0: -0.0, 2.0: np.nan}
"""What is easily lost of floats."""
SAMPLES = st.lists(st.tuples(st.integers(0, 2), LISTS, st.integers(0, 3), st.booleans()), min_size=1, max_size=40)


def batches_of(samples: list[tuple[float, list[int], list[int], list[int]]], *, size: int) -> list[Batch]:
    """As the stream makes them: distinct rows, ids from one partition."""
    made = []
    for at in range(0, len(samples), size):
        part = samples[at : at + size]
        ages, histories, seen, items = zip(*part, strict=True)
        dense = np.array([ODD.get(age, age) for age in ages], np.float32)[:, None]
        user = Rows(dense, {"history": column(histories), "seen": column(seen)})
        item = Rows(np.zeros((len(part), 0), np.float32), {"item": column(items)})
        places = np.arange(at, at + len(part))
        made.append(
            Batch(
                labels=np.array(ages, np.float32)[:, None],
                weights=np.ones(len(part), np.float32),
                scores=np.where(dense == 1, np.nan, np.float32(0.25)).astype(np.float32),
                sample_ids=sample_id(1, places),
                event_times_ms=places,
                append_times_ms=places,
                groups={"user": deduplicate(user, salt=b"x").group, "item": deduplicate(item, salt=b"y").group},
                meta=BatchMeta(1, SCHEMA.digest(), "", "interactions", 1, at, at, at, 0, 1, 0),
            )
        )
    return made


def column(rows: tuple[list[int], ...]) -> Jagged:
    return Jagged.from_rows(rows)


def slid(samples: list[tuple[int, list[int], int, bool]]) -> list[tuple[float, list[int], list[int], list[int]]]:
    """`seen` slides to either end, or begins anew, within runs of samples of one user."""
    made, seen = [], list(range(6))
    for number, (age, history, step, newest_first) in enumerate(samples):
        fresh = [1_000 + 10 * number + i for i in range(step)]
        seen = ([*fresh, *seen] if newest_first else [*seen, *fresh])[:6] if step < 3 else fresh
        made.append((float(age), history, list(seen), [age]))
    return made


@settings(deadline=None, max_examples=150)
@given(samples=SAMPLES, size=st.integers(1, 12))
def test_plain_columns_are_those_of_the_batches(samples: list[tuple[int, list[int], int, bool]], size: int) -> None:
    batches = batches_of(slid(samples), size=size)
    table = from_bytes(encode_samples(batches, SCHEMA), place="here")
    assert table.num_rows == len(samples)
    for group in SCHEMA.groups:
        plain = [expand(batch.groups[group.name]) for batch in batches]
        for name in group.lists:
            wanted = [row.tolist() for part in plain for row in part.lists[name].rows()]
            assert plain_column(table, name, group=group.name).to_pylist() == wanted
        for i, name in enumerate(group.dense):
            wanted_bytes = b"".join(part.dense[:, i].tobytes() for part in plain)
            assert plain_column(table, name, group=group.name).to_numpy().tobytes() == wanted_bytes


@settings(deadline=None, max_examples=100)
@given(samples=SAMPLES, size=st.integers(1, 12), other=st.integers(0, 40), block=st.integers(1, 50))
def test_samples_come_back_byte_for_byte(
    samples: list[tuple[int, list[int], int, bool]], size: int, other: int, block: int
) -> None:
    """Of two partitions whose batches stand among one another."""
    batches = batches_of(slid(samples), size=size)
    others = [of_partition(batch, 2) for batch in batches_of(slid(samples[:other]), size=size)]
    mixed = [batch for pair in zip_longest(batches, others) for batch in pair if batch is not None]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stream.archive.sample_reader.BLOCK_SAMPLES", block)
        read = list(decode_samples(encode_samples(mixed, SCHEMA), SCHEMA, place="here"))
    for partition, wanted in ((1, batches), (2, others)):
        blocks = [one for one in read if one.partition == partition]
        assert [one.seq for one in blocks] == list(range(0, sum(b.num_samples for b in wanted), block))
        assert [row for one in blocks for row in archived_rows(one)] == [row for b in wanted for row in batch_rows(b)]


@given(pool=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=9), picks=st.lists(st.integers(0, 8)))
def test_ids_in_their_smallest_form_are_the_same(pool: list[int], picks: list[int]) -> None:
    values = np.array([pool[pick % len(pool)] for pick in picks], np.int64)
    stored = smallest(values)
    again = stored.values if stored.dictionary is None else stored.dictionary[stored.values]
    assert again.tolist() == values.tolist()


def test_rare_ids_of_a_wide_space_stand_by_number_and_come_back() -> None:
    chance = np.random.default_rng(1)
    pool = chance.integers(-(2**62), 2**62, 500)
    rows = [(1.0, chance.choice(pool, 12).tolist(), [], [number]) for number in range(200)]
    made = batches_of(rows, size=50)
    table = from_bytes(data := encode_samples(made, SCHEMA), place="here")
    assert table.column("history@ids").combine_chunks()[0].as_py() == sorted({one for row in rows for one in row[1]})
    assert table.schema.field("history").type == pa.list_(pa.int32())
    assert plain_column(table, "history", group="user").to_pylist() == [row[1] for row in rows]
    read = [row for one in decode_samples(data, SCHEMA, place="here") for row in archived_rows(one)]
    assert read == [row for batch in made for row in batch_rows(batch)]


def of_partition(batch: Batch, partition: int) -> Batch:
    ids = sample_id(partition, sample_position(batch.sample_ids).offset)
    return replace(batch, sample_ids=ids, meta=replace(batch.meta, source_partition=partition))


def batch_rows(batch: Batch) -> list[tuple[bytes, ...]]:
    columns = [sample_position(batch.sample_ids).offset, batch.event_times_ms, batch.append_times_ms]
    columns += [batch.labels, batch.weights, batch.scores]
    return plain_bytes(columns, {name: expand(group) for name, group in batch.groups.items()})


def archived_rows(block: ArchivedBlock) -> list[tuple[bytes, ...]]:
    own = block.samples
    columns = [own.offsets, own.event_times_ms, own.append_times_ms, own.labels, own.weights, own.scores]
    return plain_bytes(columns, own.groups)


def plain_bytes(columns: list[np.ndarray], groups: dict[str, Rows]) -> list[tuple[bytes, ...]]:
    parts = [[one.tobytes() for one in column] for column in columns]
    for rows in groups.values():
        parts.append([row.tobytes() for row in rows.dense])
        parts += [[ids.tobytes() for ids in column.rows()] for column in rows.lists.values()]
    return list(zip(*parts, strict=True))


def test_a_file_that_is_no_archive_of_these_samples_is_refused() -> None:
    made = batches_of(slid([(1, [1], 0, True)] * 4), size=2)
    data = encode_samples(made, SCHEMA)
    other = BatchSchema(SCHEMA.groups, SCHEMA.labels, "other transforms")
    with pytest.raises(OtherSchema, match=r"here: the samples were made for schema .* with the recd.yaml of that time"):
        list(decode_samples(data, other, place="here"))
    with pytest.raises(FileDamaged, match="holds records of format 1; this version reads samples of format 3"):
        list(decode_samples(to_bytes([], metadata={"recd.kind": "records", "recd.version": "1"}), SCHEMA, place="here"))
    with pytest.raises(FileDamaged, match="of source partition 1 do not follow one another"):
        list(decode_samples(encode_samples(made[::-1], SCHEMA), SCHEMA, place="here"))
    foreign = [replace(batch, meta=replace(batch.meta, source_partition=3)) for batch in made]
    with pytest.raises(ArchiveError, match="sample 0 of source partition 3: its id is of partition 1"):
        encode_samples(foreign, SCHEMA)


def test_a_row_that_comes_back_in_another_batch_is_stored_once_and_a_list_that_slides_by_its_new_ids() -> None:
    rows = [(1.0, [7, 8, 9], list(range(i, i + 20)), [i % 2]) for i in range(30)]
    table = from_bytes(encode_samples(batches_of(rows, size=4), SCHEMA), place="here")
    assert table.column("item").null_count == 28
    assert table.column("recd.row.item").to_pylist() == [0, 1] * 15
    assert table.column("seen").combine_chunks().flatten().to_pylist() == list(range(49))
    assert table.schema.field("history").type == pa.list_(pa.int64())
