"""DistributedModelParallel on real gloo processes against the slow obvious trainer."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.trainer.made_batches import World
from tests.trainer.reference import Reference, tensors
from tests.trainer.sharded_run import case_config

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("sharding")]

ROOT = Path(__file__).parents[2]
STEPS = 20
CASES = [
    {"kind": kind, "sparse": sparse, "dedup": dedup}
    for kind, sparse, dedup in [
        ("table_wise", "rowwise_adagrad", "on"),
        ("table_wise", "rowwise_adagrad", "off"),
        ("table_wise", "sgd", "on"),
        ("column_wise", "sgd", "on"),
        ("column_wise", "rowwise_adagrad", "on"),
        ("column_wise", "rowwise_adagrad", "off"),
        ("data_parallel", "rowwise_adagrad", "on"),
        ("data_parallel", "sgd", "on"),
        ("row_wise", "sgd", "on"),
    ]
]


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """All cases, trained by real processes; the number of ranks and the folder of what came out."""
    folder = tmp_path_factory.mktemp("sharded")
    (folder / "cases.json").write_text(json.dumps(CASES))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={request.param}"]
    script = [str(Path(__file__).with_name("sharded_run.py")), str(folder / "cases.json"), str(folder)]
    done = subprocess.run([*torchrun, *script], cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return request.param, folder


def results(trained: tuple[int, Path], case: dict[str, str]) -> dict[str, np.ndarray]:
    return dict(np.load(trained[1] / f"{CASES.index(case)}.npz"))


def expected(case: dict[str, str], *, world_size: int) -> tuple[list[float], dict[str, np.ndarray]]:
    config = case_config(case)
    reference = Reference(config)
    worlds = [World(config, seed=rank, samples=40 + 24 * rank) for rank in range(world_size)]
    losses = []
    for step in range(STEPS):
        batches = [tensors(world.batch(), config=config, dedup=case["dedup"] == "on") for world in worlds]
        if step % 5 == 4:
            batches = batches[:1]
        losses.append(reference.step(batches))
    weights = {key.split(".")[-2] if "embedding_bags" in key else key: v for key, v in reference.weights().items()}
    return losses, weights


# Row-wise AdaGrad keeps one number per row and shard: over two column shards it is another optimizer.
EXACT = [c for c in CASES if c["kind"] != "row_wise" and (c["kind"], c["sparse"]) != ("column_wise", "rowwise_adagrad")]


@pytest.mark.parametrize("case", EXACT, ids=lambda c: "-".join(c.values()))
def test_sharded_training_is_plain_training(trained: tuple[int, Path], case: dict[str, str]):
    found = results(trained, case)
    losses, weights = expected(case, world_size=trained[0])
    np.testing.assert_allclose(found.pop("losses"), losses, atol=1e-4)
    assert found.keys() == weights.keys()
    for key, value in weights.items():
        np.testing.assert_allclose(found[key], value, atol=1e-4, err_msg=key)


@pytest.mark.parametrize("kind", ["table_wise", "column_wise"])
def test_dedup_on_and_off_train_the_same(trained: tuple[int, Path], kind: str):
    on, off = ({"kind": kind, "sparse": "rowwise_adagrad", "dedup": dedup} for dedup in ("on", "off"))
    with_dedup, without = results(trained, on), results(trained, off)
    for key, value in with_dedup.items():
        np.testing.assert_allclose(value, without[key], atol=1e-4, err_msg=key)


@pytest.mark.parametrize("case", [c for c in CASES if c["kind"] != "row_wise"], ids=lambda c: "-".join(c.values()))
def test_every_table_moves(trained: tuple[int, Path], case: dict[str, str]):
    found, start = results(trained, case), Reference(case_config(case)).weights()
    tables = {key.split(".")[-2]: value for key, value in start.items() if "embedding_bags" in key}
    assert len(tables) == 5
    for table, value in tables.items():
        assert np.isfinite(found[table]).all()
        assert (found[table] != value).any(axis=1).sum() > 10, table


def test_row_wise_on_gloo_is_a_named_error(trained: tuple[int, Path]):
    world_size, folder = trained
    number = next(i for i, case in enumerate(CASES) if case["kind"] == "row_wise")
    refusals = [path.read_text() for path in sorted(folder.glob(f"{number}-*.txt"))]
    assert len(refusals) == world_size
    assert "row_wise sharding of bags needs NCCL" in refusals[0]
    assert "$.trainer.model.tables" in refusals[0]
