"""One rank of a trainer that reads made batches: goes on from the cut, trains, leaves a cut and what it came to.

cut_run.py FOLDER PHASE     FOLDER/cases.json: the cases; PHASE names the batches and what is left
"""

import json
import pickle
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import torch
from torch.distributed._shard.sharded_tensor.api import ShardedTensor

from stream.columns import batch_schema
from stream.config import Config, GuardsConfig, OptimizerConfig
from tests.trainer.made_batches import World, make_config, with_sharding
from tests.trainer.test_cut import record
from trainer import app
from trainer.board import Board
from trainer.cut import CutStore
from trainer.cut_writer import CutWriter
from trainer.feed import FedBatch, Feed
from trainer.ikjt import dummy_batch, group_specs, to_train_batch
from trainer.keeper import Keeper, Origin
from trainer.loop import NonFiniteLoss, OtherRankFailed, StepRules, TrainingLoop
from trainer.ranks import Ranks, join, leave
from trainer.schedule import Schedule
from trainer.staging import Staging

STEPS = 6
FULL_BATCH = 64


def case_config(case: dict[str, str], root: Path) -> Config:
    config = make_config(
        optimizer=OptimizerConfig(sparse=case["sparse"], sparse_learning_rate=0.1),
        checkpoint_url=str(root / "cuts"),
        versions_url=str(root / "versions"),
        checkpoint_every_ms=3_600_000,
        publish_every_ms=3_600_000,
        guards=GuardsConfig(non_finite_loss=case.get("non_finite_loss", "stop")),
    )
    return with_sharding(config, case["kind"])


def world(config: Config, *, phase: str, partition: int) -> World:
    """Where a phase's batches of a partition come from."""
    return World(config, seed=1 + 10 * "abc".index(phase) + partition, samples=FULL_BATCH)


class MadeFeed:
    """Batches of one partition, then the end."""

    lag_batches = 0
    stalled_s = 0.0

    def __init__(self, fed: Iterator[FedBatch], stop: threading.Event) -> None:
        self._fed = fed
        self._stop = stop
        self.idle = False

    def get(self, *, timeout_s: float) -> FedBatch | None:
        fed = next(self._fed, None)
        if fed is None:
            self.idle = True
            self._stop.set()
        return fed

    def counters(self) -> dict[str, int]:
        return {}


def batches(config: Config, *, phase: str, partition: int, first: int, spoiled: bool) -> Iterator[FedBatch]:
    source = world(config, phase=phase, partition=partition)
    for offset in range(first, first + STEPS):
        batch = source.batch(partition=partition)
        if spoiled and offset == first + 2:
            batch = replace(batch, weights=np.full(FULL_BATCH, 3e38, np.float32))
        tensors = to_train_batch(batch, specs=group_specs(config.features, config.trainer.model), dedup=True)
        id_sum = int(batch.sample_ids.sum(dtype=np.uint64))
        times = batch.event_times_ms, batch.append_times_ms
        yield FedBatch(tensors, partition, offset, partition, FULL_BATCH, id_sum, *times, 0)


def state_of(kept: Keeper, ranks: Ranks) -> dict[str, Any]:
    """All of it, whatever rank holds it, as plain arrays."""
    trained = kept._trained
    parts: list[tuple[str, tuple[int, ...], list[int], np.ndarray]] = []
    for name, tensor in trained.model.tensors().items():
        if isinstance(tensor, ShardedTensor):
            parts += [
                (name, tuple(tensor.shape), s.metadata.shard_offsets, s.tensor.numpy().copy())
                for s in tensor.local_shards()
            ]
        else:
            parts.append((name, tuple(tensor.shape), [0] * tensor.dim(), tensor.detach().numpy().copy()))
    tensors: dict[str, np.ndarray] = {}
    for name, shape, offsets, values in (part for rank in ranks.gather(parts) for part in rank):
        whole = tensors.setdefault(name, np.full(shape, np.nan, values.dtype))
        whole[tuple(slice(o, o + n) for o, n in zip(offsets, values.shape, strict=True))] = values
    totals = ranks.gather(trained.evaluation.totals())
    partitions = {p: v for part in ranks.gather(trained.state.partitions) for p, v in part.items()}
    return {
        "tensors": tensors,
        "metrics": {name: np.sum([t[name] for t in totals], axis=0) for name in totals[0]},
        "partitions": {p: msgspec.to_builtins(partitions[p]) for p in sorted(partitions)},
        "step": trained.state.step,
    }


def run(case: dict[str, str], root: Path, *, phase: str, ranks: Ranks) -> dict[str, Any]:
    config = case_config(case, root)
    trained = app._new(app.Rank(config, ranks))
    origin = Origin("batches", "x", 2, str(batch_schema(config).digest()))
    kept = Keeper(trained, config=config, origin=origin, ranks=ranks, hook=lambda _: None)
    kept.restore()
    loaded = state_of(kept, ranks)
    first = trained.state.partitions[ranks.rank].position if ranks.rank in trained.state.partitions else 0
    spoiled = case.get("spoiled") == phase and ranks.rank == 1
    stop = threading.Event()
    fed = batches(config, phase=phase, partition=ranks.rank, first=first, spoiled=spoiled)
    loop = TrainingLoop(
        trained,
        feed=cast(Feed, MadeFeed(fed, stop)),
        keeper=kept,
        board=Board(["click", "buy"]),
        schedule=Schedule(config.trainer, orders=None),
        rules=StepRules(
            dummy_batch(group_specs(config.features, config.trainer.model), num_labels=2),
            FULL_BATCH,
            label_weights=torch.ones(2),
        ),
        stop=stop,
    )
    error = ""
    try:
        loop.run()
    except (NonFiniteLoss, OtherRankFailed) as failure:
        error = f"{type(failure).__name__}: {failure}"
    final = state_of(kept, ranks)
    kept.release()
    return {"loaded": loaded, "final": final, "errors": ranks.gather(error), "taken_over": kept.taken_over}


def spoiled_writers(root: Path, *, ranks: Ranks) -> dict[str, Any]:
    """Three cuts in the background; rank 0 fails before the first, rank 1 before the second."""
    store = CutStore(str(root), keep=2, ranks=ranks.apart())
    writer, told = CutWriter(store, staging=Staging(ranks)), []

    def before(spoiler: int) -> None:
        if ranks.rank == spoiler:
            raise RuntimeError("no more descriptors")

    for step, spoiler in ((1, 0), (2, 1), (3, 9)):
        writer.begin(
            {"a": torch.full((2,), float(step))},
            record=msgspec.structs.replace(record(step), world_size=2),
            arrays={"step": np.array([step])},
            before=partial(before, spoiler),
            started_s=time.monotonic(),
        )
        writer.wait()
        told += [str(written.error) if written.error else written.name for written in writer.ended()]
    given = {"a": torch.zeros(2)}
    loaded = store.load(given)
    assert loaded is not None
    return {"told": ranks.gather(told), "a": given["a"].tolist(), "steps": [int(a["step"][0]) for a in loaded.arrays]}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder, phase = Path(sys.argv[1]), sys.argv[2]
    ranks = join()
    for number, case in enumerate(json.loads((folder / "cases.json").read_text())):
        done = run(case, folder / str(number), phase=phase, ranks=ranks)
        if ranks.rank == 0:
            (folder / f"{number}-{phase}.pickle").write_bytes(pickle.dumps(done))
    if ranks.world_size == 2:
        told = spoiled_writers(folder / f"spoiled-{phase}", ranks=ranks)
        if ranks.rank == 0:
            (folder / f"spoiled-{phase}.json").write_text(json.dumps(told))
    leave()
