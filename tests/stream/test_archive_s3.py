"""The archive's files in an object store over its own protocol: moto's server, where s3fs and moto are installed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
import xxhash

from stream.archive.errors import ArchiveError, FileDamaged
from stream.archive.leftovers import SURE_MS, find_leftovers
from stream.archive.manifest import FileRecord
from stream.archive.place import new_file
from stream.archive.store import ArchiveStore

pytest.importorskip("s3fs", reason="s3fs is not installed")
moto = pytest.importorskip("moto.server", reason="moto[server] is not installed")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    import boto3  # type: ignore[import-not-found, unused-ignore]

    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    url = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in (keys | {"AWS_ENDPOINT_URL": url}).items():
        monkeypatch.setenv(name, value)
    boto3.client("s3", endpoint_url=url).create_bucket(Bucket="recd")
    yield "s3://recd"
    server.stop()


def test_files_in_a_bucket(bucket: str) -> None:
    store = ArchiveStore(f"{bucket}/archive")
    data = os.urandom(12_000_000)
    paths = [new_file("events/t/00000", first_offset=0, manifest_id="i" * 22) for _ in range(2)]
    for path in paths:
        store.write(path, data)
    places = {"path": paths[0], "topic": "t", "topic_id": "i", "partition": 0}
    numbers = {"first_offset": 0, "next_offset": 1, "rows": 1, "bytes": len(data), "written_ms": 0}
    times = {"min_timestamp_ms": 0, "max_timestamp_ms": 0, "xxh3_128": xxhash.xxh3_128_hexdigest(data)}
    listed = FileRecord(kind="events", url="s3a://recd/archive/", **places, **numbers, **times)  # type: ignore[arg-type]
    assert store.read(listed) == data
    now_ms = time.time_ns() // 1_000_000
    assert not find_leftovers(store, [listed], manifest_id="i" * 22, now_ms=now_ms).files
    (left,) = find_leftovers(store, [listed], manifest_id="i" * 22, now_ms=now_ms + 2 * SURE_MS).files
    assert (left.path, left.bytes) == (paths[1], len(data))
    store.delete(left.path)
    store.delete(listed.path)
    with pytest.raises(FileDamaged, match="the manifest lists it, but it cannot be read"):
        ArchiveStore(store.url).read(listed)
    with pytest.raises(ArchiveError, match="cannot be written"):
        ArchiveStore("s3://misspelt/archive").write("events/one.parquet", data)
