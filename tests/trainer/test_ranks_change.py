"""A cut of two ranks goes on with one, and with two again: the same state to the bit, the losses of one trainer."""

import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recd.embedded import free_port
from tests.forkserver import TRAINING, WarmProcess
from tests.trainer.cut_run import FULL_BATCH, STEPS, case_config, world
from tests.trainer.reference import Reference, tensors, weighted_loss
from tests.trainer.test_keeper import pytestmark as torch_warnings

pytestmark = [*torch_warnings, pytest.mark.slow, pytest.mark.xdist_group("sharding"), pytest.mark.timeout(600)]

PHASES = {"a": 2, "b": 1, "c": 2}
CASES = [
    {"kind": "table_wise", "sparse": "rowwise_adagrad"},
    {"kind": "column_wise", "sparse": "sgd"},
    {"kind": "data_parallel", "sparse": "rowwise_adagrad"},
    {"kind": "column_wise", "sparse": "rowwise_adagrad"},
    {"kind": "table_wise", "sparse": "rowwise_adagrad", "spoiled": "c"},
    {"kind": "table_wise", "sparse": "rowwise_adagrad", "spoiled": "c", "non_finite_loss": "skip"},
]
SHARDED_STATE, SPOILED, PASSED_OVER = 3, 4, 5
SCRIPT = str(Path(__file__).with_name("cut_run.py"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All phases of all cases, run by real processes."""
    folder = tmp_path_factory.mktemp("cuts")
    (folder / "cases.json").write_text(json.dumps(CASES))
    for phase, world_size in PHASES.items():
        run_phase(folder, phase, world_size=world_size)
    return folder


def run_phase(folder: Path, phase: str, *, world_size: int) -> None:
    meeting = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    processes = []
    for rank in range(world_size):
        log = folder / f"{phase}-{rank}.log"
        with pytest.MonkeyPatch.context() as patch, log.open("wb") as out:
            for name, value in {**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)}.items():
                patch.setitem(os.environ, name, value)
            processes.append((WarmProcess([SCRIPT, str(folder), phase], preload=TRAINING, log=out), log))
    for process, log in processes:
        assert process.wait(400) == 0, log.read_text()[-4000:]


def result(folder: Path, case: int, phase: str) -> dict[str, Any]:
    return pickle.loads((folder / f"{case}-{phase}.pickle").read_bytes())  # noqa: S301 - written by this test


def lines(folder: Path, case: int, rank: int) -> Iterator[dict[str, Any]]:
    path = folder / str(case) / "cuts" / ("steps.jsonl" if rank == 0 else f"steps-{rank}.jsonl")
    return map(json.loads, path.read_text().splitlines())


def assert_same(found: dict[str, Any], expected: dict[str, Any], *, but: str = "nothing") -> None:
    for part in ("tensors", "metrics"):
        names = {name for name in expected[part] if but not in name}
        assert {name for name in found[part] if but not in name} == names
        for name in names:
            np.testing.assert_array_equal(found[part][name], expected[part][name], err_msg=name)
    assert (found["partitions"], found["step"]) == (expected["partitions"], expected["step"])


@pytest.mark.parametrize("case", range(len(CASES)))
def test_the_state_is_the_same_to_the_bit(folder: Path, case: int):
    but = "momentum1" if case == SHARDED_STATE else "nothing"
    for before, after in (("a", "b"), ("b", "c")):
        left, found = result(folder, case, before)["final"], result(folder, case, after)["loaded"]
        assert left["step"] == STEPS * (1 + (before == "b"))
        assert np.isfinite(left["tensors"]["model/interaction.bias"]).all()
        assert_same(found, left, but=but)


def test_a_value_per_row_and_column_shard_is_their_mean(folder: Path):
    """What one row-wise AdaGrad over all columns would have summed up."""
    left, found = result(folder, SHARDED_STATE, "a")["final"], result(folder, SHARDED_STATE, "b")
    again = result(folder, SHARDED_STATE, "c")["loaded"]
    for name in (name for name in left["tensors"] if "momentum1" in name):
        halves = left["tensors"][name].reshape(2, -1)
        assert halves.any()
        np.testing.assert_allclose(found["loaded"]["tensors"][name], halves.mean(axis=0), rtol=1e-6)
        np.testing.assert_array_equal(again["tensors"][name], np.tile(found["final"]["tensors"][name], 2))
    assert "table t_item: another number of column shards" in found["taken_over"].grown


@pytest.mark.parametrize("case", [0, 1, 2])
def test_losses_are_those_of_one_trainer(folder: Path, case: int):
    config = case_config(CASES[case], folder)
    reference = Reference(config)
    losses: dict[int, list[float]] = {0: [], 1: []}
    for phase, world_size in PHASES.items():
        sources = [world(config, phase=phase, partition=partition) for partition in range(world_size)]
        for _ in range(STEPS):
            batches = [tensors(source.batch(partition=p), config=config) for p, source in enumerate(sources)]
            for partition, batch in enumerate(batches):
                losses[partition].append(float(weighted_loss(reference.model(batch), batch).detach()) / FULL_BATCH)
            reference.step(batches, full_batch=FULL_BATCH * world_size)
    for rank in (0, 1):
        np.testing.assert_allclose([line["loss"] for line in lines(folder, case, rank)], losses[rank], atol=1e-4)


def test_a_loss_that_is_not_finite_on_one_rank_stops_both_with_what_was_trained(folder: Path):
    done = result(folder, SPOILED, "c")
    waiting, failed = done["errors"]
    assert waiting.startswith("OtherRankFailed: rank 0 stops")
    assert failed.startswith("NonFiniteLoss: the loss of batch 1@8 is inf")
    assert done["final"]["step"] == 2 * STEPS + 2
    assert {p: v["position"] for p, v in done["final"]["partitions"].items()} == {0: 2 * STEPS + 2, 1: STEPS + 2}
    samples = (3 * STEPS + 4) * FULL_BATCH
    assert done["final"]["metrics"]["counts"].tolist() == [samples, 0]


def test_a_loss_that_is_not_finite_on_one_rank_is_passed_over_by_both(folder: Path):
    done = result(folder, PASSED_OVER, "c")
    assert done["errors"] == ["", ""]
    assert done["final"]["step"] == 3 * STEPS
    assert all(np.isfinite(values).all() for values in done["final"]["tensors"].values())
    first, second = done["final"]["partitions"][0], done["final"]["partitions"][1]
    assert (first["position"], first["skipped"]) == (3 * STEPS, FULL_BATCH), (
        "what rank 0 had in that step is not learned"
    )
    assert (second["position"], second["skipped"]) == (2 * STEPS, FULL_BATCH)


def test_a_rank_that_fails_before_a_cut_stops_it_on_both_and_spoils_none_after(folder: Path):
    found = json.loads((folder / "spoiled-a.json").read_text())
    for told in found["told"]:
        assert [("no more descriptors" in text) for text in told] == [True, True, False]
        assert told[2] == "cut-0000000001"
    assert (found["a"], found["steps"]) == ([3.0, 3.0], [3, 3])
