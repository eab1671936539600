"""DistributedModelParallel on real gloo processes against the slow obvious trainer."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.trainer.made_batches import World
from tests.trainer.reference import Reference, tensors
from tests.trainer.sharded_run import FOLLOWED, case_config

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("sharding")]

ROOT = Path(__file__).parents[2]
CASES = [
    {"kind": kind, "sparse": sparse, "dedup": dedup, "model": model, "lookups": lookups, "steps": "30"}
    for kind, sparse, dedup, model, lookups in [
        ("table_wise", "rowwise_adagrad", "on", "dot", "grouped"),
        ("table_wise", "rowwise_adagrad", "off", "dot", "grouped"),
        ("table_wise", "sgd", "on", "dot", "grouped"),
        ("column_wise", "sgd", "on", "dot", "grouped"),
        ("column_wise", "rowwise_adagrad", "on", "dot", "grouped"),
        ("column_wise", "rowwise_adagrad", "off", "dot", "grouped"),
        ("data_parallel", "rowwise_adagrad", "on", "dot", "grouped"),
        ("data_parallel", "sgd", "on", "dot", "grouped"),
        ("row_wise", "sgd", "on", "dot", "grouped"),
        ("table_wise", "rowwise_adagrad", "on", "transformer", "grouped"),
        ("table_wise", "rowwise_adagrad", "off", "transformer", "grouped"),
        ("table_wise", "rowwise_adagrad", "on", "transformer", "off"),
        ("column_wise", "sgd", "on", "transformer", "grouped"),
        ("column_wise", "sgd", "off", "transformer", "grouped"),
        ("data_parallel", "sgd", "on", "transformer", "grouped"),
        ("row_wise lists", "rowwise_adagrad", "on", "transformer", "grouped"),
        ("table_wise", "rowwise_adagrad", "on", "attention", "grouped"),
        ("table_wise", "rowwise_adagrad", "on", "shared sequence", "grouped"),
        ("table_wise", "rowwise_adagrad", "on", "shared bag", "grouped"),
        ("table_wise", "rowwise_adagrad", "on", "dimensions", "grouped"),
        ("table_wise", "rowwise_adagrad", "on", "sums", "vbe"),
        ("column_wise", "sgd", "on", "sums", "vbe"),
        ("table_wise", "sgd", "on", "dot", "vbe"),
        ("data_parallel", "sgd", "on", "sums", "vbe"),
    ]
]
# Every pooling, optimizer and sharding at least once, for long: small differences have time to grow.
PAIRS = [
    {"kind": kind, "sparse": sparse, "dedup": dedup, "model": model, "lookups": "grouped", "steps": "200"}
    for kind, sparse, model in [
        ("table_wise", "rowwise_adagrad", "dot"),
        ("data_parallel", "sgd", "cross"),
        ("column_wise", "sgd", "transformer"),
        ("row_wise lists", "rowwise_adagrad", "attention"),
    ]
    for dedup in ("on", "off")
]


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """All cases, trained by real processes; the number of ranks and the folder of what came out."""
    folder = tmp_path_factory.mktemp("sharded")
    # Two ranks show what one would, and more.
    cases = CASES + (PAIRS if request.param == 2 else [])
    (folder / "cases.json").write_text(json.dumps(cases))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={request.param}"]
    script = [str(Path(__file__).with_name("sharded_run.py")), str(folder / "cases.json"), str(folder)]
    done = subprocess.run([*torchrun, *script], cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return request.param, folder


def results(trained: tuple[int, Path], case: dict[str, str]) -> dict[str, np.ndarray]:
    return dict(np.load(trained[1] / f"{(CASES + PAIRS).index(case)}.npz"))


def expected(case: dict[str, str], *, world_size: int) -> tuple[list[float], dict[str, np.ndarray]]:
    config = case_config(case)
    reference = Reference(config)
    worlds = [World(config, seed=rank, samples=40 + 24 * rank) for rank in range(world_size)]
    losses = []
    for step in range(int(case["steps"])):
        batches = [tensors(world.batch(), config=config, dedup=case["dedup"] == "on") for world in worlds]
        if step % 5 == 4:
            batches = batches[:1]
        losses.append(reference.step(batches))
    weights = {key.split(".")[-2] if ".t_" in key else key: v for key, v in reference.weights().items()}
    return losses, weights


REFUSED = [
    ("row_wise", "dot", "grouped", "row_wise sharding of bags needs NCCL", "$.trainer.model.tables"),
    ("data_parallel", "transformer", "grouped", "data_parallel sharding of lists", "$.trainer.model.tables"),
    ("table_wise", "dot", "vbe", "one pooling for all tables", "$.trainer.distinct.lookups"),
    ("data_parallel", "sums", "vbe", "no data_parallel tables", "$.trainer.distinct.lookups"),
]
TRAINED = [c for c in CASES if (c["kind"], c["model"], c["lookups"]) not in [r[:3] for r in REFUSED]]
# Row-wise AdaGrad keeps one number per row and shard: over two column shards it is another optimizer.
EXACT = [c for c in TRAINED if (c["kind"], c["sparse"]) != ("column_wise", "rowwise_adagrad")]


@pytest.mark.parametrize("case", EXACT, ids=lambda c: "-".join(c.values()))
def test_sharded_training_is_plain_training(trained: tuple[int, Path], case: dict[str, str]):
    found = results(trained, case)
    losses, weights = expected(case, world_size=trained[0])
    np.testing.assert_allclose(found.pop("losses"), losses, atol=1e-4)
    assert {key for key in found if not key.startswith(FOLLOWED)} == weights.keys()
    for key, value in weights.items():
        np.testing.assert_allclose(found[key], value, atol=1e-4, err_msg=key)


@pytest.mark.parametrize("off", [c for c in PAIRS if c["dedup"] == "off"], ids=lambda c: "-".join(c.values()))
def test_dedup_on_and_off_train_the_same(trained: tuple[int, Path], off: dict[str, str]):
    if trained[0] == 1:
        pytest.skip("trained by two ranks only")
    with_dedup, without = results(trained, off | {"dedup": "on"}), results(trained, off)
    assert with_dedup["losses"][-20:].mean() < with_dedup["losses"][:20].mean()
    for key, value in with_dedup.items():
        np.testing.assert_allclose(effective(key, value), effective(key, without[key]), atol=1e-4, err_msg=key)


def effective(key: str, value: np.ndarray) -> np.ndarray:
    """Without the bias of attention's keys: it moves all scores of a query alike, so Adam steps by its rounding."""
    if not key.endswith("queries_keys_values.bias"):
        return value
    queries, _, values = np.split(value, 3)
    return np.concatenate([queries, values])


@pytest.mark.parametrize("case", TRAINED, ids=lambda c: "-".join(c.values()))
def test_every_table_moves(trained: tuple[int, Path], case: dict[str, str]):
    found, start = results(trained, case), Reference(case_config(case)).weights()
    tables = {key.split(".")[-2]: value for key, value in start.items() if ".t_" in key}
    assert len(tables) in {4, 5}
    for table, value in tables.items():
        assert np.isfinite(found[table]).all()
        assert (found[table] != value).any(axis=1).sum() > 10, table


@pytest.mark.parametrize("case", TRAINED, ids=lambda c: "-".join(c.values()))
def test_a_full_snapshot_and_deltas_make_the_tables(trained: tuple[int, Path], case: dict[str, str]):
    found = results(trained, case)
    followed = {key.removeprefix(FOLLOWED): value for key, value in found.items() if key.startswith(FOLLOWED)}
    assert len(followed) in {4, 5}
    for table, value in followed.items():
        np.testing.assert_array_equal(value, found[table], err_msg=table)


@pytest.mark.parametrize(("kind", "model", "lookups", "error", "where"), REFUSED)
def test_what_gloo_cannot_do_is_a_named_error(
    trained: tuple[int, Path], kind: str, model: str, lookups: str, error: str, where: str
):
    world_size, folder = trained
    (number,) = (i for i, c in enumerate(CASES) if (c["kind"], c["model"], c["lookups"]) == (kind, model, lookups))
    refusals = [path.read_text() for path in sorted(folder.glob(f"{number}-*.txt"))]
    assert len(refusals) == world_size
    assert error in refusals[0]
    assert where in refusals[0]
