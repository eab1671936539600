"""What killed workers wrote, restored from snapshots, is to the byte what one undisturbed pass over the log makes."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from dedup_cache import Jagged, Rows, expand, sample_id
from recd.embedded import EmbeddedKafka, EmbeddedRedis
from stream.builder import concat_samples
from stream.journal import JournalRecord, decode_record
from stream.kafka import Message
from stream.pipeline import PartitionPipeline, PipelineConfig
from stream.records import CommitPoint, RecordBlock, SampleBlock
from tests.stream.rig import START_MS, Rig, read_all, traffic

pytestmark = pytest.mark.kafka

CRASHES = ("snapshot_sent:3", "journal_sent:4", "reading a snapshot:2", "committed:6")


@pytest.fixture
def rig(tmp_path: Path, kafka: EmbeddedKafka, redis_server: EmbeddedRedis, topic_prefix: str) -> Iterator[Rig]:
    rig = Rig(
        tmp_path,
        kafka=kafka.bootstrap,
        redis=redis_server.url,
        prefix=topic_prefix,
        session={"gap_ms": 1_500, "max_duration_ms": 6_000},
        dedup={"inline_bytes": 1_000_000},
        stream={"snapshot_every_events": 20, "group_id": f"{topic_prefix}group", "max_poll_records": 15, "port": 0},
    ).create()
    yield rig
    rig.close()


def test_replay_equals_live_whatever_was_killed_and_restored(rig: Rig) -> None:
    chance, restores = random.Random(7), 0
    for round_, crash in enumerate((*CRASHES, "")):
        start_ms, first_id = START_MS + round_ * 3_600, round_ * 1_000
        worker = rig.worker(crash=crash)
        rig.publish(traffic(seed=round_, sessions=60, start_ms=start_ms, first_id=first_id))
        if crash:
            worker.wait_killed()
        else:
            worker.wait_ready()
            time.sleep(chance.random() * 0.3)
            worker.kill()
        restores += worker.state.get("counters", {}).get("restores", 0)
    with rig.worker() as worker:
        worker.wait_ready()
        worker.order("close")
        restores += worker.wait_drained()["counters"]["restores"]
    assert restores >= 2, "no snapshot was of use"
    rig.check_exactly_once()
    rejects_have_their_bytes(rig)
    live, replayed = live_columns(rig), replayed_columns(rig)
    assert live.keys() == replayed.keys() == {0, 1}
    for partition, columns in live.items():
        assert {name: len(data) for name, data in columns.items()} == {
            name: len(data) for name, data in replayed[partition].items()
        }
        assert columns == replayed[partition]


def rejects_have_their_bytes(rig: Rig) -> None:
    """Also those that a snapshot did not keep."""
    log = {(m.partition, m.offset): (m.key, m.value) for m in read_all(rig.config, rig.config.topics.interactions)}
    for topic in ("late", "quarantine"):
        for reject in rig.rejects(topic):
            found = log[reject.partition, reject.offset]
            assert (reject.message.key, reject.message.value) == found, reject


def live_columns(rig: Rig) -> dict[int, dict[str, bytes]]:
    """By source partition, every sample of the batches topic in order."""
    batches = rig.batches()
    found = {}
    for partition in {batch.meta.source_partition for batch in batches}:
        own = [batch for batch in batches if batch.meta.source_partition == partition]
        groups = {name: Rows.concat([expand(batch.groups[name]) for batch in own]) for name in own[0].groups}
        columns = {
            name: np.concatenate([getattr(batch, name) for batch in own]).tobytes()
            for name in ("sample_ids", "labels", "weights", "scores", "event_times_ms", "append_times_ms")
        }
        found[partition] = columns | group_bytes(groups)
    return found


def replayed_columns(rig: Rig) -> dict[int, dict[str, bytes]]:
    """The same from the log and the journalled advances alone, in this process."""
    journal = [decode_record(m.value or b"", place="") for m in read_all(rig.config, rig.config.topics.journal)]
    log = read_all(rig.config, rig.config.topics.interactions)
    found = {}
    for partition in {record.partition for record in journal}:
        records = [message for message in log if message.partition == partition]
        samples = replay(rig, partition, records, [record for record in journal if record.partition == partition])
        columns = {
            name: getattr(samples, name).tobytes()
            for name in ("labels", "weights", "scores", "event_times_ms", "append_times_ms")
        }
        ids = {"sample_ids": sample_id(partition, samples.offsets).tobytes()}
        found[partition] = columns | ids | group_bytes(samples.groups)
    return found


def replay(rig: Rig, partition: int, log: Sequence[Message], journal: Sequence[JournalRecord]) -> SampleBlock:
    pipeline = PartitionPipeline(PipelineConfig.of(rig.config), partition=partition, start=CommitPoint(0))
    outputs = []
    for advance in (advance for record in journal for advance in record.advances):
        due = [message for message in log if pipeline.position <= message.offset < advance.position]
        outputs += [pipeline.feed(block_of(partition, due)), pipeline.advance(advance.watermark_ms)]
    assert not [message for message in log if message.offset >= journal[-1].resume]
    return concat_samples([output.samples for output in outputs if output.samples is not None])


def block_of(partition: int, messages: Sequence[Message]) -> RecordBlock:
    offsets, times_ms = ([getattr(m, name) for m in messages] for name in ("offset", "timestamp_ms"))
    columns = (np.array(offsets, np.int64), np.array(times_ms, np.int64))
    return RecordBlock(partition, *columns, [m.key for m in messages], [m.value for m in messages])


def group_bytes(groups: dict[str, Rows]) -> dict[str, bytes]:
    """Every column of every group; lists row by row, however they were stored."""
    found = {}
    for name, rows in groups.items():
        found[f"{name}.dense"] = rows.dense.tobytes()
        for feature, column in rows.lists.items():
            found[f"{name}.{feature}"] = plain(column)
    return found


def plain(column: Jagged) -> bytes:
    values, lengths = column.compact()
    return lengths.tobytes() + values.tobytes()
