"""Log, commits or configuration changed while no worker ran: what it says, what an operator can do, what is lost then.

A real broker and `recd stream`. Several partitions are hurt in ways of their own, so that one start shows them all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions

from recd.audit import audit, format_report
from recd.embedded import EmbeddedKafka, EmbeddedRedis
from stream.journal import JournalRecord, decode_record
from stream.kafka import end_offsets
from stream.topics import create_topics
from tests.stream.rig import (
    START_MS,
    AppProcess,
    Rig,
    is_impression,
    patiently,
    plain_sample_id,
    read_all,
    traffic,
    wait_until,
)

pytestmark = pytest.mark.kafka

GAP_MS = 60_000
CUT, SET_BACK, STRANGER, INTACT = range(4)


@pytest.fixture
def rig(tmp_path: Path, kafka: EmbeddedKafka, redis_server: EmbeddedRedis, topic_prefix: str) -> Iterator[Rig]:
    rig = Rig(tmp_path, kafka=kafka.bootstrap, redis=redis_server.url, prefix=topic_prefix)
    rig.tree["stream"]["transaction_timeout_ms"] = 4_000
    yield rig
    rig.close()


@pytest.fixture
def admin(kafka: EmbeddedKafka) -> AdminClient:
    return AdminClient({"bootstrap.servers": kafka.bootstrap})


def visit(*, user: int, at_ms: int, first_id: int) -> list[dict[str, Any]]:
    """Three impressions of one session."""
    shown = {"user_id": user, "type": "impression", "item_id": 1}
    return [{"event_id": first_id + i, "event_time_ms": at_ms + 10 * i, **shown} for i in range(3)]


def refusal(app: AppProcess) -> str:
    """Why it ended by itself, as the log's last word has it."""
    assert app.process.wait(timeout=60) == 1, app.tail()
    return str(app.events("failed")[-1]["reason"])


def notes(rig: Rig) -> dict[int, list[str]]:
    """By partition, what the journal says that an operator accepted."""
    found: dict[int, list[str]] = {}
    for message in read_all(rig.config, rig.config.topics.journal):
        record: JournalRecord = decode_record(message.value or b"", place="")
        if record.note and record.note != "start":
            found.setdefault(record.partition, []).append(record.note)
    return found


def set_commit(admin: AdminClient, rig: Rig, place: TopicPartition) -> None:
    """As `kafka-consumer-groups --reset-offsets` does; possible once the last member is gone."""
    group = rig.config.stream.group_id

    def done() -> bool:
        future = admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(group, [place])])[group]
        return all(answer.error is None for answer in future.result(30).topic_partitions)

    wait_until(done, "changed offset")


def test_log_cut_offsets_changed_and_parameters_changed(rig: Rig, admin: AdminClient) -> None:
    rig.tree["topics"]["partitions"] = 4
    rig.tree["session"] = {"gap_ms": GAP_MS, "out_of_orderness_ms": 50, "idle_after_ms": 200}
    rig.write()
    rig.create()
    topic = rig.config.topics.interactions
    for p in range(4):
        closed = visit(user=p, at_ms=START_MS, first_id=100 * p)
        rig.publish([*closed, *visit(user=10 + p, at_ms=START_MS + 2 * GAP_MS, first_id=100 * p + 10)], partition=p)
    with rig.app() as app:
        app.wait(lambda s: [p.get("resume") for p in s["partitions"].values()] == [6] * 4, "all read")
        assert [p["committed"] for p in app.state["partitions"].values()] == [3] * 4

    admin.delete_records([TopicPartition(topic, CUT, 4)])[TopicPartition(topic, CUT, 4)].result(30)
    group = Consumer({"bootstrap.servers": rig.config.kafka.bootstrap, "group.id": rig.config.stream.group_id})
    (place,) = group.committed([TopicPartition(topic, SET_BACK)], 30)
    group.close()
    older = json.dumps({**json.loads(place.metadata or ""), "commit": 1})
    set_commit(admin, rig, TopicPartition(topic, SET_BACK, 0, metadata=older))
    set_commit(admin, rig, TopicPartition(topic, STRANGER, 5))
    rig.tree["session"]["gap_ms"] = GAP_MS // 2
    rig.write()

    said = dict(enumerate(refusal(rig.app()).split(f"; {topic}[")))
    assert "the log begins at offset 4, but open sessions need it from 3 on: 1 offsets were deleted" in said[CUT]
    assert "(see retention.ms of the topic)" in said[CUT]
    assert "the committed offset was set back to commit 1" in said[SET_BACK]
    assert "offset 5 was committed by something that is not a stream worker" in said[STRANGER]
    for p in (CUT, SET_BACK, STRANGER):
        assert f"`recd stream --accept-loss {p}`" in said[p]
        assert "session.gap_ms was 60000, is 30000" in said[p], "who accepts a loss must see the whole of it"
    assert "session.gap_ms was 60000, is 30000. To go on: start once with `recd stream --close-all`" in said[INTACT]

    accepted = [part for p in (CUT, SET_BACK, STRANGER) for part in ("--accept-loss", str(p))]
    with rig.app(*accepted, "--close-all") as app:
        for p in range(4):
            rig.publish(visit(user=20 + p, at_ms=START_MS + 3 * GAP_MS, first_id=100 * p + 20), partition=p)
        app.wait_ready()
        rig.control("close")
        app.wait_drained(4)
    journalled = notes(rig)
    assert "1 offsets were deleted" in journalled[CUT][0]
    assert "set back" in journalled[SET_BACK][0]
    assert "not a stream worker" in journalled[STRANGER][0]
    assert all("close-all before a change of session.gap_ms" in journalled[p][-1] for p in range(4))

    samples = rig.samples()
    assert [len(samples[p]) for p in range(4)] == [8, 9, 9, 9], "what was cut off is lost, nothing else"
    assert all(len(set(ids)) == len(ids) for ids in samples.values())
    left = [m for m in read_all(rig.config, topic) if is_impression(m.value)]
    assert {plain_sample_id(m.partition, m.offset) for m in left} <= {i for ids in samples.values() for i in ids}
    report = audit(rig.config)
    assert report.ok, format_report(report)


def test_offsets_expired_partitions_added_and_the_topic_made_again(rig: Rig, admin: AdminClient) -> None:
    rig.create()
    topic, group = rig.config.topics.interactions, rig.config.stream.group_id
    rig.publish(traffic(sessions=20))
    with rig.app() as app:
        app.wait_drained()
    admin.delete_consumer_groups([group])[group].result(30)
    admin.create_partitions([NewPartitions(topic, 3)])[topic].result(30)

    app = rig.app()
    app.wait(lambda s: {p.get("state") for p in s["partitions"].values()} == {"stopped", "live"}, "two that stopped")
    assert not app.state["ready"]
    for p in ("0", "1"):
        message = app.state["partitions"][p]["message"]
        assert "the committed offset is gone (the broker forgets those of a group that was empty" in message
        assert "the topic had 2 partitions and has 3: keys have moved to other partitions" in message
        assert f"`recd stream --accept-loss {p}`, which goes on from there, without a loss" in message
    assert app.state["partitions"]["2"]["state"] == "live", "a partition that stops does not stop others"
    assert app.stop() == 0

    with rig.app("--accept-loss", "0", "--accept-loss", "1") as app:
        rig.publish(traffic(seed=1, sessions=20, start_ms=START_MS + 4_000, first_id=1_000))
        app.wait_drained(3)
    rig.check_exactly_once()

    before = rig.samples()
    admin.delete_topics([topic])[topic].result(30)
    wait_until(lambda: topic not in admin.list_topics(timeout=10).topics, "deleted topic")
    rig.tree["topics"]["partitions"] = 3
    rig.write()
    create_topics(rig.config)
    rig.publish(traffic(seed=2, sessions=20, start_ms=START_MS + 8_000, first_id=2_000))
    said = refusal(rig.app())
    assert "the topic was deleted and made again" in said
    assert "`recd stream --accept-loss 0`, which starts at the beginning of the new log" in said
    with rig.app("--accept-loss", "0", "--accept-loss", "1", "--accept-loss", "2") as app:
        app.wait_drained(3)
    new = {p: ids[len(before.get(p, [])) :] for p, ids in rig.samples().items()}
    due = [plain_sample_id(m.partition, m.offset) for m in read_all(rig.config, topic) if is_impression(m.value)]
    assert sorted(i for ids in new.values() for i in ids) == sorted(due)
    assert "the topic was deleted and made again" in notes(rig)[0][-1]


def test_commits_and_journal_both_lost(rig: Rig, admin: AdminClient) -> None:
    rig.create()
    group, journal = rig.config.stream.group_id, rig.config.topics.journal
    rig.publish(traffic(sessions=20))
    with rig.app() as app:
        app.wait_drained()
    before = rig.samples()
    ends = end_offsets(rig.config.kafka, rig.config.topics.interactions)
    admin.delete_consumer_groups([group])[group].result(30)
    admin.delete_topics([journal])[journal].result(30)
    wait_until(lambda: journal not in admin.list_topics(timeout=10).topics, "deleted journal")
    create_topics(rig.config)

    said = refusal(rig.app())
    for p in (0, 1):
        assert f"has {len(before[p])} samples of it, up to offset" in said
        assert f"`recd stream --accept-loss {p}`, which goes on at offset" in said
    assert "neither a committed offset nor a journal record is left" in said
    assert rig.samples() == before

    rig.publish(traffic(seed=1, sessions=20, start_ms=START_MS + 4_000, first_id=1_000))
    with rig.app("--accept-loss", "0", "--accept-loss", "1") as app:
        app.wait_drained()
    after = rig.samples()
    assert all(after[p][: len(before[p])] == before[p] for p in before), "nothing was made twice"
    fresh = [m for m in read_all(rig.config, rig.config.topics.interactions) if m.offset >= ends[m.partition]]
    due = {plain_sample_id(m.partition, m.offset) for m in fresh if is_impression(m.value)}
    assert due == {i for p, ids in after.items() for i in ids[len(before[p]) :]}
    assert "neither a committed offset" in notes(rig)[0][0]


def test_the_end_of_the_log_was_lost(
    tmp_path: Path, private_kafka: EmbeddedKafka, redis_server: EmbeddedRedis, topic_prefix: str
) -> None:
    """As when a machine loses its power with records that are not on the disk yet: the topic keeps its id."""
    rig = Rig(tmp_path, kafka=private_kafka.bootstrap, redis=redis_server.url, prefix=topic_prefix)
    rig.tree["topics"]["partitions"] = 1
    rig.write()
    rig.create()
    kafka, topic = rig.config.kafka, rig.config.topics.interactions
    for second in range(4):
        start_ms = START_MS + 2_000 * second
        rig.publish(traffic(seed=second, sessions=5, start_ms=start_ms, first_id=1_000 * second), partition=0)
    with rig.app() as app:
        app.wait_drained(1)
    before, end = rig.samples()[0], end_offsets(kafka, topic)[0]

    private_kafka.kill()
    segment = private_kafka.data_dir / "log" / f"{topic}-0" / f"{0:020d}.log"
    os.truncate(segment, segment.stat().st_size * 2 // 3)
    private_kafka.start()
    wait_until(lambda: patiently(lambda: end_offsets(kafka, topic))[0] < end, "log that is shorter")
    left = end_offsets(kafka, topic)[0]
    with closing(rig):
        said = refusal(rig.app())
    assert f"{topic}[0]: the log ends at offset {left}, but {end} was processed: its end was lost. To go on: " in said
    assert "goes on at the end of the log and leaves out what was written since the loss" in said

    with rig.app("--accept-loss", "0") as app:
        app.wait_ready()
        rig.publish(traffic(seed=9, sessions=5, start_ms=START_MS + 20_000, first_id=9_000), partition=0)
        app.wait_drained(1)
    fresh = [m for m in read_all(rig.config, topic) if m.offset >= left and is_impression(m.value)]
    assert rig.samples()[0][: len(before)] == before
    assert sorted(rig.samples()[0][len(before) :]) == sorted(plain_sample_id(0, m.offset) for m in fresh)
    assert "its end was lost" in notes(rig)[0][-1]
