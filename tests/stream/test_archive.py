"""The archive on a real broker: every row once whatever is killed, and a replay from it is the live run."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dedup_cache import sample_position
from recd.archive import ArchiveOptions, list_files, make_archiver
from recd.embedded import EmbeddedKafka, EmbeddedRedis
from stream.archive.errors import ArchiveError, ArchiveGap, FileDamaged
from stream.archive.history import ArchiveHistory
from stream.archive.leftovers import SURE_MS, find_leftovers
from stream.archive.manifest import FileRecord, read_manifest
from stream.archive.request import ArchiveReport
from stream.archive.sample_files import plain_column
from stream.archive.store import ArchiveStore
from stream.columns import batch_schema
from stream.kafka import end_offsets, topic_id
from stream.replay.errors import RangeGone
from stream.replay.stretch import Bound
from tests.stream.replays import batches_of, delete_records, replay, rows_of
from tests.stream.rig import ROOT, START_MS, Rig, read_all, traffic

pytestmark = pytest.mark.kafka


@pytest.fixture
def rig(tmp_path: Path, kafka: EmbeddedKafka, redis_server: EmbeddedRedis, topic_prefix: str) -> Iterator[Rig]:
    limits = {"url": str(tmp_path / "archive"), "max_rows": 40}
    rig = Rig(tmp_path, kafka=kafka.bootstrap, redis=redis_server.url, prefix=topic_prefix, archive=limits).create()
    rig.tree["topics"]["archive"] = f"{topic_prefix}archive"
    rig.tree["stream"]["max_poll_records"] = 50
    rig.write()
    yield rig
    rig.close()


def archive(rig: Rig, what: str, **options: Any) -> ArchiveReport:
    asked = ArchiveOptions(what=(what,), until_end=True, accept_gap=options.get("accept_gap", False))
    return make_archiver(rig.config, asked, what=what, stop=Event()).run()


def killed_at(rig: Rig, what: str, point: str) -> None:
    command = [sys.executable, "-m", "tests.stream.archive_process", str(rig.config_path), what, point]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


def files(rig: Rig, kind: str) -> list[FileRecord]:
    return [file for file in read_manifest(rig.config.kafka, rig.config.topics.archive) if file.kind == kind]


def archived_records(rig: Rig, kind: str) -> list[tuple[int, int, int, bytes | None, bytes | None]]:
    """(partition, offset, timestamp, key, value) of every row, in the order of the files."""
    history = ArchiveHistory(rig.config, rig.config.archive.url)
    found = []
    for file in files(rig, kind):
        block = history._read(file)
        rows = zip(block.offsets.tolist(), block.append_times_ms.tolist(), block.keys, block.values, strict=True)
        found += [(file.partition, *row) for row in rows]
    return sorted(found, key=lambda row: row[:2])


def log_records(rig: Rig, topic: str) -> list[tuple[int, int, int, bytes | None, bytes | None]]:
    return [(m.partition, m.offset, m.timestamp_ms, m.key, m.value) for m in read_all(rig.config, topic)]


def live_run(rig: Rig) -> None:
    rig.publish(traffic(sessions=80))
    rig.publish([b'{"event_id": 4, "user_id"', b"", b"\xff"], partition=1)
    with rig.worker() as worker:
        worker.wait_drained()
        rig.publish(traffic(seed=1, sessions=80, start_ms=START_MS + 20_000, first_id=1_000))
        worker.wait_drained()


def test_an_archive_holds_every_row_once_and_replays_as_the_log(rig: Rig) -> None:
    """Killed with a file written that nothing lists, in the open transaction, and behind it; then the log is gone."""
    live_run(rig)
    live = rows_of(rig.config, rig.config.topics.batches)
    events, journal = (log_records(rig, topic) for topic in (rig.config.topics.interactions, rig.config.topics.journal))
    killed_at(rig, "events", "files_written:2")
    assert files(rig, "events"), "the first file is listed"
    killed_at(rig, "events", "manifest_sent:2")
    killed_at(rig, "events", "committed:1")
    archive(rig, "events")
    assert archived_records(rig, "events") == events
    assert archived_records(rig, "journal") == journal
    on_disk = [path for path in Path(rig.config.archive.url).rglob("*.parquet") if "/events/" in str(path)]
    assert len(on_disk) > len(files(rig, "events")), "what was written when it was killed stays, and does not exist"
    assert archive(rig, "events").records == 0, "nothing is left to archive"
    spelled = msgspec.structs.replace(
        rig.config, archive=msgspec.structs.replace(rig.config.archive, url=f"file://{rig.config.archive.url}/")
    )
    asked = ArchiveOptions(what=("events",), until_end=True, accept_gap=False)
    assert make_archiver(spelled, asked, what="events", stop=Event()).run().records == 0, "it is the same archive"
    store, listed = ArchiveStore(rig.config.archive.url), read_manifest(rig.config.kafka, rig.config.topics.archive)
    later_ms = time.time_ns() // 1_000_000 + 2 * SURE_MS
    manifest_id = topic_id(rig.config.kafka, rig.config.topics.archive)
    found = find_leftovers(store, listed, manifest_id=manifest_id, now_ms=later_ms)
    assert found.of_another == 0
    assert {one.path for one in found.files} == {str(path.relative_to(store.url)) for path in on_disk} - {
        file.path for file in listed
    }

    replay(rig, "from-log")
    ends = end_offsets(rig.config.kafka, rig.config.topics.interactions)
    delete_records(rig, rig.config.topics.interactions)
    with pytest.raises(RangeGone, match="recd replay --archive URL"):
        replay(rig, "gone", first=Bound(offset=5), partitions=(0,))
    history = ArchiveHistory(rig.config, rig.config.archive.url)
    report = replay(rig, "from-archive", history=history)
    assert rows_of(rig.config, rig.prefix + "from-archive") == live == rows_of(rig.config, rig.prefix + "from-log")
    assert {p: part.to_offset for p, part in report.partitions.items()} == ends
    middle = history.at(files(rig, "events")[2].max_timestamp_ms)
    part = replay(rig, "later", history=history, first=Bound(offset=middle[1]), partitions=(1,)).partitions[1]
    assert rows_of(rig.config, rig.prefix + "later")[1][part.from_sample :] == live[1][part.from_sample :]


def test_archived_samples_are_those_of_the_batches(rig: Rig) -> None:
    """With their rows by reference put in; killed between two files."""
    live_run(rig)
    killed_at(rig, "samples", "committed:1")
    killed_at(rig, "samples", "manifest_sent:1")
    archive(rig, "samples")
    store = ArchiveStore(rig.config.archive.url)
    tables = [pq.read_table(Path(store.url) / file.path) for file in files(rig, "samples")]
    rows = sorted(
        (row for table in tables for row in plain_rows(rig, table)),
        key=lambda r: (r["recd.source_partition"], r["recd.seq"]),
    )
    live = [row for batch in batches_of(rig.config, rig.config.topics.batches) for row in sample_rows(batch)]
    assert rows == sorted(live, key=lambda row: (row["recd.source_partition"], row["recd.seq"]))
    assert max(len(row["history"]) for row in rows) == 30


def plain_rows(rig: Rig, table: pa.Table) -> list[dict[str, Any]]:
    """Sample by sample, features expanded."""
    own = table.select([name for name in table.column_names if name.startswith(("recd.", "label.", "score."))])
    for group in batch_schema(rig.config).groups:
        own = own.drop_columns(["recd.row." + group.name])
        for name in (*group.dense, *group.lists):
            own = own.append_column(name, plain_column(table, name, group=group.name))
    rows: list[dict[str, Any]] = own.to_pylist()
    return rows


def sample_rows(batch: Any) -> list[dict[str, Any]]:
    """Sample by sample, in plain words."""
    rows = []
    for i in range(batch.num_samples):
        row = {
            "recd.source_topic": batch.meta.source_topic,
            "recd.offset": int(sample_position(batch.sample_ids[i : i + 1]).offset[0]),
            "recd.source_partition": batch.meta.source_partition,
            "recd.seq": batch.meta.seq + i,
            "recd.event_time_ms": int(batch.event_times_ms[i]),
            "recd.append_delay_ms": int(batch.append_times_ms[i] - batch.event_times_ms[i]),
            "recd.weight": float(batch.weights[i]),
            "label.click": float(batch.labels[i, 0]),
            "score.click": None,
        }
        for group in batch.groups.values():
            for name, column in group.rows.lists.items():
                row[name] = column.rows()[group.inverse[i]].tolist()
        rows.append(row)
    return rows


def test_what_is_missing_or_damaged_is_said(rig: Rig) -> None:
    with pytest.raises(ArchiveError, match="the manifest lists no file of this archive; there is none"):
        ArchiveHistory(rig.config, rig.config.archive.url)
    rig.publish(traffic(sessions=30))
    with rig.worker() as worker:
        worker.wait_drained()
        archive(rig, "events")
        assert {(one.kind, one.partition) for one in list_files(rig.config)} >= {("events", 0), ("events", 1)}
        rig.publish(traffic(seed=1, sessions=30, start_ms=START_MS + 20_000, first_id=1_000))
        worker.wait_drained()
    delete_records(rig, rig.config.topics.interactions)
    with pytest.raises(ArchiveGap, match="recd archive --accept-gap"):
        archive(rig, "events")
    report = archive(rig, "events", accept_gap=True)
    assert len(report.gaps) == 2
    file = files(rig, "events")[0]
    path = Path(rig.config.archive.url) / file.path
    path.write_bytes(path.read_bytes()[:-9] + b"x" * 9)
    with pytest.raises(FileDamaged, match=r"not those that were written"):
        ArchiveHistory(rig.config, rig.config.archive.url)._read(file)
    path.unlink()
    with pytest.raises(FileDamaged, match="the manifest lists it, but it cannot be read"):
        ArchiveHistory(rig.config, rig.config.archive.url)._read(file)
