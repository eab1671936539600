"""How much of what can be learned is learned, how fast after a drift, and on real events against simple baselines.

    python -m bench.learning [--samples 60000] [--plots docs/learning] [--set trainer.model.dim=32 ...]

In one process and without Kafka: events through the partition's own pipeline and builder into batches, batches through
the trainer's own model, optimizers, evaluation and guards; every sample is predicted before it is trained. Three runs:
traffic of preset `demo`, whose tastes turn all the time; the same with tastes that stand still and jump once by a
quarter turn, after which nothing of the old ones is left; and deskdrop's real events (../shared/data, left out where
they are not there). Beside the trainer: the probabilities that the traffic was drawn from (best), the rate of positives
so far (base), the model frozen after a quarter of the samples, and each item's rate so far (popularity).

`learned` is (base - NE) / (base - best). Plots need matplotlib, which is no dependency: `uv pip install matplotlib`.
The closing line is JSON; its plain keys are those of the first run's click.
"""

from __future__ import annotations

import argparse
import copy
import csv
import gzip
import itertools
import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import rich
import torch
from rich.table import Table
from torch.nn.functional import binary_cross_entropy_with_logits

from bench.learning_plots import draw
from dedup_cache import Batch, MemoryStore, NearCache, decode
from recd.presets import preset_path
from stream.builder import BatchBuilder, BatchLimits
from stream.columns import batch_schema
from stream.compiled import warm
from stream.config import Config, load
from stream.event_json import EventRenderer
from stream.generator import DENSITY, GeneratorOptions, world_options
from stream.indexer import Indexer, ReferencePolicy
from stream.pipeline import PartitionPipeline, PipelineConfig
from stream.records import CommitPoint, RecordBlock, SampleBlock
from stream.transforms import Transforms
from stream.world import World
from trainer.alarms import Alarm, Place
from trainer.evaluation import Evaluation
from trainer.guards import Guards, Sight
from trainer.ikjt import TrainBatch, to_train_batch
from trainer.metrics import LabelMetrics, compute, compute_segments, cross_entropy, normalised_entropy
from trainer.model import GroupedDLRM
from trainer.ranks import Ranks, join, leave
from trainer.segments import Marker
from trainer.sharding import ShardedModel

START_MS = 1_700_000_000_000
BLOCK = 5_000
FREEZE_AT = 0.25
BATCH = "batch.max_samples=128"
"""As large as max_wait_ms makes them at 1,500 events/s and four partitions."""
POINTS = 60
"""Of a curve."""
POPULARITY_PRIOR = 20.0
"""Impressions at the common rate that each item begins with."""
DESKDROP = Path("../shared/data/deskdrop/interactions.csv.gz")
KINDS = ("model", "base", "best", "frozen", "popularity")


class JumpingWorld(World):
    """Tastes stand still, and jump by a quarter turn at `jump_ms`."""

    jump_ms = 0

    def _preference(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        now_ms, period_ms = self._now_ms, self.options.drift_period_ms
        self._now_ms = period_ms // 4 if now_ms >= self.jump_ms else 0
        try:
            return super()._preference(users, items)
        finally:
            self._now_ms = now_ms


@dataclass
class Run:
    """What one run gave, for the first label; curves in nats a sample, point by point."""

    name: str
    samples: int
    curves: dict[str, list[float]] = field(default_factory=dict)
    """NE of each kind, of a stretch of samples a point."""
    ends: list[int] = field(default_factory=list)
    """Samples at the end of each point."""
    ne: dict[str, float] = field(default_factory=dict)
    later: dict[str, float] = field(default_factory=dict)
    """NE after the freeze."""
    segments: dict[str, LabelMetrics] = field(default_factory=dict)
    metrics: list[LabelMetrics] = field(default_factory=list)
    alarms: list[Alarm] = field(default_factory=list)
    jump: int | None = None
    """Samples before the jump."""
    popularity_auc: float | None = None
    cpu_s: float = 0.0


def records(config: Config, *, events: int, jump: float | None) -> Iterator[RecordBlock]:
    """Generated events in order of time, block by block."""
    options = world_options(GeneratorOptions(max_events=events), session_gap_ms=config.session.gap_ms)
    world = World(options) if jump is None else JumpingWorld(options)
    if isinstance(world, JumpingWorld):
        world.jump_ms = int(jump_time_ms(events, jump or 0.0, per_second=options.events_per_second))
    renderer = EventRenderer(config.events, world=world, run="bench")
    sent = 0
    while sent < events:
        window = world.next_window()
        values: list[bytes | None] = list(renderer.render(window, start_ms=START_MS))
        times = window.events["time_ms"] + START_MS
        keys: list[bytes | None] = [str(user).encode() for user in window.events["user"].tolist()]
        yield RecordBlock(0, np.arange(sent, sent + len(values)), times.astype(np.int64), keys, values)
        sent += len(values)


def jump_time_ms(events: int, share: float, *, per_second: float) -> float:
    """When so large a share of the events has happened."""
    return 1000 * share * events / per_second


def deskdrop_records(path: Path) -> Iterator[RecordBlock]:
    """The file's rows as records of preset `deskdrop`."""
    with gzip.open(path, "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    for begin in range(0, len(rows), BLOCK):
        part = rows[begin : begin + BLOCK]
        values: list[bytes | None] = [
            json.dumps({**row, "row": begin + i, "timestamp": int(row["timestamp"])}).encode()
            for i, row in enumerate(part)
        ]
        times = np.array([int(row["timestamp"]) * 1000 for row in part])
        keys: list[bytes | None] = [row["person_id"].encode() for row in part]
        yield RecordBlock(0, np.arange(begin, begin + len(part)), times, keys, values)


def batches(config: Config, blocks: Iterator[RecordBlock]) -> Iterator[Batch]:
    """Whole batches, every row inline."""
    pipeline = PartitionPipeline(PipelineConfig.of(config), partition=0, start=CommitPoint(0))
    schema = batch_schema(config)
    policy = ReferencePolicy(config.batch.max_bytes, config.batch.max_bytes)
    builder = BatchBuilder(
        schema,
        topic="interactions",
        partition=0,
        seq=0,
        limits=BatchLimits(config.batch.max_samples, config.batch.max_bytes),
        indexer=Indexer(schema, store=NearCache(MemoryStore()), policy=policy),
        transforms=Transforms(config.features, config.derived),
    )

    def samples() -> Iterator[SampleBlock]:
        for block in blocks:
            if (made := pipeline.feed(block).samples) is not None:
                yield made
        if (made := pipeline.advance(pipeline.close_all_watermark_ms()).samples) is not None:
            yield made

    for block in samples():
        for built in builder.add(block, now_ms=START_MS).batches:
            yield decode(built.payload, schema)


class Judge:
    """Sums of each kind's entropy, batch by batch."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self._positive, self._weight = 1.0, 2.0
        self._items: dict[int, list[float]] = {}
        self.popular: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, batch: Batch, items: np.ndarray, *, model: np.ndarray, frozen: np.ndarray | None) -> None:
        """`items` [B] buckets, predictions [B] of the first label."""
        labels = batch.labels[:, 0].astype(np.float64)
        rate = self._positive / self._weight
        popular = np.array([self._popularity(item, rate) for item in items.tolist()])
        row = {"samples": float(len(labels)), "positive": float(labels.sum())}
        kinds = {"model": model, "base": np.full(len(labels), rate), "popularity": popular}
        if np.isfinite(batch.scores[:, 0]).all():
            kinds["best"] = batch.scores[:, 0]
        if frozen is not None:
            kinds["frozen"] = frozen
        row |= {kind: float(cross_entropy(p.astype(np.float64), labels=labels).sum()) for kind, p in kinds.items()}
        self.rows.append(row)
        self.popular.append((popular, labels))
        self._positive, self._weight = self._positive + labels.sum(), self._weight + len(labels)
        for item, label in zip(items.tolist(), labels.tolist(), strict=True):
            seen = self._items.setdefault(item, [0.0, 0.0])
            seen[0], seen[1] = seen[0] + label, seen[1] + 1

    def ne(self, kind: str, *, first: int = 0, end: int | None = None) -> float | None:
        """NE of the batches from `first` to `end` that have this kind."""
        rows = [row for row in self.rows[first:end] if kind in row]
        samples, positive = (sum(row[name] for row in rows) for name in ("samples", "positive"))
        return normalised_entropy(entropy=sum(row[kind] for row in rows), weight=samples, positive=positive)

    def _popularity(self, item: int, rate: float) -> float:
        positive, count = self._items.get(item, (0.0, 0.0))
        return (positive + POPULARITY_PRIOR * rate) / (count + POPULARITY_PRIOR)


def learn(name: str, config: Config, made: list[Batch], *, ranks: Ranks) -> Run:
    """Predict and train every batch once."""
    torch.manual_seed(config.trainer.seed)
    began = time.process_time()
    network = _network(config, device="meta")
    model = ShardedModel(network, config=config.trainer.model, optimizer=config.trainer.optimizer, ranks=ranks)
    model.fill_tables(seed=config.trainer.seed)
    evaluation, marker = Evaluation(len(config.labels)), Marker.of(config)
    guards = Guards(config.trainer.guards, labels=[label.name for label in config.labels])
    judge, run = Judge(), Run(name, sum(batch.num_samples for batch in made))
    freeze = int(FREEZE_AT * len(made))
    frozen: torch.nn.Module | None = None
    for number, batch in enumerate(made):
        if number == freeze:
            frozen = _frozen(config, model)
        tensors = to_train_batch(batch, specs=network.specs, dedup=True)
        logits = model(tensors)
        predictions = torch.sigmoid(logits.detach()).numpy()
        marks = marker.mark(batch)
        place = Place(0, number, number + 1)
        sight = Sight(place, predictions, batch.labels, batch.weights, users=marks.users)
        run.alarms += guards.look(sight)
        evaluation.add(predictions, labels=batch.labels, weights=batch.weights, scores=batch.scores, marks=marks)
        still = None if frozen is None else _predict(frozen, tensors)[:, 0]
        items = marks.items if marks.items is not None else np.zeros(batch.num_samples, np.int64)
        judge.add(batch, items, model=predictions[:, 0], frozen=still)
        losses = binary_cross_entropy_with_logits(logits, tensors.labels, reduction="none")
        model.update((losses * tensors.weights[:, None]).sum() / config.batch.max_samples)
    _fill(run, judge, freeze=freeze)
    run.metrics = compute(evaluation.state())
    run.segments = {segment: of[0] for segment, of in compute_segments(evaluation.state()).items()}
    run.cpu_s = time.process_time() - began
    return run


def _network(config: Config, *, device: str) -> GroupedDLRM:
    return GroupedDLRM(
        config.features,
        labels=config.labels,
        config=config.trainer.model,
        derived=config.derived,
        device=torch.device(device),
    )


def _frozen(config: Config, model: ShardedModel) -> torch.nn.Module:
    """A copy of the model as it is now."""
    copied = _network(config, device="cpu")
    state = {
        key: value if torch.is_tensor(value) and not hasattr(value, "local_shards") else value.local_shards()[0].tensor
        for key, value in model.module.state_dict().items()
    }
    copied.load_state_dict(copy.deepcopy(state))
    return copied


def _predict(model: torch.nn.Module, tensors: TrainBatch) -> np.ndarray:
    with torch.inference_mode():
        predictions: np.ndarray = torch.sigmoid(model(tensors)).numpy()
    return predictions


def _fill(run: Run, judge: Judge, *, freeze: int) -> None:
    count = len(judge.rows)
    edges = sorted({round(i * count / POINTS) for i in range(POINTS + 1)})
    done = np.cumsum([row["samples"] for row in judge.rows])
    run.ends = [int(done[end - 1]) for end in edges[1:]]
    for kind in KINDS:
        if (ne := judge.ne(kind)) is None:
            continue
        run.ne[kind] = ne
        run.later[kind] = judge.ne(kind, first=freeze) or float("nan")
        stretches = list(itertools.pairwise(edges))
        run.curves[kind] = [judge.ne(kind, first=first, end=end) or float("nan") for first, end in stretches]
    predictions, labels = (np.concatenate(column) for column in zip(*judge.popular, strict=True))
    evaluation = Evaluation(1)
    column = labels[:, None]
    evaluation.add(predictions[:, None], labels=column, weights=np.ones(len(labels)), scores=column * np.nan)
    run.popularity_auc = compute(evaluation.state())[0].auc


def learned(ne: dict[str, float]) -> float:
    """The share of what can be learned."""
    return (ne["base"] - ne["model"]) / (ne["base"] - ne["best"])


def learned_curve(run: Run, kind: str = "model") -> np.ndarray:
    """The share learned, point by point; NaN where the kind has no value."""
    base, best, ne = (np.array(run.curves[k]) for k in ("base", "best", kind))
    share: np.ndarray = (base - ne) / (base - best)
    return share


def recovery_samples(run: Run, *, share: float = 0.9) -> int | None:
    """Samples after the jump until `share` of what was learned before it is learned again; None if never."""
    if run.jump is None:
        return None
    curve, ends = learned_curve(run), np.array(run.ends)
    before = curve[(ends <= run.jump) & (ends > 0.6 * run.jump)].mean()
    for end, value in zip(ends.tolist(), curve.tolist(), strict=True):
        if end > run.jump + 2 * run.samples / POINTS and value >= share * before:
            return int(end - run.jump)
    return None


def table(runs: list[Run]) -> Table:
    """For people."""
    shown = Table("run", "samples", *(f"NE {kind}" for kind in KINDS), "learned", "AUC", "calibration", "alarms")
    for run in runs:
        share = f"{learned(run.ne):.0%}, later {learned(run.later):.0%}" if "best" in run.ne else "-"
        first = run.metrics[0]
        numbers = [f"{run.ne[kind]:.4f}" if kind in run.ne else "-" for kind in KINDS]
        shown.add_row(
            run.name, f"{run.samples:,}", *numbers, share, f"{first.auc:.4f}", f"{first.calibration:.3f}",
            str(len(run.alarms)),
        )  # fmt: skip
    return shown


def closing(runs: dict[str, Run], *, command: str) -> dict[str, object]:
    """The last line."""
    facts: dict[str, object] = {"bench": "learning"}
    if (first := runs.get("demo")) is not None:
        facts |= {
            "learned": round(learned(first.ne), 4),
            "learned_after_freeze": round(learned(first.later), 4),
            **{f"ne_{kind}" if kind != "model" else "ne": round(value, 4) for kind, value in first.ne.items()},
            "ne_after_freeze": round(first.later["model"], 4),
            "segments": {name: {"ne": of.ne, "auc": of.auc} for name, of in first.segments.items()},
        }
    if (jumped := runs.get("jump")) is not None:
        facts["recovery_samples"] = recovery_samples(jumped)
    if (real := runs.get("deskdrop")) is not None:
        nes = {kind: round(value, 4) for kind, value in real.ne.items()}
        facts["deskdrop"] = nes | {"auc": real.metrics[0].auc, "auc_popularity": real.popularity_auc}
    facts["alarms"] = {name: len(run.alarms) for name, run in runs.items()}
    facts["cpu_s"] = {name: round(run.cpu_s, 1) for name, run in runs.items()}
    versions = {"torch": torch.__version__, "python": platform.python_version(), "cpus": os.cpu_count()}
    return facts | {"command": command} | versions


def main() -> None:
    """Run, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--samples", type=int, default=60_000)
    parser.add_argument("--plots", type=Path, default=Path("docs/learning"))
    parser.add_argument("--only", choices=("demo", "jump", "deskdrop"), action="append")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    warm.compile_now()
    ranks, runs = join(), {}
    events = int(args.samples * 1.26)
    for name in args.only or ("demo", "jump", "deskdrop"):
        preset = "deskdrop" if name == "deskdrop" else "demo"
        config = load(preset_path(preset), overrides=(BATCH, *args.overrides))
        if name == "deskdrop" and not DESKDROP.exists():
            print(f"deskdrop is left out: {DESKDROP} is not there")
            continue
        jump = 0.6 if name == "jump" else None
        blocks = deskdrop_records(DESKDROP) if name == "deskdrop" else records(config, events=events, jump=jump)
        made = list(batches(config, blocks))
        runs[name] = learn(name, config, made, ranks=ranks)
        if jump is not None:
            at_ms = START_MS + jump_time_ms(events, jump, per_second=DENSITY)
            runs[name].jump = sum(int((batch.event_times_ms < at_ms).sum()) for batch in made)
        rich.print(table([runs[name]]))
    leave()
    rich.print(table(list(runs.values())))
    draw(runs, args.plots)
    print(json.dumps(closing(runs, command=" ".join(["python -m bench.learning", *sys.argv[1:]]))))


if __name__ == "__main__":
    main()
