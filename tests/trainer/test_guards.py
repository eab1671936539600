"""What each guard says of a poisoned stream, batch by batch, and that it says nothing of a clean one."""

import math
from pathlib import Path

import numpy as np
import pytest

from stream.config import GuardsConfig
from trainer.alarms import Alarm, AlarmFile, Place, Skips, read_alarms
from trainer.guards import Guards, Sight, merged

CONFIG = GuardsConfig(window_samples=1_000, warmup_samples=3_000)
SIZE = 100


def sight(number: int, *, seed: int = 0, rate: float = 0.2, **poison: object) -> Sight:
    """A batch of a model that knows the truth, two labels."""
    rng = np.random.default_rng((seed, number))
    truth = np.clip(rng.beta(2, 2 / rate - 2, (SIZE, 2)), 0.01, 0.99)
    labels = (rng.random(truth.shape) < truth).astype(np.float32)
    users = rng.integers(0, 60, SIZE)
    if poison.get("flipped"):
        labels[:, 0] = 1 - labels[:, 0]
    if poison.get("flood"):
        users[: int(0.9 * SIZE)] = 7
        labels[: int(0.9 * SIZE)] = 1
    return Sight(
        Place(number % 2, number // 2, number),
        truth.astype(np.float32) * np.float32(poison.get("scaled", 1.0)),
        labels,
        np.ones(SIZE, np.float32),
        users=users,
        non_finite_share=float(poison.get("non_finite_share", 0.0)),
    )


def warm(guards: Guards, *, batches: int = 60) -> None:
    for number in range(batches):
        assert guards.look(sight(number)) == []
    assert not guards.holding


def until_alarm(guards: Guards, *, first: int, **poison: object) -> list[Alarm]:
    for number in range(first, first + 20):
        if alarms := guards.look(sight(number, **poison)):
            return alarms
    return []


@pytest.mark.parametrize("seed", range(5))
def test_clean_traffic_raises_nothing_even_when_rates_move(seed: int):
    guards = Guards(CONFIG, labels=["click", "buy"])
    for number in range(400):
        rate = 0.2 + 0.05 * math.sin(number / 30)
        assert guards.look(sight(number, seed=seed, rate=rate)) == []
    assert not guards.holding


def test_flipped_labels_are_named_and_held_until_as_many_clean_samples_have_come():
    guards = Guards(CONFIG, labels=["click", "buy"])
    warm(guards)
    alarms = [a for number in range(60, 64) for a in guards.look(sight(number, flipped=True))]
    assert {alarm.step for alarm in alarms} == {60, 61, 62, 63}
    assert {(alarm.reason, alarm.label) for alarm in alarms} <= {("ne", "click"), ("calibration", "click")}
    assert {(alarm.partition, alarm.offset) for alarm in alarms} == {(0, 30), (1, 30), (0, 31), (1, 31)}
    held = 0
    for number in range(64, 120):
        assert guards.look(sight(number)) == []
        held += guards.holding
    assert 10 <= held <= 25
    assert not guards.holding


def test_predictions_that_are_off_are_named():
    guards = Guards(CONFIG, labels=["click", "buy"])
    warm(guards)
    alarms = until_alarm(guards, first=60, scaled=0.3)
    assert alarms[0].reason == "calibration"
    assert alarms[0].value is not None
    assert alarms[0].limit is not None
    assert alarms[0].value < alarms[0].limit < 1


def test_one_user_who_floods_is_named():
    config = GuardsConfig(window_samples=1_000, warmup_samples=3_000, ne_band=None, calibration_band=None)
    guards = Guards(config, labels=["click", "buy"])
    warm(guards)
    alarms = until_alarm(guards, first=60, flood=True)
    assert {alarm.reason for alarm in alarms} == {"user"}
    assert {alarm.step for alarm in alarms} <= set(range(60, 70))
    without = GuardsConfig(window_samples=1_000, max_user_share=None, ne_band=None, calibration_band=None)
    off = Guards(without, labels=["click", "buy"])
    assert all(off.look(sight(number, flood=True)) == [] for number in range(30))


def test_numbers_that_are_not_finite_are_named():
    guards = Guards(CONFIG, labels=["click", "buy"])
    assert guards.look(sight(0, non_finite_share=0.005)) == []
    (alarm,) = guards.look(sight(1, non_finite_share=0.5))
    assert (alarm.reason, alarm.partition, alarm.offset) == ("features", 1, 0)
    assert guards.holding


def test_a_step_that_moves_the_weights_too_far_is_named():
    guards = Guards(CONFIG, labels=["click", "buy"])
    assert guards.moved(Place(0, 1, 1), 0.4) == []
    assert guards.moved(Place(0, 2, 2), 0.6)[0].reason == "move"
    assert guards.moved(Place(0, 3, 3), math.nan)[0].reason == "gradient"
    assert guards.spoiled(Place(0, 4, 4), "loss", value=math.inf)[0].value is None
    assert Guards(GuardsConfig(enabled=False), labels=[]).moved(Place(0, 0, 0), math.nan) == []


def test_an_operator_can_end_the_hold_and_a_new_normal_is_learned():
    guards = Guards(CONFIG, labels=["click", "buy"])
    warm(guards)
    assert until_alarm(guards, first=60, flipped=True)
    guards.release()
    assert not guards.holding
    assert until_alarm(guards, first=100, flipped=True) == []


def test_a_restart_forgets_neither_the_reference_nor_the_hold():
    guards, again = Guards(CONFIG, labels=["click", "buy"]), Guards(CONFIG, labels=["click", "buy"])
    warm(guards)
    again.restore(guards.state())
    assert until_alarm(again, first=60, flipped=True)
    third = Guards(CONFIG, labels=["click", "buy"])
    third.restore(again.state())
    assert third.holding


def test_a_hold_outlives_another_number_of_ranks_and_ends_where_no_data_comes_any_more():
    held, clean = Guards(CONFIG, labels=["click", "buy"]), Guards(CONFIG, labels=["click", "buy"])
    for guards in (held, clean):
        warm(guards)
    assert held.spoiled(Place(0, 99, 99), "loss")
    one = Guards(CONFIG, labels=["click", "buy"])
    one.restore(merged([clean.state(), held.state()]))
    assert one.holding
    np.testing.assert_allclose(one.state()["reference"], 2 * clean.state()["reference"])
    one.rest(CONFIG.window_samples - 1)
    assert one.holding
    one.rest(1)
    assert not one.holding


def test_alarms_are_read_back_from_their_file_and_batches_are_passed_over(tmp_path: Path):
    alarm = Alarm(reason="ne", label="click", topic="batches", partition=1, offset=7, step=9, value=2.0, limit=1.0)
    AlarmFile(tmp_path).append([alarm, alarm])
    with (tmp_path / "alarms.jsonl").open("ab") as file:
        file.write(b'{"reason": "torn')
    assert read_alarms(tmp_path) == [alarm, alarm]
    Skips(tmp_path).add([(1, 7), (0, 3)])
    skips = Skips(tmp_path, ranges=["2:5-6", "3:1"])
    wanted = {(1, 7), (0, 3), (2, 5), (2, 6), (3, 1)}
    assert {(p, o) for p in range(5) for o in range(9) if (p, o) in skips} == wanted
