"""Workers that are killed, and servers that go away: every impression is in the committed output exactly once.

Expected sequences come from a second job that reads the same log without trouble.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from redis import Redis

from recd.embedded import EmbeddedKafka, EmbeddedRedis
from stream.kafka import Writer
from tests.storm.crew import StormWorker
from tests.storm.worker import Order
from tests.stream.rig import START_MS, Rig, WorkerProcess, read_all, traffic, wait_until

pytestmark = pytest.mark.kafka

CRASHES = ("assigned:1", "opened:1", "begun:3", "batch_sent:6", "journal_sent:3", "offsets_sent:3", "committed:3")
"""Where a process kills itself, and for which time it comes there."""


@pytest.fixture
def rig(tmp_path: Path, kafka: EmbeddedKafka, redis_server: EmbeddedRedis, topic_prefix: str) -> Iterator[Rig]:
    rig = Rig(tmp_path, kafka=kafka.bootstrap, redis=redis_server.url, prefix=topic_prefix).create()
    yield rig
    rig.close()


def test_killed_at_each_point_of_a_transaction(rig: Rig) -> None:
    rig.publish(traffic(sessions=120))
    expected = rig.uninterrupted()
    jobs = [rig.reference(crash.partition(":")[0].replace("_", "-")) for crash in CRASHES]
    victims = [job.worker(crash=crash) for job, crash in zip(jobs, CRASHES, strict=True)]
    for victim in victims:
        victim.wait_killed()
    heirs = [job.worker(crash="opened:1") for job in jobs]
    for heir in heirs:
        heir.wait_killed()
    workers = [job.worker() for job in jobs]
    for worker in workers:
        worker.wait_drained()
        assert worker.stop() == 0
    for job in jobs:
        assert job.check_exactly_once() == expected


def test_killed_at_random_moments(rig: Rig) -> None:
    chance = random.Random(4)
    rig.publish(traffic(sessions=60))
    for round_ in range(1, 4):
        worker = rig.worker()
        worker.wait_ready()
        rig.publish(traffic(seed=round_, sessions=60, start_ms=START_MS + round_ * 4_000, first_id=round_ * 1_000))
        time.sleep(chance.random() * 0.5)
        worker.kill()
    with rig.worker() as worker:
        worker.wait_drained()
    rig.check_exactly_once()


def test_a_partition_moves_between_two_workers(rig: Rig) -> None:
    rig.publish(traffic(sessions=60))
    with rig.worker("one") as one:
        one.wait(lambda s: len(s["partitions"]) == 2 and s["counters"]["samples"] > 0, "samples")
        with rig.worker("two") as two:
            two.wait_ready()
            one.wait(lambda s: len(s["partitions"]) == 1, "one partition fewer")
            rig.publish(traffic(seed=1, sessions=60, start_ms=START_MS + 4_000, first_id=1_000))
            one.wait_drained(1)
            two.wait_drained(1)
            assert two.state["counters"]["samples"] > 0
        rig.publish(traffic(seed=2, sessions=60, start_ms=START_MS + 8_000, first_id=2_000))
        one.wait_drained()
    rig.check_exactly_once()


def test_classic_group_protocol(rig: Rig) -> None:
    rig.tree["stream"]["group_protocol"] = "classic"
    rig.write()
    rig.publish(traffic(sessions=60))
    with rig.worker("one") as one:
        one.wait(lambda s: s["counters"]["samples"] > 0, "samples")
        with rig.worker("two") as two:
            two.wait_ready()
            rig.publish(traffic(seed=1, sessions=60, start_ms=START_MS + 4_000, first_id=1_000))
            two.wait_drained(1)
        one.wait_drained()
    rig.check_exactly_once()


def test_a_second_process_with_the_same_identity_fences_the_first(rig: Rig) -> None:
    rig.publish(traffic(sessions=60))
    first = rig.worker("same")
    first.wait_ready()
    rig.publish(traffic(seed=1, sessions=60, start_ms=START_MS + 4_000, first_id=1_000))
    with rig.worker("same") as second:
        second.wait(lambda s: s["member"], "member")
        rig.publish(traffic(seed=2, sessions=60, start_ms=START_MS + 8_000, first_id=2_000))
        assert first.process.wait(timeout=60) != 0
        assert "another process uses the same stream.worker_id" in first.log.read_text()
        second.wait_drained()
    rig.check_exactly_once()


def test_a_worker_that_slept_through_its_session_is_harmless(rig: Rig) -> None:
    rig.publish(traffic(sessions=60))
    zombie = rig.worker("zombie")
    zombie.wait_ready()
    rig.publish(traffic(seed=1, sessions=60, start_ms=START_MS + 4_000, first_id=1_000))
    zombie.process.send_signal(signal.SIGSTOP)
    with rig.worker("heir") as heir:
        heir.wait_drained()
        zombie.process.send_signal(signal.SIGCONT)
        rig.publish(traffic(seed=2, sessions=60, start_ms=START_MS + 8_000, first_id=2_000))
        wait_until(
            lambda: zombie.process.poll() is not None or len(zombie.state["partitions"]) == 1, "zombie that woke up"
        )
        zombie.kill()
        heir.wait_drained()
    rig.check_exactly_once()


def test_a_transaction_that_the_broker_aborted_is_made_again(rig: Rig) -> None:
    rig.tree["stream"]["transaction_timeout_ms"] = 1_000
    rig.write()
    rig.publish(traffic(sessions=60))
    worker = StormWorker(rig, name="frozen")
    rig.adopt(worker)
    worker.arm(Order("offsets_sent", count=2, stop=True))
    assert worker.stopped_within(60), worker.tail()
    time.sleep(3)  # the timeout, and how often the broker looks
    worker.process.send_signal(signal.SIGCONT)
    with worker:
        worker.wait(lambda s: s["counters"]["aborts"] + s["counters"]["restarts"] > 0, "worker that noticed")
        worker.wait_drained()
    assert "or the transaction timed out" in worker.log.read_text()
    rig.check_exactly_once()


def test_a_broker_that_does_not_answer_is_not_silence(rig: Rig, kafka: EmbeddedKafka) -> None:
    gap_ms, idle_ms = 1_500, 200
    rig.tree["session"] |= {"gap_ms": gap_ms, "idle_after_ms": idle_ms}
    rig.write()
    event = {"user_id": 0, "type": "impression", "item_id": 1}
    with rig.app() as app:
        app.wait_ready()
        for attempt in range(10):  # where the machine is slow the session may close before the broker is frozen
            at_ms = START_MS + attempt * 100_000
            rig.publish([{"event_id": 2 * attempt, "event_time_ms": at_ms, **event}], partition=0)
            app.wait(lambda s, n=attempt: s["counters"]["events"] > n, "event")
            os.kill(kafka.pid, signal.SIGSTOP)
            try:
                time.sleep((gap_ms + idle_ms + 800) / 1_000)
                with Writer(rig.config.kafka, linger_ms=0) as writer:
                    second = {"event_id": 2 * attempt + 1, "event_time_ms": at_ms + 1, **event}
                    writer.send(rig.config.topics.interactions, json.dumps(second).encode(), key=b"0", partition=0)
                    was_open = app.state["partitions"]["0"]["open_sessions"] == 1
                    os.kill(kafka.pid, signal.SIGCONT)
                    writer.flush(30_000)
            finally:
                os.kill(kafka.pid, signal.SIGCONT)
            if was_open:
                break
        assert was_open
        app.wait_drained()
    late = [reject.offset for reject in rig.rejects("late")]
    assert 2 * attempt + 1 not in late
    rig.check_exactly_once()


def test_redis_stopped_flushed_and_started_again(
    tmp_path: Path, kafka: EmbeddedKafka, private_redis: EmbeddedRedis, topic_prefix: str
) -> None:
    rig = Rig(tmp_path, kafka=kafka.bootstrap, redis=private_redis.url, prefix=topic_prefix).create()
    rig.publish(traffic(sessions=30))
    with rig.worker() as worker:
        worker.wait(lambda s: s["counters"]["values_shipped"] > 0, "values by reference")
        private_redis.kill()
        rig.publish(traffic(seed=1, sessions=30, start_ms=START_MS + 4_000, first_id=1_000, users=16))
        worker.wait(lambda s: s["counters"]["redis_errors"] > 0, "an unanswered call")
        worker.wait_drained()
        private_redis.start()
        shipped = worker.state["counters"]["values_shipped"]
        for i in range(2, 40):
            start_ms, first_id = START_MS + i * 4_000, i * 1_000
            rig.publish(traffic(seed=i, sessions=5, start_ms=start_ms, first_id=first_id, users=16))
            worker.wait_drained()
            if worker.state["counters"]["values_shipped"] > shipped:
                break
        assert worker.state["counters"]["values_shipped"] > shipped, "no value by reference since Redis is back"
    rig.check_exactly_once()
    generations = {batch.meta.generation for batch in rig.batches()}
    assert "" in generations
    assert len(generations - {""}) == 2, "a restarted Redis begins a new generation"


def test_redis_asleep_flushed_and_back_from_an_old_snapshot(
    tmp_path: Path, kafka: EmbeddedKafka, topic_prefix: str
) -> None:
    """Nothing waits for it, and no id ever names two values."""
    with EmbeddedRedis(tmp_path / "redis", appendonly=False) as server:
        rig = Rig(tmp_path, kafka=kafka.bootstrap, redis=server.url, prefix=topic_prefix).create()
        with rig.worker() as worker:
            more = partial(new_values, rig, worker)
            more(0)
            os.kill(server.pid, signal.SIGSTOP)
            before = worker.state["counters"]["redis_errors"]
            rig.publish(traffic(seed=50, sessions=30, start_ms=START_MS + 100_000, first_id=50_000, users=900))
            worker.wait_drained()
            assert worker.state["counters"]["redis_errors"] > before, "it went on while Redis did not answer"
            os.kill(server.pid, signal.SIGCONT)
            more(100)
            redis_cli(server, "SAVE")
            more(200)
            server.kill()
            server.start()
            more(300)
            redis_cli(server, "FLUSHALL")
            more(400)
        rig.close()
    rig.check_exactly_once()
    generations = {batch.meta.generation for batch in rig.batches()}
    assert "" in generations
    assert len(generations - {""}) == 3, "asleep: the same; from a snapshot: another; flushed: another"
    values: dict[bytes | None, set[bytes | None]] = defaultdict(set)
    for message in read_all(rig.config, rig.config.topics.values):
        values[message.key].add(message.value)
    assert values
    assert all(len(named) == 1 for named in values.values())


def new_values(rig: Rig, worker: WorkerProcess, first: int) -> None:
    """Users that nobody has seen, until some of their values went by reference."""
    shipped = worker.state["counters"]["values_shipped"] if worker.state else 0
    for i in range(first + 1, first + 40):
        start_ms, ids = START_MS + i * 4_000, i * 1_000
        events = traffic(seed=i, sessions=8, start_ms=start_ms, first_id=ids)
        rig.publish([{**e, "user_id": e["user_id"] + ids, "history": [ids + e["event_id"] % 3] * 30} for e in events])
        worker.wait_drained()
        if worker.state["counters"]["values_shipped"] > shipped:
            return
    raise AssertionError("no value by reference any more")


def redis_cli(server: EmbeddedRedis, command: str) -> None:
    with Redis.from_url(server.url) as client:
        client.execute_command(command)


def test_broker_stopped_and_started_again_while_running(
    tmp_path: Path, private_kafka: EmbeddedKafka, redis_server: EmbeddedRedis, topic_prefix: str
) -> None:
    rig = Rig(tmp_path, kafka=private_kafka.bootstrap, redis=redis_server.url, prefix=topic_prefix).create()
    rig.publish(traffic(sessions=30))
    with rig.app() as app:
        app.wait(lambda s: s["counters"]["samples"] > 0, "samples")
        rig.publish(traffic(seed=1, sessions=60, start_ms=START_MS + 4_000, first_id=1_000))
        private_kafka.stop()
        app.wait(lambda s: s["state"] == "waiting_for_broker" and not s["ready"], "noticed outage")
        assert "start one or set kafka.bootstrap" in app.state["last_error"]
        private_kafka.start()
        rig.publish(traffic(seed=2, sessions=30, start_ms=START_MS + 8_000, first_id=2_000))
        app.wait_drained()
        private_kafka.kill()
        private_kafka.start()
        rig.publish(traffic(seed=3, sessions=30, start_ms=START_MS + 12_000, first_id=3_000))
        app.wait_drained()
        rig.control("pause")
        app.wait(lambda s: s["state"] == "paused", "order over the control topic, after the outages")
        rig.control("resume")
        app.wait_ready()
    rig.check_exactly_once()
