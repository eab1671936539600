"""A trainer that is killed at any moment goes on as if nothing had happened, to the bit."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from dedup_cache import Batch
from recd.embedded import EmbeddedKafka
from stream.config import Config
from tests.trainer.made_batches import World, make_config
from tests.trainer.trainers import Trainer, cut_in_force, make_topics, send, steps, trainer_config
from trainer.versions import Version, VersionStore

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.xdist_group("resume")]

BATCHES = 130


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    return list(World(make_config()).batches(BATCHES))


@pytest.fixture(scope="module")
def uninterrupted(
    kafka: EmbeddedKafka, batches: list[Batch], tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, object]]:
    """The lines of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    config = trainer_config(folder, kafka=kafka, prefix=f"{folder.name}-{id(batches)}-")
    make_topics(config)
    send(config, batches)
    with Trainer(config, folder) as trainer:
        trainer.wait_for_batches(BATCHES)
        assert trainer.stop() == 0, trainer.tail()
    return steps(config)


def check_cut(config: Config, batches: Sequence[Batch]) -> None:
    """The cut in force holds what was trained, by count and by sum of ids."""
    partition = cut_in_force(config)["partitions"]["0"]
    done = batches[: partition["position"]]
    id_sum = sum(int(sample) for batch in done for sample in batch.sample_ids) % 2**64
    assert partition == {
        "position": len(done),
        "samples": sum(batch.num_samples for batch in done),
        "id_sum": str(id_sum),
    }


# Each run of a chain is given more batches and killed at its cue; the last one is left alone.
CHAINS = {
    "early": ("step:15", "begun:1", "tensors:1", "arrays:1", "publishing:1"),
    "late": ("current:1", "record:1", "sealed:1", "renamed:1", "published:1", "retained:1"),
    "versions": ("version written:2", "full written:1", "writing full:1", "version current:3"),
}


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
@pytest.mark.timeout(600)
def test_runs_that_were_killed_have_the_losses_of_one_that_was_not(
    chain: tuple[str, ...],
    kafka: EmbeddedKafka,
    batches: list[Batch],
    uninterrupted: list[dict[str, object]],
    tmp_path: Path,
    topic_prefix: str,
):
    config = trainer_config(tmp_path, kafka=kafka, prefix=topic_prefix, checkpoint_every_ms=40, publish_every_ms=10)
    trainer = msgspec.structs.replace(config.trainer, max_deltas=1)
    config = msgspec.structs.replace(config, trainer=trainer)
    make_topics(config)
    sent = 0
    for cue in chain:
        send(config, batches[sent : sent + 20])
        sent += 20
        with Trainer(config, tmp_path, cue=cue) as trainer:
            assert trainer.wait() == -9, trainer.tail()
        if (tmp_path / "checkpoints" / "current.json").exists():
            check_cut(config, batches)
    send(config, batches[sent:])
    with Trainer(config, tmp_path) as trainer:
        trainer.wait_for_batches(BATCHES)
        assert trainer.stop() == 0, trainer.tail()
        assert trainer.events("resumed") or chain is CHAINS["early"]
    assert steps(config) == uninterrupted
    check_cut(config, batches)
    hidden = [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.startswith(".")]
    assert hidden == [".lock"]
    check_versions(config, runs=len(chain) + 1, deltas=chain is CHAINS["versions"])


def check_versions(config: Config, *, runs: int, deltas: bool) -> None:
    """Every version is whole, and the weights of a step are the same in every run that came to it."""
    store = VersionStore(config.trainer.versions_url, keep=1000)
    versions = [store.load(number) for number in store.versions()]
    assert [v.manifest.samples for v in versions] == [64 * v.manifest.step for v in versions]
    assert versions[-1].manifest.step == BATCHES
    assert store.newest() == versions[-1].manifest.version
    lineages = [list(of) for _, of in itertools.groupby(versions, key=lambda v: v.manifest.lineage)]
    assert len(lineages) == len({of[0].manifest.lineage for of in lineages}) <= runs
    assert {of[0].manifest.kind for of in lineages} == {"full"}
    assert any(version.manifest.kind == "delta" for version in versions) or not deltas
    seen: dict[int, Version] = {}
    for version in versions:
        same = seen.setdefault(version.manifest.step, version)
        for name, weights in (same.tables | same.dense).items():
            np.testing.assert_array_equal((version.tables | version.dense)[name], weights)


def test_the_lines_recompute_ne(uninterrupted: list[dict[str, object]], batches: list[Batch]):
    assert [line["step"] for line in uninterrupted] == list(range(1, BATCHES + 1))
    assert [line["offset"] for line in uninterrupted] == list(range(BATCHES))
    labels = np.concatenate([batch.labels for batch in batches])
    np.testing.assert_allclose(sum(np.array(line["positive"]) for line in uninterrupted), labels.sum(axis=0))
    weight = sum(np.array(line["weight"]) for line in uninterrupted)
    rate = labels.mean(axis=0)
    base = -weight * (rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    ne = sum(np.array(line["entropy"]) for line in uninterrupted) / base
    assert (ne > 0.5).all()
    assert (ne < 1.5).all()


def test_damage_to_the_newest_cut_falls_back_loudly(
    kafka: EmbeddedKafka,
    batches: list[Batch],
    uninterrupted: list[dict[str, object]],
    tmp_path: Path,
    topic_prefix: str,
):
    config = trainer_config(tmp_path, kafka=kafka, prefix=topic_prefix)
    make_topics(config)
    for first, last in ((0, 20), (20, 40)):
        send(config, batches[first:last])
        with Trainer(config, tmp_path) as trainer:
            trainer.wait_for_batches(last)
            assert trainer.stop() == 0, trainer.tail()
    root = Path(config.trainer.checkpoint_url)
    newest = root / json.loads((root / "current.json").read_text())["cut"]
    victim = next(newest.glob("*.distcp"))
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 4
    victim.write_bytes(data)
    send(config, batches[40:])
    with Trainer(config, tmp_path) as trainer:
        status = trainer.wait_for_batches(BATCHES)
        assert status["counters"]["cut_fallbacks"] == 1
        assert trainer.stop() == 0, trainer.tail()
        (event,) = trainer.events("a damaged cut was passed over")
        assert victim.name in event["reason"]
    assert steps(config) == uninterrupted
    check_cut(config, batches)
