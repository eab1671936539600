"""What outlives a restart, and when restarts have been too many."""

import logging
from pathlib import Path

import pytest

from stream.config import TrainerConfig
from trainer.launch import Restarts
from trainer.orders import Order, Orders, StandingOrders
from trainer.schedule import Schedule


class Told(Orders):
    """Orders that nobody sends over a topic."""

    def __init__(self, *actions: str) -> None:
        self._actions = list(actions)
        self.refused = 0

    def next(self) -> Order | None:
        return Order(self._actions.pop(0)) if self._actions else None


def is_paused(root: Path, *actions: str) -> bool:
    """After a start in which these orders came."""
    schedule = Schedule(TrainerConfig(), orders=Told(*actions), standing=StandingOrders(root))
    for _ in actions:
        schedule.wants(uncut=False, unpublished=False, cut_busy=False, publisher_busy=False)
    return schedule.paused


def test_a_pause_holds_until_it_is_ended(tmp_path: Path):
    root = tmp_path / "cuts"
    assert not is_paused(root)
    assert is_paused(root, "pause")
    assert is_paused(root)
    assert not is_paused(root, "resume")
    assert not is_paused(root)
    assert [path.name for path in root.iterdir()] == ["orders.json"]


def test_standing_orders_that_cannot_be_read_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "orders.json").write_bytes(b"{")
    with caplog.at_level(logging.WARNING):
        assert not is_paused(tmp_path)
    assert "standing orders are lost" in caplog.messages


def test_restarts_count_from_the_last_new_cut(tmp_path: Path):
    current = tmp_path / "current.json"
    restarts = Restarts(current)
    assert [restarts.count() for _ in range(3)] == [1, 2, 3]
    current.write_bytes(b'{"cut": "cut-0000000001"}')
    assert [restarts.count() for _ in range(2)] == [1, 2]
    current.write_bytes(b'{"cut": "cut-0000000002"}')
    assert restarts.count() == 1
