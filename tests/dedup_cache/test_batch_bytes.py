"""The batch on the wire: there and back, and nothing damaged or hostile accepted."""

import dataclasses
import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from dedup_cache import (
    Batch,
    BatchError,
    BatchSchema,
    Group,
    GroupSchema,
    Jagged,
    Rows,
    decode,
    deduplicate,
    encode,
    refer,
    wire,
)
from dedup_cache.batch import batch_arrays
from dedup_cache.wire import CHECKSUM_AT, CHECKSUM_END
from tests.dedup_cache.rows_strategies import SALT, SCHEMA, batch_of, batches, same_arrays

BLANK = "0" * 32


def example() -> Batch:
    """Three samples, every kind of array, a row by reference."""
    user = Rows(
        np.array([[1, 2], [1, 2], [3, 4]], np.float32),
        {"history": Jagged.from_rows([[5, 6], [5, 6], [7]]), "tags": Jagged.from_rows([[], [], [8]])},
    )
    item = Rows(np.zeros((3, 0), np.float32), {"category": Jagged.from_rows([[1], [2], [1]])})
    context = Rows(np.array([[1], [2], [3]], np.float32), {})
    groups = {name: deduplicate(rows, salt=SALT).group for name, rows in (("item", item), ("context", context))}
    inline = np.array([True, False])
    made = deduplicate(user, salt=SALT).group
    groups["user"] = refer(made, ids=np.array([-1, 9]), checks=np.array([0, 77], np.uint32), inline=inline)
    return batch_of(groups, size=3)


def seal(data: bytes) -> bytes:
    """Give altered bytes a right checksum, as a hostile writer would."""
    checksum = xxhash.xxh3_128_hexdigest(data[:CHECKSUM_AT] + data[CHECKSUM_END:]).encode()
    return data[:CHECKSUM_AT] + checksum + data[CHECKSUM_END:]


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def join(header: object, body: bytes) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    return seal(struct.pack("<Q", len(text)) + text + body)


def with_arrays(batch: Batch, **changes: object) -> bytes:
    """Bytes that the reader gets from a writer without checks: arrays replaced, removed (None) or added."""
    arrays = batch_arrays(batch)
    arrays.update({name.replace("__", "/"): array for name, array in changes.items()})  # type: ignore[misc]
    metadata = {key: str(value) for key, value in dataclasses.asdict(batch.meta).items()}
    return wire.write({name: array for name, array in arrays.items() if array is not None}, metadata)


@settings(deadline=None)
@given(batches())
def test_bytes_give_the_batch_back(batch: Batch) -> None:
    data = encode(batch, SCHEMA)
    again = decode(data, SCHEMA)
    assert again.meta == batch.meta
    assert same_arrays(batch_arrays(again), batch_arrays(batch))
    assert encode(again, SCHEMA) == data
    assert [list(group.rows.lists) for group in again.groups.values()] == [list(g.lists) for g in SCHEMA.groups]


def test_any_safetensors_reader_opens_it() -> None:
    batch = example()
    arrays = safetensors.numpy.load(encode(batch, SCHEMA))
    assert same_arrays(arrays, batch_arrays(batch))


def test_arrays_are_views_of_the_bytes() -> None:
    data = encode(example(), SCHEMA)
    shared = np.frombuffer(data, np.uint8)
    arrays = batch_arrays(decode(data, SCHEMA))
    assert all(np.shares_memory(array, shared) for array in arrays.values() if array.size)
    assert all(array.ctypes.data % array.itemsize == 0 for array in arrays.values())


def test_every_flip_is_found() -> None:
    data = encode(example(), SCHEMA)
    for at in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[at] ^= 1 << bit
            with pytest.raises(BatchError):
                decode(bytes(damaged), SCHEMA)


def test_every_cut_is_found() -> None:
    data = encode(example(), SCHEMA)
    for size in range(len(data)):
        with pytest.raises(BatchError):
            decode(data[:size], SCHEMA)
    with pytest.raises(BatchError, match="checksum"):
        decode(data + b"\0", SCHEMA)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_noise_is_refused(data: bytes) -> None:
    for noise in (data, seal(data[:8] + b'{"__metadata__":{"checksum":"' + data[8:])):
        with pytest.raises(BatchError):
            decode(noise, SCHEMA)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.integers(0, 80), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=4,
)


@settings(deadline=None, max_examples=300)
@given(st.data(), batches(max_samples=3))
def test_a_hostile_header_is_refused_by_name(data: st.DataObject, batch: Batch) -> None:
    """Any one value of the header replaced, removed or added, with a right checksum."""
    header, body = split(encode(batch, SCHEMA))
    entry = data.draw(st.sampled_from(sorted(header)))
    key = data.draw(st.sampled_from(sorted(header[entry])))
    if key == "checksum":
        return
    before = json.dumps(header)
    change = data.draw(st.sampled_from(["replace", "remove", "add", "replace entry", "remove entry", "add entry"]))
    target, name = (header, entry) if change.endswith("entry") else (header[entry], key)
    if change.startswith("remove"):
        del target[name]
    else:
        target[name if change.startswith("replace") else data.draw(st.text(max_size=8))] = data.draw(JSON)
    try:
        again = decode(join(header, body), SCHEMA)
    except BatchError:
        return
    free_texts = {"generation", "source_topic"}
    free_numbers = {"first_offset", "last_offset", "seq", "min_event_time_ms", "max_event_time_ms", "written_ms"}
    if json.dumps(header) != before and key not in free_texts | free_numbers:
        assert same_arrays(batch_arrays(again), batch_arrays(batch))


@pytest.mark.parametrize("size", [0, 1, 2**20, 2**40, 2**63, 2**64 - 1])
def test_a_header_of_an_impossible_size_is_refused(size: int) -> None:
    data = encode(example(), SCHEMA)
    with pytest.raises(BatchError, match="header"):
        decode(seal(struct.pack("<Q", size) + data[8:]), SCHEMA)


def test_deep_nesting_and_huge_numbers_are_refused() -> None:
    header, body = split(encode(example(), SCHEMA))
    text = json.dumps(header, separators=(",", ":"))
    for part in ("[" * 100_000, "9" * 5_000, "-1", "1e400", '{"shape":[' + "9" * 400 + "]}"):
        altered = text.replace('"labels":', f'"labels":{part},"x":', 1).encode()
        with pytest.raises(BatchError):
            decode(seal(struct.pack("<Q", len(altered)) + altered + body), SCHEMA)


def test_empty_tensors_of_huge_shape_are_refused() -> None:
    schema = BatchSchema((GroupSchema("g"),), (), "")
    batch = batch_of({"g": Group(Rows(np.zeros((0, 0), np.float32), {}), np.zeros(0, np.int32))}, size=0, schema=schema)
    header, body = split(encode(batch, schema))
    for shape in ([2**31 - 1, 0], [2**62, 0], [0, 0, 0], [0, 2**31]):
        header["group/g/dense"]["shape"] = shape
        with pytest.raises(BatchError, match="group/g/dense"):
            decode(join(header, body), schema)


NAMED: dict[str, tuple[str, Callable[[Batch], bytes]]] = {
    "missing": ("labels': missing", lambda b: with_arrays(b, labels=None)),
    "missing part": ("group/user/checks': missing", lambda b: with_arrays(b, group__user__checks=None)),
    "extra": ("other': the schema has no", lambda b: with_arrays(b, other=np.zeros(1, np.int64))),
    "type": ("weights': expected float32, got int32", lambda b: with_arrays(b, weights=np.ones(3, np.int32))),
    "shape": (r"weights': expected shape \[3\], got \[2\]", lambda b: with_arrays(b, weights=np.ones(2, np.float32))),
    "rank": (
        r"labels': expected shape \[any, 2\], got \[6\]",
        lambda b: with_arrays(b, labels=b.labels.reshape(-1)),
    ),
    "width": (
        "group/user/dense': expected shape",
        lambda b: with_arrays(b, group__user__dense=np.ones((2, 3), np.float32)),
    ),
    "inverse high": (
        "group/item/inverse': a row number",
        lambda b: with_arrays(b, group__item__inverse=np.array([0, 1, 2], np.int32)),
    ),
    "inverse low": (
        "group/item/inverse': a row number",
        lambda b: with_arrays(b, group__item__inverse=np.array([0, 1, -1], np.int32)),
    ),
    "length": (
        "category/lengths': a negative",
        lambda b: with_arrays(b, group__item__list__category__lengths=np.array([1, -1], np.int32)),
    ),
    "start": (
        "category/starts': a negative",
        lambda b: with_arrays(b, group__item__list__category__starts=np.array([0, -1], np.int32)),
    ),
    "end": (
        "category/starts': a row ends at 3",
        lambda b: with_arrays(b, group__item__list__category__starts=np.array([0, 2], np.int32)),
    ),
    "overflow": (
        "category/starts': a row ends at 4294967294",
        lambda b: with_arrays(
            b,
            group__item__list__category__starts=np.array([0, 2**31 - 1], np.int32),
            group__item__list__category__lengths=np.array([1, 2**31 - 1], np.int32),
        ),
    ),
    "id": ("group/user/ids': an id below", lambda b: with_arrays(b, group__user__ids=np.array([-2, 9]))),
    "no id": (
        "group/user/ids': a row that is not inline",
        lambda b: with_arrays(b, group__user__ids=np.array([0, -1])),
    ),
    "not absent": (
        "history/lengths': a row that is not inline",
        lambda b: with_arrays(b, group__user__ids=np.array([0, 9]), group__user__inline=np.array([False, True])),
    ),
    "label": ("labels': a label", lambda b: with_arrays(b, labels=np.full((3, 2), np.nan, np.float32))),
    "weight": ("weights': a weight", lambda b: with_arrays(b, weights=np.full(3, -1, np.float32))),
    "score": ("scores': a score", lambda b: with_arrays(b, scores=np.full((3, 2), 1.5, np.float32))),
}


@pytest.mark.parametrize("case", NAMED)
def test_wrong_contents_are_refused_by_name(case: str) -> None:
    reason, make = NAMED[case]
    with pytest.raises(BatchError, match=reason):
        decode(make(example()), SCHEMA)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("format_version", 2, "knows version 1, the batch has '2'"),
        ("schema_digest", "abc", "made for schema 'abc'"),
        ("source_partition", -1, "below 0"),
        ("seq", -1, "below 0"),
        ("first_offset", 2**63, "64-bit integer"),
        ("written_ms", 1.5, "64-bit integer"),
        ("written_ms", "1_000", "64-bit integer"),
        ("written_ms", "٣", "64-bit integer"),
        ("generation", "\ud800", "not Unicode"),
    ],
)
def test_the_writer_refuses_what_no_reader_would_take(field: str, value: object, reason: str) -> None:
    batch = example()
    meta = dataclasses.replace(batch.meta, **{field: value})
    with pytest.raises(BatchError, match=reason):
        encode(dataclasses.replace(batch, meta=meta), SCHEMA)


def test_metadata_must_be_complete() -> None:
    header, body = split(encode(example(), SCHEMA))
    del header["__metadata__"]["seq"]
    with pytest.raises(BatchError, match="'seq': missing") as caught:
        decode(join(header, body), SCHEMA)
    assert caught.value.field == "seq"


def test_booleans_are_0_or_1() -> None:
    header, body = split(encode(example(), SCHEMA))
    at = header["group/user/inline"]["data_offsets"][0]
    with pytest.raises(BatchError, match="group/user/inline"):
        decode(join(header, body[:at] + b"\2" + body[at + 1 :]), SCHEMA)


def test_the_writer_checks_its_arrays() -> None:
    batch = example()
    with pytest.raises(BatchError, match="weights"):
        encode(dataclasses.replace(batch, weights=np.full(3, np.inf, np.float32)), SCHEMA)
    with pytest.raises(BatchError, match="sample_ids"):
        encode(dataclasses.replace(batch, sample_ids=batch.sample_ids.view(np.int64)), SCHEMA)
    with pytest.raises(BatchError, match="group/item"):
        encode(dataclasses.replace(batch, groups={k: g for k, g in batch.groups.items() if k != "item"}), SCHEMA)
