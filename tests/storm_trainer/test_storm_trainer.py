"""A short storm over a trainer of two ranks: one kill in each kind of work. `make storm-trainer` is the long one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from recd.embedded import EmbeddedKafka
from tests.storm_trainer.plan import ANY, POINTS, Blow, plan
from tests.storm_trainer.storm import Storm


def test_a_plan_hits_every_point_and_is_the_same_for_a_seed() -> None:
    blows = plan(seed=3, kills=33, ranks=2)
    assert blows == plan(seed=3, kills=33, ranks=2) != plan(seed=4, kills=33, ranks=2)
    assert Counter(blow.point for blow in blows) == dict.fromkeys(POINTS, 2) | {ANY: 11}
    assert {blow.rank for blow in blows} == {0, 1}
    assert [len(plan(seed=3, kills=kills, ranks=1)) for kills in (0, 1, 20)] == [0, 1, 20]


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_losses_are_to_the_bit_those_of_a_calm_run(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    said: list[str] = []
    blows = [Blow(1, "step", 9, 0), Blow(0, "tensors", 1, 0), Blow(0, "published", 1, 0), Blow(1, ANY, 1, 0.8)]
    tally = Storm(kafka, tmp_path, seed=0, say=said.append).run(blows, ranks=2)
    assert tally.clean, "\n".join(said)
    assert tally.kills == 4
    assert tally.kills_by_point["tensors"] == tally.kills_by_point["published"] == tally.kills_by_point["step"] == 1
    assert tally.recovery_ms["max"] is not None
