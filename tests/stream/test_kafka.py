"""The Kafka edge on a real broker: what is promised about positions, transactions, ends and errors."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import confluent_kafka as ck
import msgspec
import pytest

from recd.embedded import EmbeddedKafka, free_port
from stream import kafka as edge
from stream.config import KafkaConfig

pytestmark = pytest.mark.kafka


@pytest.fixture
def broker(kafka: EmbeddedKafka) -> KafkaConfig:
    return KafkaConfig(bootstrap=kafka.bootstrap)


@pytest.fixture
def topic(broker: KafkaConfig, topic_prefix: str) -> str:
    name = topic_prefix + "topic"
    edge.create_topic(broker, name, partitions=2)
    return name


def read(broker: KafkaConfig, topic: str, positions: dict[int, int]) -> list[edge.Message]:
    messages = []
    with edge.Reader(broker, topic=topic, positions=positions) as reader:
        while not reader.at_end:
            messages += reader.poll(max_messages=100, timeout_ms=50)
    return messages


def transactional(broker: KafkaConfig, name: str) -> edge.TransactionalWriter:
    writer = edge.TransactionalWriter(
        broker, transactional_id=name, timeout_ms=10_000, compression="zstd", max_batch_bytes=1_000_000
    )
    writer.init(on_wait=lambda _: None)
    return writer


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def settled(broker: KafkaConfig, topic: str) -> None:
    """The markers of a transaction are written after its commit was acknowledged."""
    eventually(lambda: edge.end_offsets(broker, topic) == edge.end_offsets(broker, topic, committed=False))


def test_what_is_written_is_read(broker: KafkaConfig, topic: str) -> None:
    with edge.Writer(broker) as writer:
        for i in range(10):
            writer.send(topic, b"%d" % i, key=b"k", partition=i % 2, headers=[("h", b"v")], timestamp_ms=1000 + i)
        writer.send(topic, None, key=b"gone", partition=0)
        writer.flush(10_000)
    messages = read(broker, topic, {0: 0, 1: 2})
    assert [m.value for m in messages if m.partition == 0] == [b"0", b"2", b"4", b"6", b"8", None]
    assert [(m.offset, m.value) for m in messages if m.partition == 1] == [(2, b"5"), (3, b"7"), (4, b"9")]
    assert messages[0].headers == (("h", b"v"),)
    assert {m.timestamp_ms for m in messages if m.value == b"4"} == {1004}
    assert edge.end_offsets(broker, topic) == {0: 6, 1: 5}
    assert edge.begin_offsets(broker, topic) == {0: 0, 1: 0}


def test_a_reader_goes_where_it_is_told(broker: KafkaConfig, topic: str) -> None:
    with edge.Writer(broker) as writer:
        for i in range(5):
            writer.send(topic, b"%d" % i, partition=0)
        writer.flush(10_000)
    with edge.Reader(broker, topic=topic, positions={0: 0}) as reader:
        while not reader.at_end:
            reader.poll(max_messages=2, timeout_ms=50)
        assert reader.positions() == {0: 5}
        reader.seek(0, 3)
        assert not reader.at_end
        messages = []
        while not reader.at_end:
            messages += reader.poll(max_messages=100, timeout_ms=50)
        assert [m.offset for m in messages] == [3, 4]


def test_a_position_outside_the_log_is_an_error(broker: KafkaConfig, topic: str) -> None:
    with (
        edge.Reader(broker, topic=topic, positions={0: 99}) as reader,
        pytest.raises(edge.OffsetOutOfRange, match="@99"),
    ):
        eventually(lambda: bool(reader.poll(max_messages=1, timeout_ms=100)))


def test_errors_have_names(broker: KafkaConfig, topic: str) -> None:
    with pytest.raises(edge.TopicExists):
        edge.create_topic(broker, topic, partitions=1)
    for ask in (edge.partition_count, edge.topic_id, edge.topic_settings, edge.begin_offsets):
        with pytest.raises(edge.TopicMissing, match="recd topics create"):
            ask(broker, "nowhere-" + topic)


def test_no_broker() -> None:
    nobody = KafkaConfig(bootstrap=f"127.0.0.1:{free_port()}", options={"socket.connection.setup.timeout.ms": "1000"})
    heard: list[str] = []
    with pytest.raises(edge.BrokerUnavailable, match=r"start one or set kafka\.bootstrap"):
        edge.wait_for_broker(nobody, timeout_ms=1_500, on_wait=heard.append)
    assert heard
    with edge.Writer(nobody) as writer:
        writer.send("t", b"v")
        with pytest.raises(edge.DeliveryFailed, match="1 records are still waiting"):
            writer.flush(200)


def test_a_record_that_the_topic_does_not_take_is_an_error(broker: KafkaConfig, topic_prefix: str) -> None:
    edge.create_topic(broker, topic_prefix + "small", partitions=1, settings={"max.message.bytes": "1000"})
    with edge.Writer(broker, compression="none") as writer:
        writer.send(topic_prefix + "small", b"x" * 2_000)
        with pytest.raises(edge.DeliveryFailed):
            writer.flush(10_000)


def test_a_transaction_is_all_or_nothing(broker: KafkaConfig, topic: str) -> None:
    writer = transactional(broker, topic)
    offsets: list[int] = []
    writer.begin()
    writer.send(topic, b"dropped", partition=0)
    writer.abort(on_wait=lambda _: None)
    writer.begin()
    writer.send(topic, b"kept", partition=0, on_offset=offsets.append)
    writer.send(topic, b"kept too", partition=1)
    assert read(broker, topic, {0: 0, 1: 0}) == []
    writer.commit(on_wait=lambda _: None)
    settled(broker, topic)
    assert sorted(m.value or b"" for m in read(broker, topic, {0: 0, 1: 0})) == [b"kept", b"kept too"]
    assert offsets == [m.offset for m in read(broker, topic, {0: 0})]
    writer.close()


def test_the_second_process_fences_the_first(broker: KafkaConfig, topic: str) -> None:
    first = transactional(broker, topic)
    first.begin()
    first.send(topic, b"lost", partition=0)
    second = transactional(broker, topic)
    with pytest.raises(edge.Fenced, match=r"stream\.worker_id"):
        first.commit(on_wait=lambda _: None)
    second.begin()
    second.send(topic, b"won", partition=0)
    second.commit(on_wait=lambda _: None)
    settled(broker, topic)
    assert [m.value for m in read(broker, topic, {0: 0})] == [b"won"]
    first.close()
    second.close()


class Recorder:
    """What a group consumer calls."""

    def __init__(self) -> None:
        self.owned: set[int] = set()

    def assigned(self, partitions: list[int]) -> None:
        self.owned |= set(partitions)

    def revoked(self, partitions: list[int]) -> None:
        self.owned -= set(partitions)

    def lost(self, partitions: list[int]) -> None:
        self.owned -= set(partitions)


@pytest.mark.parametrize("protocol", ["consumer", "classic"])
def test_a_group_member_reads_from_where_it_is_told_and_commits_in_a_transaction(
    broker: KafkaConfig, topic: str, protocol: str
) -> None:
    with edge.Writer(broker) as plain:
        for i in range(6):
            plain.send(topic, b"%d" % i, key=b"k%d" % i, partition=0)
        plain.flush(10_000)
    recorder = Recorder()
    group = edge.GroupConsumer(broker, topic=topic, group_id=topic, protocol=protocol, rebalance=recorder)
    assert group.group_metadata().generation < 0, "not a member before it joined"
    eventually(lambda: bool(group.poll(max_records=10, timeout_ms=50) and recorder.owned == {0, 1}))
    assert group.committed([0, 1], timeout_ms=5_000) == {0: None, 1: None}
    assert group.poll(max_records=10, timeout_ms=300).num_records == 0, "nothing before it is told where to start"
    group.start(0, offset=2)
    offsets: list[int] = []
    ends: dict[int, int] = {}

    def poll() -> bool:
        polled = group.poll(max_records=10, timeout_ms=50)
        offsets.extend(offset for block in polled.blocks for offset in block.offsets.tolist())
        ends.update(polled.ends)
        return len(offsets) >= 4 and 0 in ends

    eventually(poll)
    assert offsets == [2, 3, 4, 5]
    assert ends[0] == 6
    writer = transactional(broker, topic)
    metadata = group.group_metadata()
    assert metadata.generation >= 0
    writer.begin()
    writer.send_offsets(topic, {0: edge.Committed(4, "text")}, metadata=metadata, on_wait=lambda _: None)
    writer.commit(on_wait=lambda _: None)
    assert group.committed([0], timeout_ms=5_000) == {0: edge.Committed(4, "text")}
    writer.close()
    group.close()
    assert recorder.owned == set()


@pytest.mark.parametrize(("protocol", "loser"), [("consumer", 1), ("classic", 0)])
def test_of_two_static_members_with_one_name_one_is_told(
    broker: KafkaConfig, topic: str, protocol: str, loser: int
) -> None:
    if protocol == "classic":
        broker = msgspec.structs.replace(broker, options={"heartbeat.interval.ms": "200"})
    members: list[edge.GroupConsumer] = []
    for _ in range(2):
        recorder = Recorder()
        member = edge.GroupConsumer(
            broker, topic=topic, group_id=topic, protocol=protocol, rebalance=recorder, instance_id="one"
        )
        members.append(member)
        if len(members) == 1:
            eventually(lambda r=recorder: bool(members[0].poll(max_records=1, timeout_ms=50) and r.owned == {0, 1}))
    with pytest.raises(edge.IdentityTaken, match=r"another process uses the same stream\.worker_id"):
        eventually(lambda: not members[loser].poll(max_records=1, timeout_ms=50))
    for member in members:
        member.close()


def test_fenced_at_any_step_a_process_hears_of_the_other(broker: KafkaConfig, topic: str) -> None:
    recorder = Recorder()
    group = edge.GroupConsumer(broker, topic=topic, group_id=topic, protocol="consumer", rebalance=recorder)
    eventually(lambda: bool(group.poll(max_records=10, timeout_ms=50) and recorder.owned == {0, 1}))
    metadata = group.group_metadata()

    def ignore(_: str) -> None:
        """Nobody waits here."""

    for step in range(5):
        first = transactional(broker, f"{topic}{step}")
        others: list[edge.TransactionalWriter] = []
        actions: list[Callable[[], object]] = [
            first.begin,
            partial(first.send, topic, b"lost", partition=0),
            partial(first.send_offsets, topic, {0: edge.Committed(0, "")}, metadata=metadata, on_wait=ignore),
            partial(first.commit, on_wait=ignore),
        ]
        actions.insert(step, lambda step=step, others=others: others.append(transactional(broker, f"{topic}{step}")))
        if step == len(actions) - 1:  # an empty transaction asks no broker
            actions += [first.begin, actions[1], partial(first.commit, on_wait=ignore)]
        with pytest.raises(edge.Fenced, match=r"stream\.worker_id"):
            _until_fenced(first, actions)
        first.close()
        others[0].close()
    group.close()


def _until_fenced(writer: edge.TransactionalWriter, actions: list[Callable[[], object]]) -> None:
    try:
        for action in actions:
            action()
    except edge.TransactionAborted:
        writer.abort(on_wait=lambda _: None)


def test_the_end_is_what_the_broker_says_now(broker: KafkaConfig, topic: str) -> None:
    probe = edge.EndProbe(broker, topic=topic)
    assert _ends(probe, [0, 1], asked_ms=1) == {0: 0, 1: 0}
    writer = transactional(broker, topic)
    writer.begin()
    writer.send(topic, b"open", partition=0)
    assert edge.end_offsets(broker, topic)[0] == 0
    writer.commit(on_wait=lambda _: None)
    settled(broker, topic)
    assert _ends(probe, [0, 1], asked_ms=3) == {0: 2, 1: 0}, "the record and the marker of its transaction"
    writer.close()


def _ends(probe: edge.EndProbe, partitions: list[int], *, asked_ms: int) -> dict[int, int]:
    """Asks until every leader has answered: one that is too slow is left out of an answer."""
    answers: list[edge.Ends] = []

    def complete() -> bool:
        probe.ask(partitions, now_ms=asked_ms)
        probe.ask(partitions, now_ms=asked_ms + 1)
        found = probe.answer()
        if found is not None:
            assert found.asked_ms == asked_ms, "one question at a time"
            answers.append(found)
        return bool(answers) and answers[-1].offsets.keys() == set(partitions)

    eventually(complete)
    return answers[-1].offsets


class DeafCoordinator:
    """A producer whose aborts time out: after an outage librdkafka may lose its coordinator for good."""

    def __init__(self, producer: ck.Producer) -> None:
        self._producer = producer

    def __getattr__(self, name: str) -> object:
        return getattr(self._producer, name)

    def abort_transaction(self, timeout: float) -> None:
        raise ck.KafkaException(ck.KafkaError(ck.KafkaError._TIMED_OUT, "not now", False, True))


def test_an_abort_that_never_comes_through_gives_way_to_a_new_producer(broker: KafkaConfig, topic: str) -> None:
    writer = transactional(broker, topic)
    writer.begin()
    writer.send(topic, b"never seen", partition=0)
    writer._producer = DeafCoordinator(writer._producer)  # type: ignore[assignment]
    writer._hung_after_s = 0.0
    waited: list[str] = []
    with pytest.raises(edge.Fenced, match="although the broker answers: a new producer takes its place"):
        writer.abort(on_wait=waited.append)
    assert waited
    writer.close()
    heir = transactional(broker, topic)
    heir.begin()
    heir.send(topic, b"seen", partition=0)
    heir.commit(on_wait=lambda _: None)
    settled(broker, topic)
    assert [message.value for message in read(broker, topic, {0: 0})] == [b"seen"]
    heir.close()
