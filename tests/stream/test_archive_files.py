"""Files of the archive without a broker: what goes in comes out, byte for byte."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.archive.errors import ArchiveError, FileDamaged
from stream.archive.event_files import decode_records, encode_records
from stream.archive.json_columns import RAW, to_columns
from stream.archive.leftovers import SURE_MS, Leftovers, find_leftovers
from stream.archive.manifest import FileRecord, files_at
from stream.archive.parquet import from_bytes
from stream.archive.place import new_file
from stream.archive.store import ArchiveStore
from stream.records import RecordBlock

SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=8)
VALUES = SCALARS | st.lists(st.integers(0, 99), max_size=4) | st.lists(SCALARS, max_size=3)
OBJECTS = st.dictionaries(st.sampled_from(["a", "b", "recd.x", 'q"', "é"]), VALUES, max_size=4)


def written(value: object, style: int) -> bytes:
    """As different producers write JSON."""
    if style == 0:
        return json.dumps(value).encode()
    if style == 1:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    return json.dumps(value, indent=1).encode()


RECORDS = st.lists(st.builds(written, OBJECTS, st.integers(0, 2)) | st.binary(max_size=6) | st.none(), max_size=12)


def block_of(values: list[bytes | None], keys: list[bytes | None]) -> RecordBlock:
    offsets = 7 + 3 * np.arange(len(values))
    return RecordBlock(1, offsets, 1_000 + offsets % 5, keys, values)


@settings(deadline=None, max_examples=150)
@given(values=RECORDS.filter(bool), keys=st.lists(st.sampled_from([b"u", b"v", b"", None]), min_size=12, max_size=12))
def test_records_come_back_byte_for_byte_in_the_order_of_the_log(
    values: list[bytes | None], keys: list[bytes | None]
) -> None:
    block = block_of(values, keys[: len(values)])
    again = decode_records(encode_records([block]), partition=1, place="here")
    assert again.values == block.values
    assert again.keys == block.keys
    assert again.offsets.tolist() == block.offsets.tolist()
    assert again.append_times_ms.tolist() == block.append_times_ms.tolist()


def test_a_field_is_a_column_of_its_own_type_and_a_user_stands_together() -> None:
    events = [{"user": i % 3, "price": i / 4, "tags": ["a", "b"], "history": list(range(i))} for i in range(9)]
    for style in (0, 1):
        keys: list[bytes | None] = [str(event["user"]).encode() for event in events]
        block = block_of([written(event, style) for event in events], keys)
        table = from_bytes(encode_records([block]), place="here")
        types = {name: table.schema.field(name).type for name in ("user", "price", "tags", "history")}
        assert types == {
            "user": pa.int64(),
            "price": pa.float64(),
            "tags": pa.list_(pa.string()),
            "history": pa.list_(pa.int64()),
        }
        assert table.column("user").to_pylist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        assert table.column(RAW).null_count == 9


def test_one_odd_value_makes_a_column_text_and_is_no_loss() -> None:
    columns = to_columns([b'{"price":1}', b'{"price":"n/a"}', b'{"price":null}', b"{}"])
    assert columns["price"][1].to_pylist() == ["1", '"n/a"', "null", None]


def test_an_archive_that_moved_is_found_unless_there_are_several() -> None:
    def file(url: str) -> FileRecord:
        places = {"path": "a", "topic": "t", "topic_id": "i", "partition": 0, "first_offset": 0, "next_offset": 1}
        sizes = {"rows": 1, "bytes": 1, "min_timestamp_ms": 0, "max_timestamp_ms": 0, "written_ms": 0}
        return FileRecord(kind="events", url=url, xxh3_128="", **places, **sizes)  # type: ignore[arg-type]

    assert files_at([file("s3://one")], "s3://moved") == [file("s3://one")]
    with pytest.raises(ArchiveError, match="there are s3://one, s3://two"):
        files_at([file("s3://one"), file("s3://two")], "s3://moved")


OWN, OTHER = "+/" + "o" * 20, "x" * 22
FOLDER = "events/t/00000"


def listing(url: str, *paths: str) -> list[FileRecord]:
    places = {"topic": "t", "topic_id": "i", "partition": 0}
    numbers = {"first_offset": 0, "next_offset": 1, "rows": 1, "bytes": 1, "written_ms": 0}
    times = {"min_timestamp_ms": 0, "max_timestamp_ms": 0}
    return [FileRecord(kind="events", url=url, path=path, xxh3_128="", **places, **numbers, **times) for path in paths]  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", ["memory:/", ""])
def test_what_a_crash_left_is_found_and_only_that(tmp_path: Path, scheme: str) -> None:
    """Another cluster, or this one made again, keeps its archive of the same topic in the same folder."""
    store = ArchiveStore(f"{scheme}{tmp_path}/archive")
    mine, left = (new_file(FOLDER, first_offset=0, manifest_id=OWN) for _ in range(2))
    theirs, elsewhere = (new_file(f, first_offset=0, manifest_id=OTHER) for f in (FOLDER, "events/of-another/00000"))
    nameless = f"{FOLDER}/{0:020d}-{'a' * 32}.parquet"
    for path in (mine, left, theirs, elsewhere, nameless, f"{FOLDER}/notes.txt"):
        store.write(path, b"abc")
    listed = listing(store.url, mine)
    now_ms = time.time_ns() // 1_000_000
    assert not find_leftovers(store, listed, manifest_id=OWN, now_ms=now_ms).files, "it may be listed yet"
    found = find_leftovers(store, listed, manifest_id=OWN, now_ms=now_ms + 2 * SURE_MS)
    (one,) = found.files
    assert (one.path, one.bytes, found.of_another) == (left, 3, 2)
    assert abs(one.modified_ms - now_ms) < SURE_MS
    store.delete(one.path)
    assert find_leftovers(store, listed, manifest_id=OWN, now_ms=now_ms + 2 * SURE_MS) == Leftovers([], 2)
    with pytest.raises(ArchiveError, match="cannot be deleted"):
        store.delete(one.path)
    assert [file.path for file in store.files("events/of-another")] == [elsewhere]


def test_a_place_has_many_spellings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    urls = [f"{tmp_path}/archive", "archive/", "./archive", f"file://{tmp_path}/archive", f"local://{tmp_path}/archive"]
    paths = [new_file(FOLDER, first_offset=n, manifest_id=OWN) for n in range(len(urls))]
    listed = [record for url, path in zip(urls, paths, strict=True) for record in listing(url, path)]
    left = new_file(FOLDER, first_offset=9, manifest_id=OWN)
    for path in (*paths, left):
        ArchiveStore(urls[0]).write(path, b"abc")
    later_ms = time.time_ns() // 1_000_000 + 2 * SURE_MS
    for url in urls:
        store = ArchiveStore(url)
        assert store.url == f"{tmp_path}/archive"
        assert [one.path for one in find_leftovers(store, listed, manifest_id=OWN, now_ms=later_ms).files] == [left]
        assert files_at([*listed, *listing("s3://two", "a")], store.url) == listed


def test_what_an_archive_that_moved_listed_stays(tmp_path: Path) -> None:
    """It was copied to where newer files are written since."""
    store = ArchiveStore(str(tmp_path))
    old, new = (new_file(FOLDER, first_offset=n, manifest_id=OWN) for n in range(2))
    for path in (old, new):
        store.write(path, b"abc")
    listed = [*listing("s3://bucket/before", old), *listing(store.url, new)]
    later_ms = time.time_ns() // 1_000_000 + 2 * SURE_MS
    assert find_leftovers(store, listed, manifest_id=OWN, now_ms=later_ms) == Leftovers()


def test_an_object_store_is_a_place_as_well() -> None:
    store = ArchiveStore("memory://archive/a")
    data = encode_records([block_of([b"{}"], [None])])
    store.write("events/one.parquet", data)
    fields = {"kind": "events", "url": store.url, "path": "events/one.parquet", "topic": "t", "topic_id": "i"}
    numbers = dict.fromkeys(("partition", "first_offset", "next_offset", "rows", "bytes"), 0)
    times = dict.fromkeys(("min_timestamp_ms", "max_timestamp_ms", "written_ms"), 0)
    record = FileRecord(**fields, **numbers, **times, xxh3_128=xxhash.xxh3_128_hexdigest(data))  # type: ignore[arg-type]
    assert store.read(record) == data
    store.write("events/one.parquet", data[:-1])
    with pytest.raises(FileDamaged, match="not those that were written"):
        store.read(record)
    with pytest.raises(ArchiveError, match=r"set archive\.url"):
        ArchiveStore("nowhere://archive")
