"""Replays of archived samples on a real broker: the live run's samples once more, whatever happens to the replay."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from dedup_cache import sample_position
from recd.archive import ArchiveOptions, make_archiver
from recd.embedded import EmbeddedKafka, EmbeddedRedis
from stream.archive.errors import ArchiveError, OtherSchema
from stream.archive.sample_history import ArchivedSamples
from stream.archive.sample_replay import SampleReplay
from stream.context import Clock
from stream.kafka import end_offsets
from stream.replay.errors import LiveGap, OtherReplay, ReplayError
from stream.replay.request import ReplayReport, ReplayRequest
from stream.replay.stretch import Bound
from tests.stream.replays import batches_of, delete_records, has_batches, rows_of, start_replay
from tests.stream.rig import START_MS, Rig, read_all, traffic, wait_until

pytestmark = pytest.mark.kafka


@pytest.fixture
def rig(tmp_path: Path, kafka: EmbeddedKafka, redis_server: EmbeddedRedis, topic_prefix: str) -> Iterator[Rig]:
    limits = {"url": str(tmp_path / "archive"), "max_rows": 40}
    rig = Rig(tmp_path, kafka=kafka.bootstrap, redis=redis_server.url, prefix=topic_prefix, archive=limits).create()
    rig.tree["topics"]["archive"] = f"{topic_prefix}archive"
    rig.tree["features"][1]["transforms"] = [{"positive_modulus": {"modulus": 7}}]
    rig.write()
    yield rig
    rig.close()


def archive(rig: Rig, **options: Any) -> None:
    asked = ArchiveOptions(what=("samples",), until_end=True, accept_gap=options.get("accept_gap", False))
    make_archiver(rig.config, asked, what="samples", stop=Event()).run()


def replay(rig: Rig, into: str, **request: Any) -> ReplayReport:
    """In this process."""
    clock = Clock(lambda: time.time_ns() // 1_000_000, lambda: time.monotonic_ns() // 1_000_000)
    asked = ReplayRequest(into=rig.prefix + into, **request)
    archived = ArchivedSamples(rig.config, rig.config.archive.url)
    return SampleReplay(rig.config, asked, archive=archived, clock=clock, stop=Event()).run()


def from_archive(rig: Rig) -> tuple[str, ...]:
    return ("--archive", rig.config.archive.url, "--what", "samples")


def turn(number: int) -> list[dict[str, Any]]:
    return traffic(seed=number, sessions=50, start_ms=START_MS + number * 20_000, first_id=number * 1_000)


def test_archived_samples_are_replayed_as_the_live_run_made_them(rig: Rig) -> None:
    """With every topic of the live run emptied: in one go, in stretches that meet, killed and started again."""
    with rig.worker() as worker:
        for number in range(2):
            rig.publish(turn(number))
            worker.wait_drained()
    topics = rig.config.topics
    live = rows_of(rig.config, topics.batches)
    positions = {p: places_of(rig, p) for p in live}
    archive(rig)
    for topic in (topics.interactions, topics.journal, topics.batches, topics.values):
        delete_records(rig, topic)

    whole = replay(rig, "whole")
    assert rows_of(rig.config, rig.prefix + "whole") == live
    assert (whole.complete, whole.written.samples) == (True, sum(len(rows) for rows in live.values()))
    assert {p: (part.from_sample, part.to_sample) for p, part in whole.partitions.items()} == {
        p: (0, len(rows)) for p, rows in live.items()
    }
    again = replay(rig, "whole")
    assert (again.resumed, again.written.samples) == (True, 0), "a replay that is done has nothing left to do"
    with pytest.raises(OtherReplay, match="from the beginning of the archived samples, not from offset 5 of the"):
        replay(rig, "whole", first=Bound(offset=5), partitions=(0,))

    middle = positions[0][len(live[0]) // 2]
    cut = next(number for number, position in enumerate(positions[0]) if position >= middle)
    replay(rig, "parts", partitions=(0,), last=Bound(offset=middle))
    assert rows_of(rig.config, rig.prefix + "parts") == {0: live[0][:cut]}
    rest = replay(rig, "rest", partitions=(0,), first=Bound(offset=middle))
    assert rest.partitions[0].from_sample == cut
    assert rows_of(rig.config, rig.prefix + "rest")[0][cut:] == live[0][cut:]

    slow = start_replay(rig, rig.prefix + "killed", *from_archive(rig), "--speed", "0.05")
    wait_until(lambda: has_batches(rig, "killed"), "first batches of the replay")
    slow.kill()
    slow.communicate()
    some = rows_of(rig.config, rig.prefix + "killed")
    assert 0 < sum(len(rows) for rows in some.values()) < whole.written.samples
    assert all(rows == live[p][: len(rows)] for p, rows in some.items())
    assert replay(rig, "killed").resumed
    assert rows_of(rig.config, rig.prefix + "killed") == live


def places_of(rig: Rig, partition: int) -> list[int]:
    """The offsets of the impressions of a partition's samples, in the order in which they were made."""
    return [
        offset
        for batch in batches_of(rig.config, rig.config.topics.batches)
        if batch.meta.source_partition == partition
        for offset in sample_position(batch.sample_ids).offset.tolist()
    ]


def test_a_replay_of_samples_joins_the_live_run_where_the_archive_ends(rig: Rig) -> None:
    """Killed while it copies live batches, and started again; one partition is not archived."""
    into = rig.prefix + "joined"
    users = [event for number in range(2) for event in turn(number) if event["user_id"] % 2 == 0]
    rig.publish(users)
    with rig.worker() as worker:
        worker.wait_drained()
        archive(rig)
        assert {f.partition for files in archived(rig).files.values() for f in files} == {0}
        rig.publish(turn(2))
        worker.wait_drained()
        following = start_replay(rig, into, *from_archive(rig), "--follow")
        wait_until(lambda: has_live_batches(rig, into), "live batches in the replay")
        following.kill()
        following.communicate()
        rig.publish(turn(3))
        worker.wait_drained()
        following = start_replay(rig, into, *from_archive(rig), "--follow")
        live = rows_of(rig.config, rig.config.topics.batches)
        assert set(live) == {0, 1}
        wait_until(lambda: rows_of(rig.config, into) == live, "all live batches in the replay")
        following.send_signal(signal.SIGINT)
        said = following.communicate(timeout=60)[0]
        assert following.returncode == 0, said
        assert "Followed the live run" in said
        delete_records(rig, rig.config.topics.batches)
        rig.publish(turn(4))
        worker.wait_drained()
    with pytest.raises(LiveGap, match="not in the topic any more"):
        replay(rig, "too-late", follow=True)


def archived(rig: Rig) -> ArchivedSamples:
    return ArchivedSamples(rig.config, rig.config.archive.url)


def has_live_batches(rig: Rig, into: str) -> bool:
    if not has_batches(rig, into.removeprefix(rig.prefix)):
        return False
    payloads = {message.value for message in read_all(rig.config, rig.config.topics.batches)}
    return any(message.value in payloads for message in read_all(rig.config, into))


def test_a_replay_of_samples_that_cannot_be_made_says_why(rig: Rig) -> None:
    with pytest.raises(ArchiveError, match="the manifest lists no file of this archive"):
        replay(rig, "early")
    rig.publish(traffic(sessions=30))
    with rig.worker() as worker:
        worker.wait_drained()
    archive(rig)
    with pytest.raises(ReplayError, match="has no partition 7"):
        replay(rig, "early", partitions=(7,))
    interactions, rig.tree["topics"]["interactions"] = rig.tree["topics"]["interactions"], rig.config.topics.late
    rig.write()
    with pytest.raises(ArchiveError, match=f"no sample of .*late, its samples are of {interactions}"):
        replay(rig, "early")
    rig.tree["topics"]["interactions"] = interactions
    rig.tree["features"][1]["transforms"] = [{"positive_modulus": {"modulus": 8}}]
    rig.write()
    with pytest.raises(OtherSchema, match=r"with the recd\.yaml of that time"):
        replay(rig, "early")
    assert not any(end_offsets(rig.config.kafka, rig.prefix + "early").values()), "nothing was written"
