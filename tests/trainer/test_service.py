"""The trainer as a service: ranks that die, orders, full disks, bad batches, brokers that come and go."""

import json
import resource
import signal
import time
import urllib.error
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest

from dedup_cache import Batch, encode
from recd.embedded import EmbeddedKafka
from stream.config import Config, GuardsConfig, TableConfig
from stream.control import send as send_order
from tests.trainer.made_batches import World
from tests.trainer.trainers import Trainer, cut_in_force, make_topics, send, steps, trained, trainer_config
from trainer.replay_eval import evaluate
from trainer.versions import VersionStore

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


def check_cut(config: Config, sent: dict[int, list[Batch]]) -> None:
    """Everything that was sent was trained once."""
    partitions = cut_in_force(config)["partitions"]
    for partition, batches in sent.items():
        ids = sum(int(i) for batch in batches for i in batch.sample_ids) % 2**64
        samples = sum(batch.num_samples for batch in batches)
        assert partitions[str(partition)] == {"position": len(batches), "samples": samples, "id_sum": str(ids)}


def worlds(config: Config, *, partitions: int) -> list[World]:
    return [World(config, seed=partition) for partition in range(partitions)]


def rank_processes(trainer: Trainer) -> list[psutil.Process]:
    children = psutil.Process(trainer.process.pid).children(recursive=True)
    return [child for child in children if command(child)[1:3] == ["-m", "trainer"]]


def command(process: psutil.Process) -> list[str]:
    """What it was started with; nothing of one that has just ended."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


@pytest.mark.timeout(600)
def test_two_ranks_are_killed_and_told_to_stop(kafka: EmbeddedKafka, tmp_path: Path, topic_prefix: str):
    config = trainer_config(tmp_path, kafka=kafka, prefix=topic_prefix, ranks=2)
    make_topics(config, partitions=3)
    makers = worlds(config, partitions=3)
    sent: dict[int, list[Batch]] = {partition: [] for partition in range(3)}

    def more(counts: tuple[int, int, int]) -> int:
        for partition, count in enumerate(counts):
            batches = list(makers[partition].batches(count, partition=partition))
            send(config, batches, partition=partition)
            sent[partition] += batches
        return sum(map(len, sent.values()))

    total = more((20, 5, 12))
    with Trainer(config, tmp_path, launched=True) as trainer:
        trainer.wait_for_batches(total)
        total = more((10, 10, 10))
        victim = rank_processes(trainer)[1]
        victim.kill()
        status = trainer.wait_for_batches(total)
        assert status["ranks"] == 2
        assert trainer.events("a rank died, all begin again from the cut")
        total = more((0, 7, 0))
        trainer.wait_for_batches(total)
        ranks = rank_processes(trainer)
        assert trainer.stop() == 0, trainer.tail()
    check_cut(config, sent)
    cut = cut_in_force(config)
    newest_step = max(line["step"] for rank in range(2) for line in steps(config, rank=rank))
    assert (cut["world_size"], cut["step"]) == (2, newest_step)
    assert not any(process.is_running() for process in ranks)
    newest = VersionStore(config.trainer.versions_url, keep=9).newest()
    assert newest is not None
    assert VersionStore(config.trainer.versions_url, keep=9).manifest(newest).samples == cut["samples"]

    total = more((3, 3, 3))
    alone = msgspec.structs.replace(config, trainer=msgspec.structs.replace(config.trainer, ranks=1))
    with Trainer(alone, tmp_path) as trainer:
        trainer.wait_until(lambda status: status.get("samples") == 64 * total)
        assert trainer.stop() == 0, trainer.tail()
    check_cut(config, sent)


def test_ranks_die_with_a_killed_launcher(kafka: EmbeddedKafka, tmp_path: Path, topic_prefix: str):
    config = trainer_config(tmp_path, kafka=kafka, prefix=topic_prefix)
    make_topics(config)
    with Trainer(config, tmp_path, launched=True) as trainer:
        trainer.wait_until(lambda status: status["state"] == "idle")
        ranks = rank_processes(trainer)
        trainer.process.kill()
        gone, alive = psutil.wait_procs(ranks, timeout=20)
        assert (len(gone), alive) == (1, [])


@pytest.mark.parametrize("damage", ["flipped", "cut off", "not a batch"])
def test_a_damaged_batch_stops_the_trainer_by_name(
    kafka: EmbeddedKafka, tmp_path: Path, topic_prefix: str, damage: str
):
    config = trainer_config(tmp_path, kafka=kafka, prefix=topic_prefix, checkpoint_every_ms=3_600_000)
    make_topics(config)
    world = World(config)
    batches = list(world.batches(6))
    data = encode(batches[4], world.schema)
    bad = {
        "flipped": data[:700] + bytes([data[700] ^ 16]) + data[701:],
        "cut off": data[:-1],
        "not a batch": b"{}",
    }[damage]
    send(config, [*batches[:4], bad, *batches[5:]])
    with Trainer(config, tmp_path, launched=damage == "flipped") as trainer:
        assert trainer.wait() == 3, trainer.tail()
        reason = trainer.events("the trainer cannot go on")[0]["reason"]
        assert reason.startswith(f"{config.topics.batches}[0]@4: batch field")
        assert not trainer.events("a rank died, all begin again from the cut")
    check_cut(config, {0: batches[:4]})


def test_a_loss_that_is_not_finite_stops_before_anything_is_learned(
    kafka: EmbeddedKafka, tmp_path: Path, topic_prefix: str
):
    stops = GuardsConfig(non_finite_loss="stop")
    config = trainer_config(tmp_path, kafka=kafka, prefix=topic_prefix, guards=stops)
    make_topics(config)
    batches = list(World(config).batches(3))
    batches[2].weights[:] = 3e38
    send(config, batches)
    with Trainer(config, tmp_path) as trainer:
        assert trainer.wait() == 3, trainer.tail()
        assert "the loss of batch 0@2 is inf" in trainer.events("the trainer cannot go on")[0]["reason"]
    assert len(steps(config)) == 2


def test_a_full_disk_costs_no_training(kafka: EmbeddedKafka, tmp_path: Path, topic_prefix: str):
    config = trainer_config(tmp_path, kafka=kafka, prefix=topic_prefix)
    make_topics(config)
    batches = list(World(config).batches(30))
    send(config, batches[:10])
    with Trainer(config, tmp_path) as trainer:
        trainer.wait_for_batches(10)
        trainer.wait_until(lambda status: status["counters"]["cuts"] > 0 and cut_in_force(config)["step"] == 10)
        former = cut_in_force(config)
        soft, hard = resource.prlimit(trainer.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(trainer.process.pid, resource.RLIMIT_FSIZE, (60_000, hard))
        send(config, batches[10:20])
        status = trainer.wait_until(lambda status: status["step"] == 20 and status["counters"]["cut_failures"] >= 2)
        assert "the cut could not be written" in status["last_error"]
        assert status["counters"]["publish_failures"] > 0
        assert cut_in_force(config) == former
        assert trainer.get("/ready")[0] == 200
        resource.prlimit(trainer.process.pid, resource.RLIMIT_FSIZE, (soft, hard))
        send(config, batches[20:])
        trainer.wait_for_batches(30)
        assert trainer.stop() == 0, trainer.tail()
    check_cut(config, {0: batches})
    folders = [path.name for path in Path(config.trainer.checkpoint_url).iterdir() if path.is_dir()]
    assert len(folders) <= config.trainer.keep_checkpoints
    assert all(name.startswith("cut-") for name in folders)
    assert [line["step"] for line in steps(config)] == list(range(1, 31))


def test_orders_are_obeyed_between_steps(kafka: EmbeddedKafka, tmp_path: Path, topic_prefix: str):
    quiet = {"checkpoint_every_ms": 3_600_000, "publish_every_ms": 3_600_000}
    config = trainer_config(tmp_path, kafka=kafka, prefix=topic_prefix, **quiet)
    make_topics(config)
    batches = list(World(config).batches(20))
    store = VersionStore(config.trainer.versions_url, keep=9)
    with Trainer(config, tmp_path) as trainer:
        trainer.wait_until(lambda status: status["state"] == "idle")
        send(config, batches[:10])
        trainer.wait_for_batches(10)
        send_order(config, target="trainer", action="publish")
        trainer.wait_until(lambda status: status["version"] == 1)
        send_order(config, target="all", action="checkpoint")
        trainer.wait_until(lambda status: status["counters"]["cuts"] == 1)
        assert cut_in_force(config)["versions"] == {"last": 1}
        send_order(config, target="trainer", action="pause")
        trainer.wait_until(lambda status: status["state"] == "paused")
        send(config, batches[10:])
        trainer.wait_until(lambda status: status["lag_batches"] >= 10)
        assert trained(config) == 10
        send_order(config, target="trainer", action="resume")
        trainer.wait_for_batches(20)
        send_order(config, target="trainer", action="pause")
        trainer.wait_until(lambda status: status["state"] == "paused")
        send_order(config, target="trainer", action="reload", version=77)
        status = trainer.wait_until(lambda status: status["counters"]["reload_failures"] == 1)
        assert "77" in status["last_error"]
        send_order(config, target="trainer", action="reload", version=1)
        send_order(config, target="stream", action="drain")
        send_order(config, target="trainer", action="explode")
        status = trainer.wait_until(lambda status: status["counters"]["reloads"] == 1)
        assert (status["counters"]["reload_failures"], status["last_error"]) == (1, "")
        trainer.wait_until(lambda status: status["counters"]["orders_refused"] == 1)
        send_order(config, target="trainer", action="publish")
        trainer.wait_until(lambda status: status["version"] == 2)
        assert trainer.stop() == 0, trainer.tail()
    first, again = store.load(1), store.load(2)
    assert (first.manifest.step, again.manifest.step) == (10, 20)
    for name, weights in {**first.tables, **first.dense}.items():
        np.testing.assert_array_equal(again.tables.get(name, again.dense.get(name)), weights, err_msg=name)


def test_what_the_trainer_shows_is_what_a_replay_finds(kafka: EmbeddedKafka, tmp_path: Path, topic_prefix: str):
    config = trainer_config(tmp_path, kafka=kafka, prefix=topic_prefix)
    make_topics(config, partitions=2)
    makers = worlds(config, partitions=2)
    for partition in range(2):
        send(config, makers[partition].batches(40, partition=partition), partition=partition)
    with Trainer(config, tmp_path) as trainer:
        trainer.wait_for_batches(80)
        status = trainer.wait_until(lambda status: status["version"] > 0 and status["state"] == "idle")
        metrics = trainer.get("/metrics")[1].decode()
        assert trainer.get("/health")[0] == 200
        assert trainer.stop() == 0, trainer.tail()
    assert status["service"] == "trainer"
    assert (status["samples"], status["counters"]["batches"]) == (80 * 64, 80)
    assert status["positions"] == {"0": 40, "1": 40}
    assert status["ne"] == status["labels"]["click"]["ne"]
    assert status["labels"]["click"]["logged_ne"] < 1 < status["labels"]["click"]["base_ne"] < 1.1
    assert status["labels"]["buy"]["logged_ne"] is None
    assert status["event_to_weights_ms"]["p50"] > status["append_to_weights_ms"]["p50"] * 0.999 > 0
    assert "recd_data_stall_seconds_total" in metrics
    assert 'recd_trainer_ne{label="click"}' in metrics
    assert "recd_event_to_weights_seconds_bucket" in metrics
    orders = [(line["partition"], line["offset"]) for line in steps(config)]
    assert orders == [(p, offset) for offset in range(40) for p in range(2)]

    lines = [line for line in steps(config) if line["offset"] >= 30]
    stretch = {"begin": {0: 30, 1: 30}, "end": {0: 40, 1: 40}}
    late = evaluate(config, **stretch)
    early = evaluate(config, version=1, **stretch)
    assert late.samples == early.samples == sum(line["samples"] for line in lines)
    positive, weight = (sum(line[name][0] for line in lines) for name in ("positive", "weight"))
    rate = positive / weight
    base = -(positive * np.log(rate) + (weight - positive) * np.log(1 - rate))
    progressive = sum(line["entropy"][0] for line in lines) / base
    assert late.labels["click"].ne < progressive < early.labels["click"].ne


def test_a_cut_that_does_not_fit_is_refused_and_none_is_lost(kafka: EmbeddedKafka, tmp_path: Path, topic_prefix: str):
    config = trainer_config(tmp_path, kafka=kafka, prefix=topic_prefix)
    make_topics(config)
    batches = list(World(config).batches(5))
    send(config, batches)
    with Trainer(config, tmp_path) as trainer:
        trainer.wait_for_batches(5)
        assert trainer.stop() == 0, trainer.tail()
    model = config.trainer.model
    larger = msgspec.structs.replace(model, tables=model.tables | {"item": TableConfig(rows=600)})
    changed = msgspec.structs.replace(config, trainer=msgspec.structs.replace(config.trainer, model=larger))
    with Trainer(changed, tmp_path) as trainer:
        assert trainer.wait() == 3
        reason = trainer.events("the trainer cannot go on")[0]["reason"]
        assert "the table of 'item' has 500 rows in the cut and 600 in the config" in reason
    elsewhere = msgspec.structs.replace(config.topics, batches=f"{topic_prefix}other")
    other = msgspec.structs.replace(config, topics=elsewhere)
    make_topics(
        msgspec.structs.replace(
            other,
            topics=msgspec.structs.replace(
                elsewhere, values=f"{topic_prefix}other-values", control=f"{topic_prefix}other-control"
            ),
        )
    )
    with Trainer(other, tmp_path) as trainer:
        assert trainer.wait() == 3
        assert "its positions mean nothing there" in trainer.events("the trainer cannot go on")[0]["reason"]
    check_cut(config, {0: batches})
    root = Path(config.trainer.checkpoint_url)
    for folder in root.glob("cut-*"):
        (folder / "cut.json").write_bytes(b"{}")
    with Trainer(config, tmp_path) as trainer:
        assert trainer.wait() == 3
        reason = trainer.events("the trainer cannot go on")[0]["reason"]
        assert f"no cut in {root} can be used" in reason
        assert "cut.json: 2 bytes with another digest" in reason


def test_brokers_come_and_go(private_kafka: EmbeddedKafka, tmp_path: Path, topic_prefix: str):
    config = trainer_config(tmp_path, kafka=private_kafka, prefix=topic_prefix)
    world = World(config)
    batches = list(world.batches(15))
    private_kafka.stop()
    with Trainer(config, tmp_path) as trainer:
        status = trainer.wait_until(lambda status: status["state"] == "waiting_for_broker" and status["last_error"])
        assert private_kafka.bootstrap in status["last_error"]
        assert trainer.get("/ready")[0] == 503
        private_kafka.start()
        status = trainer.wait_until(lambda status: status["state"] == "waiting_for_topic")
        assert config.topics.batches in status["last_error"]
        make_topics(config)
        trainer.wait_until(lambda status: status["state"] == "idle")
        assert trainer.get("/ready")[0] == 200
        send(config, batches[:5])
        trainer.wait_for_batches(5)
        private_kafka.kill()
        time.sleep(1)
        assert trainer.get("/health")[0] == 200
        private_kafka.start()
        send(config, batches[5:10])
        trainer.wait_for_batches(10)
        private_kafka.stop()
        assert trainer.stop() == 0, trainer.tail()
        private_kafka.start()
    send(config, batches[10:])
    with Trainer(config, tmp_path) as trainer:
        trainer.wait_for_batches(15)
        trainer.process.send_signal(signal.SIGINT)
        assert trainer.wait() == 0, trainer.tail()
    check_cut(config, {0: batches})


def test_an_end_while_the_ranks_load_is_in_order(kafka: EmbeddedKafka, tmp_path: Path, topic_prefix: str):
    config = trainer_config(tmp_path, kafka=kafka, prefix=topic_prefix)
    with Trainer(config, tmp_path, launched=True) as trainer:
        deadline = time.monotonic() + 60
        while not (ranks := rank_processes(trainer)) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(1)
        assert trainer.stop() == 0, trainer.tail()
    assert not psutil.wait_procs(ranks, timeout=10)[1]


def test_an_end_before_the_beginning_is_in_order(tmp_path: Path, kafka: EmbeddedKafka, topic_prefix: str):
    config = trainer_config(tmp_path, kafka=kafka, prefix=topic_prefix)
    with Trainer(config, tmp_path) as trainer:
        trainer.wait_until(lambda status: status["state"] == "waiting_for_topic")
        assert trainer.stop() == 0
        with pytest.raises((urllib.error.URLError, ConnectionError)):
            trainer.get("/health")
    assert not (tmp_path / "checkpoints" / "current.json").exists()


def test_a_version_of_every_published_step_is_whole(kafka: EmbeddedKafka, tmp_path: Path, topic_prefix: str):
    config = trainer_config(tmp_path, kafka=kafka, prefix=topic_prefix, publish_every_ms=1)
    make_topics(config)
    send(config, World(config).batches(20))
    with Trainer(config, tmp_path) as trainer:
        trainer.wait_for_batches(20)
        assert trainer.stop() == 0, trainer.tail()
    store = VersionStore(config.trainer.versions_url, keep=1000)
    manifests = [store.load(number).manifest for number in store.versions()]
    assert [manifest.samples for manifest in manifests] == [64 * manifest.step for manifest in manifests]
    assert (len(manifests) > 2, manifests[-1].step) == (True, 20)
    assert json.dumps(manifests[-1].config["model"])
