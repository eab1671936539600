"""One worker on a real broker: what is refused, what is late, what closes by itself, what stops a partition."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import xxhash

from dedup_cache import decode_rows
from recd.embedded import EmbeddedKafka, EmbeddedRedis
from stream.columns import batch_schema
from stream.journal import decode_record
from stream.kafka import create_topic
from tests.stream.rig import GAP_MS, START_MS, Rig, read_all, traffic

pytestmark = pytest.mark.kafka


@pytest.fixture
def rig(tmp_path: Path, kafka: EmbeddedKafka, redis_server: EmbeddedRedis, topic_prefix: str) -> Iterator[Rig]:
    rig = Rig(tmp_path, kafka=kafka.bootstrap, redis=redis_server.url, prefix=topic_prefix).create()
    yield rig
    rig.close()


def impression(event_id: int, *, at_ms: int, user: int = 0, **more: object) -> dict[str, object]:
    return {"event_id": event_id, "user_id": user, "event_time_ms": at_ms, "type": "impression", "item_id": 1, **more}


def test_bad_records_are_quarantined_and_the_rest_goes_on(rig: Rig) -> None:
    rig.tree["events"] = {"max_bytes": 10_000}
    rig.write()
    good = [impression(i, at_ms=START_MS + i) for i in range(3)]
    no_key = {k: v for k, v in impression(9, at_ms=START_MS).items() if k != "user_id"}
    bad: list[tuple[str, dict[str, object] | bytes]] = [
        ("malformed", b'{"event_id": 4, "user_id"'),
        ("schema", impression(5, at_ms=START_MS, history="not a list")),
        ("schema", no_key),
        ("schema", b'{"history": 1, ' + json.dumps(impression(4, at_ms=START_MS, history=[1])).encode()[1:]),
        ("type", {**impression(8, at_ms=START_MS), "type": "glance"}),
        ("time", {**impression(6, at_ms=START_MS), "event_time_ms": "noon"}),
        ("too_large", b"x" * 20_000),
        ("ahead", impression(7, at_ms=4_000_000_000_000)),
    ]
    rig.publish([good[0], *(record for _, record in bad), *good[1:]], partition=0)
    with rig.worker() as worker:
        worker.wait_drained()
    found = {r.offset: r for r in rig.rejects("quarantine")}
    assert sorted(found) == list(range(1, 1 + len(bad)))
    sent = [v if isinstance(v, bytes) else json.dumps(v).encode() for _, v in bad]
    assert [found[1 + i].message.value for i in range(len(bad))] == sent
    assert [found[1 + i].reason for i in range(len(bad))] == [reason for reason, _ in bad]
    assert len(rig.check_exactly_once()[0]) == 3


def test_a_record_larger_than_quarantine_takes_leaves_its_digest(rig: Rig) -> None:
    create_topic(rig.config.kafka, "small-" + rig.prefix, partitions=2, settings={"max.message.bytes": "20000"})
    rig.tree["topics"]["quarantine"] = "small-" + rig.prefix
    rig.tree["events"] = {"max_bytes": 10_000}
    rig.write()
    huge = b"y" * 30_000
    rig.publish([impression(0, at_ms=START_MS), huge], partition=0)
    with rig.worker() as worker:
        worker.wait_drained()
    (reject,) = rig.rejects("quarantine")
    headers = dict(reject.message.headers)
    assert reject.message.value == b""
    assert headers["recd.size"] == b"30000"
    assert headers["recd.xxh3_128"] == xxhash.xxh3_128_hexdigest(huge).encode()


def test_late_events_go_to_late_with_their_bytes(rig: Rig) -> None:
    late = impression(2, at_ms=START_MS)
    rig.publish([impression(0, at_ms=START_MS), impression(1, at_ms=START_MS + 10 * GAP_MS, user=2), late], partition=0)
    with rig.worker() as worker:
        worker.wait_drained()
        assert worker.state["counters"]["late"] == 1
    (reject,) = rig.rejects("late")
    assert (reject.reason, reject.offset) == ("late", 2)
    assert reject.message.value == json.dumps(late).encode()
    assert len(rig.check_exactly_once()[0]) == 2


def test_silence_closes_sessions_and_stands_in_the_journal(rig: Rig) -> None:
    rig.publish([impression(0, at_ms=START_MS)], partition=0)
    with rig.worker() as worker:
        worker.wait_drained()
        rig.publish([impression(1, at_ms=START_MS + 1, user=2)], partition=0)
        worker.wait(lambda s: s["partitions"]["0"]["resume"] == 2, "second event")
        worker.wait_drained()
    records = [decode_record(m.value or b"", place="") for m in read_all(rig.config, rig.config.topics.journal)]
    of_0 = [record for record in records if record.partition == 0]
    assert [record.commit for record in of_0] == list(range(1, len(of_0) + 1))
    advances = [advance for record in of_0 for advance in record.advances]
    assert advances[0].position == 1
    assert advances[0].watermark_ms >= START_MS + GAP_MS
    assert advances[-1].watermark_ms < START_MS + 600_000, "it grows by the time elapsed: old events stay old"
    samples, late = rig.samples(), rig.rejects("late")
    assert len(samples[0]) + len(late) == 2, "the second is late if the silence lasted, a sample if not; never both"


def test_large_values_travel_once_by_reference(rig: Rig) -> None:
    rig.publish(traffic(sessions=60))
    with rig.worker() as worker:
        worker.wait_drained()
        shipped = worker.state["counters"]["values_shipped"]
    values = read_all(rig.config, rig.config.topics.values)
    schema = {group.name: group for group in batch_schema(rig.config).groups}
    stored = {message.key: message.value or b"" for message in values}
    assert len(values) == len(stored) == shipped, "a value known to all was shipped again"
    named = set()
    for batch in rig.batches():
        for name, group in batch.groups.items():
            for row in group.missing().tolist():
                assert group.ids is not None
                key = f"{batch.meta.generation}/{name}/{group.ids[row]}".encode()
                assert decode_rows([stored[key]], schema[name]).num_rows == 1
                named.add(key)
    assert named == set(stored)


def test_a_sample_too_large_for_any_batch_is_quarantined_with_its_bytes(rig: Rig) -> None:
    rig.tree["batch"]["max_bytes"] = 70_000
    rig.tree["features"][1]["max_length"] = 12_000
    rig.write()
    large = impression(1, at_ms=START_MS + 1, history=list(range(12_000)))
    rig.publish([impression(0, at_ms=START_MS), large, impression(2, at_ms=START_MS + 2)], partition=0)
    with rig.worker() as worker:
        worker.wait_drained()
        assert worker.state["counters"]["samples"] == 2
    (reject,) = rig.rejects("quarantine")
    assert (reject.reason, reject.offset) == ("too_large", 1)
    assert reject.message.value == json.dumps(large).encode()
    rig.check_exactly_once()


def test_batches_above_the_limit_are_split(rig: Rig) -> None:
    rig.tree["batch"] |= {"max_bytes": 70_000, "max_samples": 64}
    rig.tree["dedup"]["inline_bytes"] = 1_000_000
    rig.tree["features"][1]["max_length"] = 200
    rig.write()
    wide = [impression(i, at_ms=START_MS + i, history=[i * 1_000 + k for k in range(200)]) for i in range(64)]
    rig.publish(wide, partition=0)
    with rig.worker() as worker:
        worker.wait_drained()
    messages = read_all(rig.config, rig.config.topics.batches)
    assert max(len(message.value or b"") for message in messages) <= 70_000
    assert len(messages) > 64 * 200 * 8 // 70_000
    rig.check_exactly_once()


def test_an_event_id_counts_once(rig: Rig) -> None:
    twice = impression(0, at_ms=START_MS)
    rig.publish([twice, {**twice, "duplicate_of": 0}, impression(1, at_ms=START_MS + 5)], partition=0)
    with rig.worker() as worker:
        worker.wait_drained()
        assert worker.state["counters"]["duplicates"] == 1
    assert len(rig.check_exactly_once()[0]) == 2
