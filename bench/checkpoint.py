"""How long training stands still for a cut, and how long going on from it takes, by size of the model.

    python -m bench.checkpoint [--megabytes 10 100 1000] [--rounds 5]

One rank on this machine, two tables with row-wise AdaGrad, no broker: steps are taken between the cuts, as fast as they
come. Three ways to take the same cut, in turns: `waiting`, as a trainer would that writes and waits (the baseline);
`background`, what the trainer does: copy into buffers that are reused, write in a thread, digests, fsync, rename;
`async_save`, torch.distributed.checkpoint's own, tensors alone, without digests or fsync of names. `copy` is that of
as many bytes alone. Stalls are wall time: on a busy machine read the ratios. `slower` is a step while a cut is written,
in times of one that is not; resuming verifies all digests first; `delta` is the size of a version of the rows that 20
steps of 256 samples touch, ids evenly drawn, to that of a full one. Medians of the rounds; the closing line is JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import rich
import torch
from rich.table import Table
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import async_save
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from stream.config import Config, FeatureConfig, ModelConfig, TableConfig, TrainerConfig
from trainer import app
from trainer.ikjt import GroupTensors, TrainBatch
from trainer.keeper import Keeper, Origin
from trainer.ranks import Ranks, join, leave

DIM, BATCH = 64, 256
ROW_BYTES = 2 * (DIM + 1) * 4
"""Of both tables, with AdaGrad's number of each row."""
MB = 1_000_000
DELTA_STEPS = 20
WAYS = ("waiting", "background", "async_save", "copy")


@dataclass(frozen=True)
class Figures:
    """Of one size of model; milliseconds."""

    bytes: int
    stalls: dict[str, float]
    written_ms: float
    slower: float | None
    """None where no step fitted into the time of writing."""
    resume_ms: float
    delta_ratio: float
    """Bytes of a version of the rows that DELTA_STEPS touched, over those of a full version."""


class Job:
    """A trainer without a feed."""

    def __init__(self, config: Config, ranks: Ranks) -> None:
        self.trained = app._new(app.Rank(config, ranks))  # noqa: SLF001 - all of a trainer but its feed
        origin = Origin("batches", "bench", 1, "bench")
        self.keeper = Keeper(self.trained, config=config, origin=origin, ranks=ranks, hook=lambda _: None)
        self._rows = config.trainer.model.default_table.rows
        self._rng = np.random.default_rng(0)

    def step(self) -> float:
        """One step on random ids; its milliseconds."""
        batch, began = self._batch(), time.perf_counter()
        logits = self.trained.model(batch)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.labels)
        self.trained.model.update(loss)
        self.trained.state.step += 1
        return (time.perf_counter() - began) * 1e3

    def _batch(self) -> TrainBatch:
        groups = {}
        for name in ("user", "item"):
            values = torch.from_numpy(self._rng.integers(0, self._rows, BATCH))
            ids = KeyedJaggedTensor([name], values, lengths=torch.ones(BATCH, dtype=torch.int32), stride=BATCH)
            groups[name] = GroupTensors(ids, torch.zeros(BATCH, 0), torch.arange(BATCH))
        labels = torch.from_numpy(self._rng.integers(0, 2, (BATCH, 1)).astype(np.float32))
        return TrainBatch(groups, labels, torch.ones(BATCH), torch.full_like(labels, torch.nan))


def config_of(folder: Path, *, megabytes: int) -> Config:
    """A model of so many megabytes of state."""
    model = ModelConfig(dim=DIM, default_table=TableConfig(rows=megabytes * MB // ROW_BYTES), over_arch=(64,))
    urls = {"checkpoint_url": str(folder / "cuts"), "versions_url": str(folder / "versions")}
    features = (FeatureConfig(name="user", group="user"), FeatureConfig(name="item", group="item"))
    # No delta is too large to be one, and nobody is told of it.
    versions = {"full_share": 1.0, "announce": False}
    return Config(features=features, trainer=TrainerConfig(model=model, keep_checkpoints=1, **versions, **urls))


def measure(folder: Path, *, megabytes: int, rounds: int, ranks: Ranks) -> Figures:
    """All ways in turns, then a resume."""
    config = config_of(folder, megabytes=megabytes)
    job = Job(config, ranks)
    keeper = job.keeper
    source = torch.ones(megabytes * MB // 4)
    target = torch.empty_like(source)
    stalls: dict[str, list[float]] = {way: [] for way in WAYS}
    quiet: list[float] = []
    beside: list[float] = []
    written: list[float] = []
    for number in range(rounds + 1):  # the first one makes the buffers
        quiet += [job.step() for _ in range(10)]
        stalls["copy"].append(timed(lambda: target.copy_(source)))
        stalls["waiting"].append(timed(keeper.checkpoint))
        job.step()
        began = time.perf_counter()
        stalls["background"].append(timed(keeper.begin_cut))
        while keeper.cuts.busy:
            took = job.step()
            if keeper.cuts.busy:
                beside.append(took)
        written.append((time.perf_counter() - began) * 1e3)
        keeper.note_cuts()
        if keeper.last_error:
            raise SystemExit(keeper.last_error)
        stalls["async_save"].append(saved_by_torch(job, folder / f"async-{number}", ranks))
    resumed: list[float] = []
    for _ in range(rounds):
        again = Job(config, ranks)
        resumed.append(timed(again.keeper.restore))
        again.keeper.release()
    size = sum(path.stat().st_size for path in (folder / "cuts" / keeper.cut).iterdir())
    found = {way: median(times[1:]) for way, times in stalls.items()}
    slower = median(beside) / median(quiet[10:]) if beside else None
    return Figures(size, found, median(written[1:]), slower, median(resumed), delta_ratio(job))


def delta_ratio(job: Job) -> float:
    """Of a version after some steps on random ids, to the full version before it."""
    releases = job.keeper.releases
    for steps in (0, DELTA_STEPS):
        for _ in range(steps):
            job.step()
        releases.publish(step=job.trained.state.step, samples=0, stream_time_ms=0)
        releases.publisher.wait()
    counts = releases.publisher.counts
    return counts.delta_bytes / counts.full_bytes


def saved_by_torch(job: Job, folder: Path, ranks: Ranks) -> float:
    """Until torch's own asynchronous save lets training go on; NaN where it cannot."""
    began = time.perf_counter()
    tensors = dict(job.trained.model.tensors())
    saving = async_save(tensors, storage_writer=FileSystemWriter(folder), process_group=ranks.control)
    stalled = (time.perf_counter() - began) * 1e3
    cast(Future[Any], saving).result()
    for path in folder.iterdir():
        path.unlink()
    return stalled


def timed(work: Callable[[], object]) -> float:
    """Its milliseconds."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3


def show(figures: dict[int, Figures]) -> None:
    """The table."""
    table = Table("MB", "bytes", *WAYS, "written", "slower", "resume", "delta", title="milliseconds")
    for megabytes, of in figures.items():
        stalls = [f"{of.stalls[way]:,.1f}" for way in WAYS]
        slower = f"{of.slower:.2f}" if of.slower else "-"
        table.add_row(
            str(megabytes),
            f"{of.bytes / MB:,.1f}M",
            *stalls,
            f"{of.written_ms:,.0f}",
            slower,
            f"{of.resume_ms:,.0f}",
            f"{of.delta_ratio:.3f}",
        )
    rich.print(table)


def main() -> None:
    """Run, print the table and the closing line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)  # the planner's
    torch.set_num_threads(1)
    ranks = join()
    figures = {}
    for megabytes in args.megabytes:
        with tempfile.TemporaryDirectory(prefix="recd-bench-") as name:
            figures[megabytes] = measure(Path(name), megabytes=megabytes, rounds=args.rounds, ranks=ranks)
    leave()
    print(f"python -m bench.checkpoint, torch {torch.__version__} on {platform.machine()}, one rank, one thread")
    show(figures)
    line = {
        "stall_ms": {str(mb): round(of.stalls["background"], 1) for mb, of in figures.items()},
        "stall_ms_waiting": {str(mb): round(of.stalls["waiting"], 1) for mb, of in figures.items()},
        "ratio": {str(mb): round(of.stalls["background"] / of.stalls["waiting"], 4) for mb, of in figures.items()},
        "bytes": {str(mb): of.bytes for mb, of in figures.items()},
        "resume_ms": {str(mb): round(of.resume_ms) for mb, of in figures.items()},
        "delta_ratio": {str(mb): round(of.delta_ratio, 4) for mb, of in figures.items()},
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
