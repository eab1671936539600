"""Training with deduplication on against off, in samples per second, on the samples of the `recd` preset.

    python -m bench.train [--seconds 9] [--samples 1024] [--dim 64] [--blocks 1] [--rounds 3] [--steps 4]

Generated traffic (16.5 samples a session, whole sessions, the middle of the stretch) through the real pipeline and
builder; a step is what the trainer does with one record of `batches`: decode, tensors, forward, backward with the
fused row-wise AdaGrad, dense Adam. Two models: all lists summed, and `history` (up to 60 items) pooled by a
transformer. Every group's vectors are mixed into two before groups meet, so that lookups and list pooling are
most of a step without deduplication, as in RecD's models (arXiv 2211.05239); the breakdown shows by how much.

`off` is trainer.dedup false; `o5`, `o6`, `o7` switch RecD's steps on one after the other, the last one is what the
trainer does (grouped); `vbe` is TorchRec's own deduplication; `plain` a DLRM of nn.EmbeddingBag in torch alone
(bench/plain_dlrm.py). One rank, one thread. Variants take turns step by step; a figure is the median of the steps.
Lookups and exchange are timed inside the forward pass; their backward, and with it the tables' update, is in
`backward`. Ratios are of CPU time; the table has those of wall time too.
The closing line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any

import fbgemm_gpu
import numpy as np
import rich
import torch
import torchrec
from msgspec.structs import replace
from rich.table import Table
from torch.nn.functional import binary_cross_entropy_with_logits

from bench.bytes import generated, samples_of
from bench.pipeline import START_MS
from bench.plain_dlrm import PlainDLRM
from dedup_cache import MemoryStore, NearCache, decode
from recd.presets import preset_path
from stream.builder import BatchBuilder, BatchLimits, slice_samples
from stream.columns import batch_schema
from stream.compiled import warm
from stream.config import Config, DistinctConfig, InteractionConfig, SequenceConfig, load
from stream.indexer import Indexer, ReferencePolicy
from stream.transforms import Transforms
from trainer.ikjt import TrainBatch, group_specs, to_train_batch
from trainer.model import GroupedDLRM
from trainer.ranks import Ranks, join, leave
from trainer.sharding import ShardedModel

SEQUENCE, LONGEST = "history", 60
MIXED = 2
MODELS = ("sum", "sequence")
PARTS = ("decode", "tensors", "lookup", "exchange", "dense", "backward", "optimizer")
OFF = DistinctConfig(lookups="off", jagged_select=False, layers=False)
ABLATION = {
    "o5": DistinctConfig(lookups="grouped", jagged_select=False, layers=False),
    "o6": DistinctConfig(lookups="grouped", jagged_select=True, layers=False),
    "o7": DistinctConfig(),
}
Step = Callable[[TrainBatch], float]


@dataclass
class Laps:
    """CPU and wall seconds by part, since the last `start`."""

    cpu_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    wall_s: float = 0.0
    _last: float = 0.0
    _began: float = 0.0

    def start(self) -> None:
        """Forget, and begin."""
        self.cpu_s, self._last, self._began = dict.fromkeys(PARTS, 0.0), time.process_time(), time.perf_counter()

    def lap(self, part: str) -> None:
        """What was done since the last lap belongs to `part`."""
        now = time.process_time()
        self.cpu_s[part] += now - self._last
        self._last = now

    def stop(self) -> None:
        """The end of the last lap."""
        self.wall_s = time.perf_counter() - self._began


class Variant:
    """A model that trains, with its times: one entry a step."""

    def __init__(self, config: Config, *, ranks: Ranks, plain: str | None = None, sequence: bool = False) -> None:
        self._schema, self._trainer = batch_schema(config), config.trainer
        self._specs = group_specs(config.features, config.trainer.model)
        self._laps = Laps()
        self.steps: list[Laps] = []
        self.losses: list[float] = []
        torch.manual_seed(0)
        self._step = self._plain(config, sequence) if plain else self._sharded(config, ranks)

    def train(self, payload: bytes) -> None:
        """One step."""
        laps, trainer = self._laps, self._trainer
        laps.start()
        batch = decode(payload, self._schema)
        laps.lap("decode")
        expand_ids = trainer.distinct.lookups == "off"
        tensors = to_train_batch(batch, specs=self._specs, dedup=trainer.dedup, expand_ids=expand_ids)
        laps.lap("tensors")
        self.losses.append(self._step(tensors))
        laps.stop()
        self.steps.append(Laps(dict(laps.cpu_s), laps.wall_s))

    def _sharded(self, config: Config, ranks: Ranks) -> Step:
        trainer = config.trainer
        meta = torch.device("meta")
        model = GroupedDLRM(
            config.features, labels=config.labels, config=trainer.model, distinct=trainer.distinct, device=meta
        )
        sharded = ShardedModel(model, config=trainer.model, optimizer=trainer.optimizer, ranks=ranks)
        sharded.fill_tables(seed=0)
        for name, module in sharded.module.named_modules():
            if name.endswith((".bags", ".sequences")):
                module.register_forward_pre_hook(lambda *_: self._laps.lap("dense"))
                module.register_forward_hook(lambda *_: self._laps.lap("exchange"))
                for lookup in module._lookups:  # noqa: SLF001 - where the exchange ends
                    lookup.register_forward_pre_hook(lambda *_: self._laps.lap("exchange"))
                    lookup.register_forward_hook(lambda *_: self._laps.lap("lookup"))
        optimizers = list(sharded._optimizers.values())  # noqa: SLF001 - to time them by themselves
        return lambda batch: self._learn(sharded, batch, optimizers)

    def _plain(self, config: Config, sequence: bool) -> Step:
        model = PlainDLRM(config, sequence=SEQUENCE if sequence else None, length=LONGEST)
        optimizers = model.optimizers(config)
        return lambda batch: self._learn(model, batch, optimizers)

    def _learn(self, model: Callable[[TrainBatch], torch.Tensor], batch: TrainBatch, optimizers: list[Any]) -> float:
        laps = self._laps
        losses = binary_cross_entropy_with_logits(model(batch), batch.labels, reduction="none")
        loss = (losses * batch.weights[:, None]).sum() / len(losses)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        laps.lap("dense")
        loss.backward()
        laps.lap("backward")
        for optimizer in optimizers:
            optimizer.step()
        laps.lap("optimizer")
        return float(loss.detach())

    def cpu_us(self, part: str = "", *, samples: int) -> float:
        """Median of the steps, a sample."""
        return 1e6 * median(s.cpu_s[part] if part else sum(s.cpu_s.values()) for s in self.steps) / samples

    def wall_us(self, *, samples: int) -> float:
        """Median of the steps, a sample."""
        return 1e6 * median(s.wall_s for s in self.steps) / samples


def make_payloads(config: Config, *, seconds: float, count: int) -> list[bytes]:
    """Records of `batches` from the middle of a stretch of traffic."""
    block, size = samples_of(config, generated(config, seconds=seconds)).block, config.batch.max_samples
    schema = batch_schema(config)
    policy = ReferencePolicy(config.dedup.inline_bytes, config.batch.max_bytes)
    indexer = Indexer(schema, store=NearCache(MemoryStore()), policy=policy)
    builder = BatchBuilder(
        schema,
        topic="interactions",
        partition=0,
        seq=0,
        limits=BatchLimits(size, 1 << 30),
        indexer=indexer,
        transforms=Transforms(config.features, config.derived),
    )
    first = max(0, (block.num_samples // size - count) // 2)
    if block.num_samples < (first + count) * size:
        raise SystemExit(f"{block.num_samples} samples are fewer than {count} batches of {size}: raise --seconds")
    payloads = []
    for at in range(first * size, (first + count) * size, size):
        built = builder.add(slice_samples(block, at, at + size), now_ms=START_MS).batches
        payloads += [one.payload for one in [*built, *builder.flush(now_ms=START_MS)]]
    return payloads


def configured(base: Config, *, dim: int, blocks: int, distinct: DistinctConfig, dedup: bool) -> Config:
    """The preset's features with the bench's model; no `blocks`: every list is summed."""
    tables = {
        name: replace(table, pooling="transformer" if blocks and name == SEQUENCE else "sum", sharding=("table_wise",))
        for name, table in base.trainer.model.tables.items()
    }
    mixed = InteractionConfig(vectors=MIXED)
    model = replace(
        base.trainer.model, dim=dim, tables=tables, interaction=mixed, sequence=SequenceConfig(layers=max(1, blocks))
    )
    return replace(base, trainer=replace(base.trainer, model=model, distinct=distinct, dedup=dedup))


def make_variants(base: Config, *, dim: int, blocks: int, ranks: Ranks) -> dict[str, Variant]:
    """By name, in the order of the table."""

    def variant(distinct: DistinctConfig, *, dedup: bool = True, plain: str | None = None) -> Variant:
        config = configured(base, dim=dim, blocks=blocks, distinct=distinct, dedup=dedup)
        return Variant(config, ranks=ranks, plain=plain, sequence=bool(blocks))

    made = {"plain": variant(OFF, dedup=False, plain="torch"), "off": variant(OFF, dedup=False)}
    if not blocks:
        made["vbe"] = variant(DistinctConfig(lookups="vbe"))
    return made | {name: variant(distinct) for name, distinct in ABLATION.items()}


def run(variants: dict[str, Variant], payloads: list[bytes], *, rounds: int) -> None:
    """All variants in turns; the first batch warms up. Those of the trainer must have lost the same."""
    for payload in payloads[:1] + payloads[1:] * rounds:
        for variant in variants.values():
            variant.train(payload)
    for name, variant in variants.items():
        variant.steps = variant.steps[1:]
        if name != "plain":
            np.testing.assert_allclose(variant.losses, variants["off"].losses, atol=1e-3, err_msg=name)


def show(variants: dict[str, Variant], *, title: str, samples: int) -> dict[str, dict[str, float]]:
    """The table; CPU and wall microseconds a sample by variant."""
    table = Table("", "samples\n/ CPU-s", "ratio", "wall", *PARTS, title=title)
    base = variants["off"]
    for name, variant in variants.items():
        cpu, wall = variant.cpu_us(samples=samples), variant.wall_us(samples=samples)
        parts = [f"{variant.cpu_us(part, samples=samples):.1f}" for part in PARTS]
        ratios = [f"{base.cpu_us(samples=samples) / cpu:.2f}", f"{base.wall_us(samples=samples) / wall:.2f}"]
        table.add_row(name, f"{1e6 / cpu:,.0f}", *ratios, *parts)
    rich.print(table)
    return {n: {"cpu": v.cpu_us(samples=samples), "wall": v.wall_us(samples=samples)} for n, v in variants.items()}


def closing(figures: dict[str, dict[str, dict[str, float]]]) -> dict[str, float]:
    """Ratios of throughput by model; an ablation step against the one before it."""
    order = ["off", *ABLATION]
    ratios: dict[str, float] = {}
    for model, spent in figures.items():
        end = "_sequence" if model == "sequence" else ""
        cpu, wall = ({name: of[clock] for name, of in spent.items()} for clock in ("cpu", "wall"))
        ratios[f"ratio{end}"] = cpu["off"] / cpu["o7"]
        ratios[f"ratio{end}_wall"] = wall["off"] / wall["o7"]
        ratios[f"ratio{end}_to_plain"] = cpu["plain"] / cpu["o7"]
        ratios |= {f"{step}{end}": cpu[before] / cpu[step] for before, step in pairwise(order)}
        if "vbe" in cpu:
            ratios["ratio_vbe"] = cpu["off"] / cpu["vbe"]
    return {name: round(ratio, 2) for name, ratio in ratios.items()}


def main() -> None:
    """Run, print the tables and the closing line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=9, help="event time in which sessions begin")
    parser.add_argument("--samples", type=int, default=1024, help="samples a batch")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=1, help="transformer blocks over the history")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="batches a round")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    warm.compile_now()
    base = load(preset_path("recd"), overrides=(f"batch.max_samples={args.samples}",))
    payloads = make_payloads(base, seconds=args.seconds, count=args.steps + 1)
    ranks = join()
    figures = {}
    for name in args.models:
        blocks = args.blocks if name == "sequence" else 0
        variants = make_variants(base, dim=args.dim, blocks=blocks, ranks=ranks)
        run(variants, payloads, rounds=args.rounds)
        what = f"{blocks} transformer blocks over history" if blocks else "all lists summed"
        title = f"{what}: µs of CPU a sample"
        figures[name] = show(variants, title=title, samples=args.samples)
    leave()
    versions = {"torch": torch.__version__, "torchrec": torchrec.__version__, "fbgemm": fbgemm_gpu.__version__}
    setting = {"bench": "train", "samples": args.samples, "dim": args.dim, "blocks": args.blocks}
    machine = {"python": platform.python_version(), "cpus": os.cpu_count()}
    print(json.dumps(setting | closing(figures) | versions | machine))


if __name__ == "__main__":
    main()
