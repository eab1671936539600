"""Transactions that never end, on a real broker: found, told from those that are under way, ended as was decided."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from confluent_kafka import Producer

from recd.cli import cli
from recd.embedded import EmbeddedKafka, EmbeddedRedis
from stream.config import KafkaConfig
from stream.counters import Counters
from stream.kafka import Bookmarks, Reader, create_topic, end_offsets
from stream.kafka.hanging import OFFSETS_LOG, Hanging, Unread, end_hanging, find_hanging, left_open, offsets_place
from stream.kafka.security import RequestRefused
from stream.kafka.transaction_log import (
    COMPLETE_ABORT,
    COMPLETE_COMMIT,
    ONGOING,
    PREPARE_ABORT,
    PREPARE_COMMIT,
    Decision,
    LogEntry,
    decision,
    java_partition,
    log_of,
)
from stream.kafka.wire import OpenAt
from stream.status import Troubles, WorkerView, status
from stream.stuck import Standing, StuckWatch
from tests.secured_kafka import SecuredKafka
from tests.stream.forged import Identity, send_forged, trust_producers
from tests.stream.rig import Rig, traffic, wait_until

NOBODYS_ID = 999_999


@pytest.fixture
def trusting(kafka: SecuredKafka) -> SecuredKafka:
    trust_producers(kafka)
    return kafka


@pytest.fixture
def rig(tmp_path: Path, trusting: EmbeddedKafka, redis_server: EmbeddedRedis, topic_prefix: str) -> Iterator[Rig]:
    rig = Rig(tmp_path, kafka=trusting.bootstrap, redis=redis_server.url, prefix=topic_prefix).create()
    yield rig
    rig.close()


def values(config: KafkaConfig, topic: str, partition: int) -> list[bytes | None]:
    """What committed readers see of a partition."""
    with Reader(config, topic=topic, positions={partition: 0}) as reader:
        found = []
        while not reader.at_end:
            found += [message.value for message in reader.poll(max_messages=100, timeout_ms=500)]
    return found


def transactional(bootstrap: str, name: str) -> Producer:
    producer = Producer({"bootstrap.servers": bootstrap, "transactional.id": name})
    producer.init_transactions(30)
    producer.begin_transaction()
    return producer


@pytest.mark.kafka
def test_each_is_ended_as_its_coordinator_decided(trusting: EmbeddedKafka, topic_prefix: str) -> None:
    config, topic, name = KafkaConfig(bootstrap=trusting.bootstrap), topic_prefix + "t", topic_prefix + "id"
    create_topic(config, topic, partitions=3)
    places = [(topic, partition) for partition in range(3)]
    producer = transactional(trusting.bootstrap, name)
    for partition in (0, 1):
        producer.produce(topic, b"first", partition=partition)
    producer.flush()
    assert find_hanging(config, places) == []  # the coordinator has it in hand
    assert left_open(config, [topic], transactional_id=name) == []
    producer.commit_transaction()

    wait_until(lambda: [e.status for e in log_of(config, name, since_ms=0)][-1:] == [COMPLETE_COMMIT], "its last entry")
    log = log_of(config, name, since_ms=0)
    producer_id = log[-1].producer_id
    assert log[0].updated_ms <= log[-1].updated_ms > log[-1].started_ms > 0
    assert log_of(config, name, since_ms=log[-1].updated_ms + 3_600_000) == log  # nothing from then on
    send_forged(trusting, topic, 0, identity=Identity(producer_id, 0, 1, name), value=b"unmarked")
    send_forged(trusting, topic, 2, identity=Identity(NOBODYS_ID), value=b"nobody's")
    mine, nobodys = sorted(find_hanging(config, places), key=lambda one: one.opened.partition)
    assert (mine.opened.place, mine.transactional_id, mine.decision) == ((topic, 0), name, Decision.COMMIT)
    assert (nobodys.opened.place, nobodys.transactional_id, nobodys.decision) == ((topic, 2), "", Decision.UNKNOWN)
    assert left_open(config, [topic], transactional_id=name) == [mine]
    assert [left_open(config, [topic], transactional_id=name, only=place) for place in places] == [[mine], [], []]
    assert "kafka-transactions.sh" not in mine.message("host")  # that would abort what was committed
    abort = f"--bootstrap-server host abort --topic {topic} --partition 2 --start-offset {nobodys.opened.start_offset}`"
    assert abort in nobodys.message("host")
    assert [values(config, topic, partition) for partition in range(3)] == [[b"first"], [b"first"], []]

    end_hanging(config, [mine, nobodys])
    assert find_hanging(config, places) == []
    assert [values(config, topic, partition) for partition in range(3)] == [[b"first", b"unmarked"], [b"first"], []]
    assert end_offsets(config, topic) == end_offsets(config, topic, committed=False)


@pytest.mark.kafka
def test_a_worker_refuses_to_make_visible_what_its_former_self_left(rig: Rig, trusting: EmbeddedKafka) -> None:
    topic, config = rig.config.topics.late, rig.config
    name = f"{config.stream.group_id}-static"
    producer = transactional(trusting.bootstrap, name)
    producer.produce(topic, b"a", partition=0)
    producer.commit_transaction()
    entry = log_of(config.kafka, name, since_ms=0)[-1]
    send_forged(trusting, topic, 1, identity=Identity(entry.producer_id, entry.producer_epoch, 0, name), value=b"x")

    rig.publish(traffic(sessions=3))
    app = rig.app("--set", "stream.worker_id=static")
    app.wait(lambda state: f"{topic}[1]: nobody reads past offset" in state["last_error"], "a word about it")
    assert not app.state["partitions"]
    arguments = ["transactions", "--config", str(rig.config_path)]
    shown = CliRunner().invoke(cli, arguments)
    assert (shown.exit_code, shown.output.count("`recd transactions --end --abort-unknown`")) == (1, 1), shown.output
    refused = CliRunner().invoke(cli, [*arguments, "--end"])  # it may have been committed
    assert (refused.exit_code, f"not ended: {topic}[1]" in refused.output) == (1, True)
    ended = CliRunner().invoke(cli, [*arguments, "--end", "--abort-unknown"])
    assert (ended.exit_code, "is aborted now, how it had ended was not known" in ended.output) == (0, True)
    app.wait(lambda state: state["ready"], "ready worker")
    rig.control("close")
    app.wait(lambda state: state["counters"]["samples"] > 0, "samples")
    assert rig.samples()


@pytest.mark.kafka
def test_it_is_named_once_it_has_stood_still_too_long(rig: Rig, trusting: EmbeddedKafka) -> None:
    transactional(trusting.bootstrap, f"{rig.prefix}first").abort_transaction()
    watch = StuckWatch(rig.config)
    send_forged(trusting, rig.config.topics.journal, 0, identity=Identity(NOBODYS_ID + 1), value=b"{}")
    watch.look(now_ms=0)
    watch.look(now_ms=rig.config.stream.transaction_timeout_ms)
    assert watch.messages == ()
    watch.look(now_ms=3 * rig.config.stream.transaction_timeout_ms)
    (message,) = watch.messages
    assert f"{rig.config.topics.journal}[0]: nobody reads past offset 0" in message
    assert f"producer {NOBODYS_ID + 1}" in message
    end_hanging(rig.config.kafka, find_hanging(rig.config.kafka, [(rig.config.topics.journal, 0)]))
    watch.look(now_ms=4 * rig.config.stream.transaction_timeout_ms)
    assert watch.messages == ()


@pytest.mark.kafka
def test_one_in_the_offsets_of_the_group_is_named_as_well(rig: Rig, trusting: SecuredKafka) -> None:
    """A commit of the group may hang there while every topic of the job is whole."""
    with Bookmarks(rig.config.kafka, group=rig.config.stream.group_id) as bookmarks:
        bookmarks.read(rig.config.topics.interactions, [0])  # so that the broker has made the log
    transactional(trusting.bootstrap, f"{rig.prefix}first").abort_transaction()
    place = offsets_place(rig.config.kafka, rig.config.stream.group_id)
    send_forged(trusting, *place, identity=Identity(NOBODYS_ID + 2), value=b"{}")
    watch, patience_ms = StuckWatch(rig.config), rig.config.stream.transaction_timeout_ms
    watch.look(now_ms=0)
    watch.look(now_ms=3 * patience_ms)
    (message,) = watch.messages
    assert f"{OFFSETS_LOG}[{place[1]}]: nobody reads past offset" in message
    assert f"producer {NOBODYS_ID + 2}" in message
    blind = msgspec.structs.replace(rig.config, kafka=KafkaConfig(**trusting.secured_by_token()))
    watching = StuckWatch(blind)
    watching.look(now_ms=0)
    with pytest.raises(RequestRefused, match=r"who has a transaction open cannot be asked with sasl\.mechanism OAUTH"):
        watching.look(now_ms=3 * patience_ms)
    end_hanging(rig.config.kafka, find_hanging(rig.config.kafka, [place]))
    watch.look(now_ms=4 * patience_ms)
    assert watch.messages == ()


@pytest.mark.kafka
def test_a_worker_that_may_not_ask_says_so_and_does_its_work(rig: Rig, kafka: SecuredKafka) -> None:
    rig.tree["kafka"] = kafka.secured_by_token()
    rig.write()
    rig.publish(traffic(sessions=3))
    with rig.app() as app:
        state = app.wait_drained()
        assert "the control topic cannot be read with sasl.mechanism OAUTHBEARER" in state["cannot_hear"]
        assert state["cannot_look"] == "", "nothing hangs, so nobody had to be asked"
        said = app.events("not looked at: whether an earlier process with this id left a transaction open")
        assert "the output topics" in {event["where"] for event in said}
    rig.check_exactly_once()


def test_status_says_what_is_not_known() -> None:
    view = WorkerView("running")
    shown = status(view, worker="w", counters=Counters(), rates={}, troubles=Troubles(not_looked="not allowed"))
    assert shown["cannot_look"] == "cannot look for hanging transactions: not allowed"
    assert status(view, worker="w", counters=Counters(), rates={}, troubles=Troubles())["cannot_look"] == ""


def entry(status: int, *, epoch: int = 3, place: str = "t", version: int = 0) -> LogEntry:
    return LogEntry("id", 7, epoch, status, frozenset({(place, 0)}), version)


def completed(status: int, *, epoch: int = 3, version: int = 0, began_ms: int = 0) -> LogEntry:
    return LogEntry("id", 7, epoch, status, frozenset(), version, began_ms, began_ms + 10)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([], Decision.UNKNOWN),
        ([entry(ONGOING)], Decision.UNKNOWN),
        ([entry(ONGOING), entry(PREPARE_ABORT)], Decision.ABORT),
        ([entry(PREPARE_ABORT), entry(PREPARE_COMMIT)], Decision.COMMIT),
        ([entry(PREPARE_COMMIT), entry(ONGOING)], Decision.UNKNOWN),
        ([entry(PREPARE_COMMIT), entry(PREPARE_ABORT, place="other")], Decision.COMMIT),
        ([entry(PREPARE_COMMIT, epoch=2)], Decision.UNKNOWN),  # an earlier process
        ([entry(PREPARE_ABORT, epoch=4)], Decision.ABORT),  # fenced by a timeout, which raises the epoch
        ([entry(PREPARE_COMMIT, version=2)], Decision.UNKNOWN),  # the end of the transaction before
        ([entry(PREPARE_COMMIT, version=2), entry(PREPARE_ABORT, epoch=4, version=2)], Decision.ABORT),
        ([completed(COMPLETE_COMMIT)], Decision.COMMIT),  # all that compaction leaves
        ([completed(COMPLETE_ABORT)], Decision.ABORT),
        ([completed(COMPLETE_COMMIT), entry(ONGOING)], Decision.UNKNOWN),  # of the one before
        ([entry(PREPARE_COMMIT), completed(COMPLETE_COMMIT), completed(COMPLETE_ABORT)], Decision.COMMIT),
        ([completed(COMPLETE_COMMIT, epoch=2)], Decision.UNKNOWN),
        ([completed(COMPLETE_COMMIT, epoch=4)], Decision.UNKNOWN),  # one of a later process
        ([completed(COMPLETE_COMMIT, epoch=4, version=2)], Decision.COMMIT),
        ([completed(COMPLETE_COMMIT, version=2)], Decision.UNKNOWN),
        ([completed(COMPLETE_COMMIT, began_ms=3_600_000)], Decision.UNKNOWN),  # a later one of the same epoch
    ],
)
def test_the_last_decision_about_this_very_transaction_counts(entries: list[LogEntry], expected: Decision) -> None:
    assert decision(OpenAt("t", 0, 7, 3, 0, 100, 0), entries) is expected


def test_a_place_that_could_not_be_asked_stands_as_it_did() -> None:
    standing, offsets, own = Standing(1_000), Unread((OFFSETS_LOG, 4), 7), Unread(("batches", 0), 3)
    assert standing.look([offsets, own], now_ms=0) == []
    assert standing.look([], now_ms=900, unasked=OFFSETS_LOG) == []
    assert standing.look([offsets], now_ms=1_100) == [offsets.place]
    assert standing.look([], now_ms=1_200, unasked=OFFSETS_LOG) == [offsets.place]
    assert standing.look([], now_ms=1_300) == []


def test_ids_are_where_java_puts_them() -> None:
    assert java_partition("group", partitions=50) == 98629247 % 50
    assert java_partition("polygenelubricants", partitions=50) == 0  # hashes to Integer.MIN_VALUE


def test_what_was_committed_is_not_to_be_aborted() -> None:
    opened = OpenAt("batches", 2, 7, 3, 0, 100, 0)
    message = Hanging(opened, "job-w1", Decision.COMMIT).message("host:9092")
    assert "batches[2]: nobody reads past offset 100" in message
    assert "'job-w1'" in message
    assert "to abort it would lose records" in message


def test_what_may_have_been_committed_is_not_said_to_be_unknown_to_all() -> None:
    opened = OpenAt("batches", 2, 7, 3, 0, 100, 0)
    message = Hanging(opened, "job-w1", Decision.UNKNOWN).message("host:9092")
    assert "loses records if it was committed" in message
    assert "--abort-unknown" in message
    assert "no coordinator knows it" in Hanging(opened, "", Decision.UNKNOWN).message("host:9092")
