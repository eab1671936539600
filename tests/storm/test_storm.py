"""A short storm: each kind of blow once, then the audit. `make storm` is the long one."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.storm.journal_watch import Recovery
from tests.storm.plan import Kind, plan, short_plan
from tests.storm.recoveries import Steps, medians, steps
from tests.storm.storm import Storm


def test_a_plan_kills_as_often_as_it_was_told_and_the_same_way_each_time() -> None:
    for kills in (0, 7, 100):
        rounds = plan(seed=3, kills=kills)
        blows = [blow for round_ in rounds for phase in round_.phases for blow in phase.blows]
        assert sum(round_.kills for round_ in rounds) == kills
        assert rounds == plan(seed=3, kills=kills)
    assert {blow.kind for blow in blows} == set(Kind)
    assert plan(seed=3, kills=100) != plan(seed=4, kills=100)


def test_a_recovery_is_taken_apart() -> None:
    def event(second: int, name: str, **fields: object) -> dict[str, object]:
        return {"time": f"2026-11-21T10:00:{second:02d}.000Z", "event": name, **fields}

    events = [
        event(1, "assigned", partitions=[0, 1]),  # of the dead one
        event(9, "assigned", partitions=[1]),
        event(11, "partition opened", partition=1),
        event(8, "assigned", partitions=[0]),
        event(40, "partition opened", partition=1),  # of a later heir
    ]
    killed_ms = int(datetime(2026, 11, 21, 10, 0, 2, tzinfo=UTC).timestamp() * 1000)
    found = steps([Recovery(1, killed_ms, killed_ms + 10_000), Recovery(0, killed_ms, killed_ms + 10_000)], events)
    assert found == [Steps(7_000, 2_000, 1_000)], "nobody opened partition 0"
    assert medians(found) == {"assigned": 7_000, "opened": 2_000, "committed": 1_000}
    assert medians([]) == {}


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    said: list[str] = []
    tally = Storm(tmp_path, seed=0, say=said.append).run(short_plan(seed=0))
    assert tally.clean, "\n".join(said)
    assert tally.kills >= 4
    assert tally.zombies == tally.fenced == tally.broker_restarts == tally.redis_losses == 1
    assert tally.samples > 0
    assert tally.recovery_ms["max"] is not None
