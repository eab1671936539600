"""Replays on a real broker: the samples of the live run once more, whatever happens to either."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from recd.embedded import EmbeddedKafka, EmbeddedRedis
from stream.kafka import Writer, create_topic, end_offsets
from stream.replay.errors import NoJournal, OtherConfig, OtherReplay, RangeGone, ReplayError
from stream.replay.stretch import Bound
from tests.stream.replays import batches_of, delete_records, has_batches, paced, replay, rows_of, start_replay
from tests.stream.rig import START_MS, Rig, read_all, traffic, wait_until

pytestmark = pytest.mark.kafka


@pytest.fixture
def rig(tmp_path: Path, kafka: EmbeddedKafka, redis_server: EmbeddedRedis, topic_prefix: str) -> Iterator[Rig]:
    rig = Rig(tmp_path, kafka=kafka.bootstrap, redis=redis_server.url, prefix=topic_prefix).create()
    rig.tree["features"][1]["transforms"] = [{"positive_modulus": {"modulus": 7}}]
    rig.write()
    yield rig
    rig.close()


def samples_in(rig: Rig, into: str) -> int:
    return sum(len(rows) for rows in rows_of(rig.config, rig.prefix + into).values())


def test_a_replay_is_the_live_run_once_more(rig: Rig) -> None:
    """Of a run that was killed and that idled; in one go, in two stretches that meet, killed and started again."""
    rig.publish(traffic(sessions=100))
    rig.worker("killed", crash="batch_sent:6").wait_killed()
    with rig.worker() as worker:
        worker.wait_drained()
        middle = end_offsets(rig.config.kafka, rig.config.topics.interactions)[0]
        rig.publish(traffic(seed=1, sessions=100, start_ms=START_MS + 20_000, first_id=1_000))
        worker.wait_drained()
    live = rows_of(rig.config, rig.config.topics.batches)

    whole = replay(rig, "whole")
    assert rows_of(rig.config, rig.prefix + "whole") == live
    assert whole.complete
    assert whole.written.samples == sum(len(rows) for rows in live.values())
    again = replay(rig, "whole")
    assert (again.resumed, again.written.samples) == (True, 0), "a replay that is done has nothing left to do"

    first = replay(rig, "parts", partitions=(0,), last=Bound(offset=middle))
    cut = first.partitions[0]
    assert 0 < cut.to_sample < len(live[0])
    replay(rig, "rest", partitions=(0,), first=Bound(offset=middle))
    assert rows_of(rig.config, rig.prefix + "parts")[0] == live[0][: cut.to_sample]
    assert rows_of(rig.config, rig.prefix + "rest")[0][cut.to_sample :] == live[0][cut.to_sample :]

    slept_ms = {speed: paced(rig, f"paced-{speed}", speed=speed) for speed in (10, 40)}
    assert slept_ms[10] == pytest.approx(4 * slept_ms[40], rel=0.05), "it sleeps as long as event time takes, divided"
    times_ms = [batch.event_times_ms for batch in batches_of(rig.config, rig.prefix + "paced-10")]
    span_ms = max(times.max() for times in times_ms) - min(times.min() for times in times_ms)
    assert slept_ms[10] >= 0.9 * span_ms / 10
    assert rows_of(rig.config, rig.prefix + "paced-40") == live

    slow = start_replay(rig, rig.prefix + "killed", "--speed", "0.5")
    wait_until(lambda: has_batches(rig, "killed"), "first batches of the replay")
    slow.kill()
    slow.communicate()
    assert 0 < samples_in(rig, "killed") < whole.written.samples
    replay(rig, "killed")
    assert rows_of(rig.config, rig.prefix + "killed") == live


def test_a_replay_that_follows_joins_the_live_run(rig: Rig) -> None:
    """While traffic flows; killed while it copies live batches, and started again."""
    into = rig.prefix + "joined"
    rig.publish(traffic(sessions=60))
    with rig.worker() as worker:
        worker.wait_drained()
        following = start_replay(rig, into, "--follow")
        for turn in range(1, 4):
            rig.publish(later_traffic(turn))
        wait_until(lambda: has_batches(rig, "joined"), "batches of the replay")
        worker.wait_drained()
        rig.publish(later_traffic(4))
        wait_until(lambda: has_live_batches(rig, into), "live batches in the replay")
        following.kill()
        following.communicate()
        rig.publish(later_traffic(5))
        following = start_replay(rig, into, "--follow")
        rig.publish(later_traffic(6))
        worker.wait_drained()
    live = rows_of(rig.config, rig.config.topics.batches)
    wait_until(lambda: rows_of(rig.config, into) == live, "all live batches in the replay")
    following.send_signal(signal.SIGINT)
    said = following.communicate(timeout=60)[0]
    assert following.returncode == 0, said
    assert "Followed the live run" in said


def later_traffic(turn: int) -> list[dict[str, Any]]:
    return traffic(seed=turn, sessions=30, start_ms=START_MS + turn * 10_000, first_id=turn * 1_000)


def has_live_batches(rig: Rig, into: str) -> bool:
    if not has_batches(rig, "joined"):
        return False
    payloads = {message.value for message in read_all(rig.config, rig.config.topics.batches)}
    return any(message.value in payloads for message in read_all(rig.config, into))


def test_a_replay_that_cannot_be_made_says_why(rig: Rig) -> None:
    rig.publish(traffic(sessions=20))
    with pytest.raises(NoJournal, match="never committed anything"):
        replay(rig, "early")
    with rig.worker() as worker:
        worker.wait_drained()
    with pytest.raises(ReplayError, match="that is a topic of the live run"):
        replay(rig, "batches")
    with pytest.raises(ReplayError, match="has no partition 7"):
        replay(rig, "early", partitions=(7,))
    replay(rig, "done", first=Bound(time_ms=1_000))
    with pytest.raises(OtherReplay, match=r"from 1970-01-01T00:00:01.000.*not from the beginning"):
        replay(rig, "done")
    with Writer(rig.config.kafka) as writer:
        create_topic(rig.config.kafka, rig.prefix + "foreign", partitions=1, settings={"max.message.bytes": "9999999"})
        writer.send(rig.prefix + "foreign", b"x", partition=0)
        writer.flush(30_000)
    with pytest.raises(OtherReplay, match="is not empty"):
        replay(rig, "foreign")
    rig.tree["labels"] = [{"name": "bought", "engagements": ["click"]}]
    rig.write()
    with pytest.raises(OtherConfig, match="was made with other events, features or labels"):
        replay(rig, "relabelled")
    rig.tree["labels"] = [{"name": "click", "engagements": ["click"]}]
    rig.write()
    delete_records(rig, rig.config.topics.interactions)
    with pytest.raises(RangeGone, match="recd replay --archive"):
        replay(rig, "gone", first=Bound(offset=1), partitions=(0,))
