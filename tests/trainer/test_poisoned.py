"""Poisoned streams on a real broker: training goes on, nothing poisoned is served, the batches are named."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from dedup_cache import Batch
from recd.embedded import EmbeddedKafka
from stream.config import Config, EventsConfig, FieldsConfig, GateConfig, GuardsConfig
from stream.control import send as send_order
from tests.trainer.made_batches import World
from tests.trainer.trainers import Trainer, cut_in_force, make_topics, send, trainer_config
from trainer.alarms import Alarm, read_alarms
from trainer.versions import VersionStore

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

GUARDS = GuardsConfig(window_samples=1_024, warmup_samples=4_096, gate=GateConfig(time_share=1.0, samples=1_024))
SAMPLES = 128


def guarded_config(folder: Path, *, kafka: EmbeddedKafka, prefix: str, **guards: object) -> Config:
    given = replace(GUARDS, **guards)
    config = trainer_config(folder, kafka=kafka, prefix=prefix, guards=given, publish_every_ms=50)
    return replace(config, events=EventsConfig(fields=FieldsConfig(key="user", item="item")))


def clean(world: World, count: int) -> Iterator[Batch]:
    return world.batches(count)


def flipped(world: World, count: int) -> Iterator[Batch]:
    for batch in world.batches(count):
        batch.labels[:] = 1 - batch.labels
        yield batch


def spoiled_numbers(world: World, count: int) -> Iterator[Batch]:
    for batch in world.batches(count):
        batch.groups["item"].rows.dense[:] = np.nan
        yield batch


def flooded(world: World, count: int) -> Iterator[Batch]:
    """All samples are one user's."""
    for batch in world.batches(count):
        batch.groups["user"].rows.lists["user"].values[:] = 7
        yield batch


POISONS: dict[str, tuple[Callable[[World, int], Iterator[Batch]], set[str]]] = {
    "numbers": (spoiled_numbers, {"features"}),
    "flood": (flooded, {"user", "ne", "calibration"}),
    "flipped": (flipped, {"ne", "calibration"}),
}


def number(status: dict[str, Any], counter: str) -> int:
    return int(status["counters"][counter])


class Stream:
    """What was sent, and a trainer that takes it."""

    def __init__(self, config: Config, trainer: Trainer) -> None:
        self.config, self.trainer = config, trainer
        self.store = VersionStore(config.trainer.versions_url, keep=1)
        self._world = World(config, samples=SAMPLES)
        self.end = 0

    def send(self, batches: Callable[[World, int], Iterator[Batch]], count: int) -> dict[str, Any]:
        """The status when all of it was trained, and the guards have said what they had to say."""
        send(self.config, batches(self._world, count))
        self.end += count
        return self.trainer.wait_until(self._is_settled)

    def calm_down(self) -> dict[str, Any]:
        """Send clean batches until what was trained last is in service."""
        for _ in range(40):
            status = self.send(clean, 25)
            if self.served_step() == status["step"]:
                return status
        raise AssertionError(f"{status['guards']}")

    def served_step(self) -> int:
        newest = self.store.newest()
        return self.store.manifest(newest).step if newest else -1

    def alarms(self) -> list[Alarm]:
        return read_alarms(Path(self.config.trainer.checkpoint_url))

    def _is_settled(self, status: dict[str, Any]) -> bool:
        if not is_trained(status, self.end) or status["state"] != "idle":
            return False
        return self.served_step() == status["step"] or bool(
            status["guards"]["holding"] or status["guards"]["held_back"]
        )


@pytest.mark.timeout(600)
def test_poison_is_named_and_held_back_and_servers_go_back(kafka: EmbeddedKafka, tmp_path: Path, topic_prefix: str):
    config = guarded_config(tmp_path, kafka=kafka, prefix=topic_prefix)
    make_topics(config)
    with Trainer(config, tmp_path) as trainer:
        stream = Stream(config, trainer)
        stream.send(clean, 60)
        for name, (poison, reasons) in POISONS.items():
            stream.calm_down()
            assert not trainer.status()["guards"]["holding"]
            known, good_step, first = len(stream.alarms()), stream.served_step(), stream.end
            held = stream.send(poison, 12)
            alarms = stream.alarms()[known:]
            assert alarms, name
            assert {alarm.reason for alarm in alarms} <= reasons, name
            assert {alarm.topic for alarm in alarms} == {config.topics.batches}
            assert {alarm.offset for alarm in alarms} <= set(range(first, stream.end)), name
            assert held["guards"]["holding"], name
            assert held["guards"]["alarms"][-1]["offset"] == alarms[-1].offset
            assert held["step"] == good_step + 12
            assert stream.served_step() < min(alarm.step for alarm in alarms), name
            assert "recd_trainer_holding 1.0" in trainer.get("/metrics")[1].decode()
        send_order(config, target="trainer", action="release")
        status = trainer.wait_until(lambda status: not status["guards"]["holding"])
        assert trainer.wait_until(lambda status: stream.served_step() == status["step"])
        assert status["counters"]["batches_passed_over"] == 0
        assert "publishing goes on" in trainer.log.read_text()


def test_a_batch_without_a_finite_loss_is_passed_over_and_one_that_is_named_is_skipped(
    kafka: EmbeddedKafka, tmp_path: Path, topic_prefix: str
):
    config = guarded_config(tmp_path, kafka=kafka, prefix=topic_prefix, skip=("0:1",))
    make_topics(config)
    batches = list(World(config).batches(5))
    batches[2].weights[:] = 3e38
    send(config, batches)
    with Trainer(config, tmp_path) as trainer:
        status = trainer.wait_until(lambda status: is_trained(status, 5))
        assert number(status, "batches_passed_over") == 2
        (alarm,) = status["guards"]["alarms"]
        assert (alarm["reason"], alarm["topic"], alarm["offset"]) == ("loss", config.topics.batches, 2)
        assert status["ne"] is not None
        assert trainer.stop() == 0, trainer.tail()
    ids = sum(int(i) for batch in batches for i in batch.sample_ids) % 2**64
    found = cut_in_force(config)["partitions"]["0"]
    assert found == {"position": 5, "samples": 320, "id_sum": str(ids), "skipped": 128}


def is_trained(status: dict[str, Any], end: int) -> bool:
    return bool(status.get("positions", {}).get("0", 0) == end)
