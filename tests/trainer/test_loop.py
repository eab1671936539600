"""The loop's last moments, and its first after a resume, without a broker."""

import threading
from pathlib import Path
from typing import cast

import pytest
import torch

from stream.config import Config
from tests.trainer.made_batches import make_config
from tests.trainer.test_keeper import keeper, pytestmark, ranks
from trainer import loop as training
from trainer.board import Board
from trainer.feed import Feed
from trainer.ikjt import dummy_batch, group_specs
from trainer.keeper import Keeper
from trainer.loop import StepRules, TrainingLoop
from trainer.ranks import Ranks
from trainer.schedule import Schedule

__all__ = ["pytestmark", "ranks"]


class NoFeed:
    """A topic with nothing in it."""

    idle = True
    lag_batches = 0
    stalled_s = 0.0

    def get(self, *, timeout_s: float) -> None:
        return None

    def counters(self) -> dict[str, int]:
        return {}


def stopped_loop(config: Config, kept: Keeper) -> TrainingLoop:
    """A loop that is told to stop before its first step."""
    stop = threading.Event()
    stop.set()
    dummy = dummy_batch(group_specs(config.features, config.trainer.model), num_labels=2)
    return TrainingLoop(
        kept._trained,
        feed=cast(Feed, NoFeed()),
        keeper=kept,
        board=Board(["click", "buy"]),
        schedule=Schedule(config.trainer, orders=None),
        rules=StepRules(dummy, full_batch=64, label_weights=torch.ones(2)),
        stop=stop,
    )


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return make_config(checkpoint_url=str(tmp_path / "cuts"), versions_url=str(tmp_path / "versions"))


def test_the_last_cut_waits_for_no_version(config: Config, ranks: Ranks, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training, "PUBLISHER_PATIENCE_S", 0.1)
    kept, go = keeper(config, ranks), threading.Event()
    kept.publisher._hook = lambda _: go.wait(60)
    kept.publish()
    loop = stopped_loop(config, kept)
    loop._uncut = True
    loop.run()
    assert kept.cut
    assert kept.publisher.busy
    go.set()
    assert kept.publisher.wait(timeout_s=60)


@pytest.mark.parametrize(("step", "version"), [(0, 0), (5, 1)])
def test_what_was_trained_and_never_published_is_published(config: Config, ranks: Ranks, step: int, version: int):
    kept = keeper(config, ranks)
    kept._trained.state.step = step
    stopped_loop(config, kept).run()
    assert kept.publisher.version == version
