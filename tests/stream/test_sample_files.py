"""Samples as Parquet: whatever repeats or slides, the plain columns come back, and what repeats is stored once."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
from hypothesis import given, settings

from dedup_cache import Batch, BatchMeta, BatchSchema, GroupSchema, Jagged, Rows, deduplicate, expand, sample_id
from dedup_cache.schema import Slicing
from stream.archive.parquet import from_bytes
from stream.archive.sample_files import encode_samples, plain_column

AUTO = (Slicing.AUTO, Slicing.ALWAYS)
SCHEMA = BatchSchema(
    (GroupSchema("user", ("age",), ("history", "seen"), AUTO), GroupSchema("item", (), ("item",))), ("click",)
)
LISTS = st.lists(st.integers(-3, 2**40), max_size=4) | st.lists(st.integers(0, 5), max_size=4)
SAMPLES = st.lists(st.tuples(st.integers(0, 2), LISTS, st.integers(0, 3), st.booleans()), min_size=1, max_size=40)


def batches_of(samples: list[tuple[float, list[int], list[int], list[int]]], *, size: int) -> list[Batch]:
    """As the stream makes them: distinct rows, ids from one partition."""
    made = []
    for at in range(0, len(samples), size):
        part = samples[at : at + size]
        ages, histories, seen, items = zip(*part, strict=True)
        user = Rows(np.array(ages, np.float32)[:, None], {"history": column(histories), "seen": column(seen)})
        item = Rows(np.zeros((len(part), 0), np.float32), {"item": column(items)})
        places = np.arange(at, at + len(part))
        made.append(
            Batch(
                labels=np.array(ages, np.float32)[:, None],
                weights=np.ones(len(part), np.float32),
                scores=np.full((len(part), 1), np.nan, np.float32),
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
            wanted = [number for part in plain for number in part.dense[:, i].tolist()]
            assert plain_column(table, name, group=group.name).to_pylist() == wanted


def test_a_row_that_comes_back_in_another_batch_is_stored_once_and_a_list_that_slides_by_its_new_ids() -> None:
    rows = [(1.0, [7, 8, 9], list(range(i, i + 20)), [i % 2]) for i in range(30)]
    table = from_bytes(encode_samples(batches_of(rows, size=4), SCHEMA), place="here")
    assert table.column("item").null_count == 28
    assert table.column("recd.row.item").to_pylist() == [0, 1] * 15
    assert table.column("seen").combine_chunks().flatten().to_pylist() == list(range(49))
    assert table.schema.field("history").type == pa.list_(pa.int64())
