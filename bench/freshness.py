"""How old is what the servers score with: event to weights, weights to server, under a steady stream.

    python -m bench.freshness [--seconds 60] [--rate 1000] [--rows 500000] [--table-mb 1024] [--skip-table]

The whole system (`recd demo`: Kafka, Redis, workers, trainer, server, score requests) runs once as it is, with versions
as deltas and announced, and once with every version full and servers that poll: the baseline. Then a server alone, with
one table of `--table-mb`: what a delta of some rows costs it, in CPU time, against a full version. The closing line is
JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import rich
import torch
from rich.table import Table

from serving.buffers import Buffers
from stream.config import Config
from trainer.model import GroupedDLRM
from trainer.versions import Snapshot, TableShard, VersionStore, weights_of

BIG_TABLES = ("user_id", "history", "item_id")
VARIANTS = {
    "deltas": (),
    # Below any delta's weight, so that each version is a full one.
    "full": ("trainer.full_share=0.000000001", "trainer.announce=false"),
}
TOUCHED = (1_000, 10_000, 100_000)
DIM = 64
ROUNDS = 5
MIB = 1 << 20


def run_demo(name: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The report of one run of the whole system."""
    report = folder / f"{name}.json"
    rows = tuple(f"trainer.model.tables.{table}.rows={args.rows}" for table in BIG_TABLES)
    sets = [part for value in (*VARIANTS[name], *rows) for part in ("--set", value)]
    timing = ["--seconds", str(args.seconds), "--rate", str(args.rate), "--workers", "1"]
    command = [sys.executable, "-m", "recd", "demo", *timing, "--dir", str(folder / name), "--json", str(report), *sets]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not report.exists():
        output = f"{done.stdout[-3000:]}{done.stderr[-3000:]}"
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{output}")
    result: dict[str, Any] = json.loads(report.read_text())
    return result


def one_table(megabytes: int) -> Config:
    """A model with one large table."""
    rows = megabytes * MIB // (4 * DIM)
    config = {
        "features": [{"name": "item", "group": "item", "type": "int", "required": True}],
        "trainer": {"model": {"dim": DIM, "default_table": {"rows": rows}}},
    }
    return msgspec.convert(config, Config)


def whole(config: Config) -> Snapshot:
    """Its first version, full."""
    model = GroupedDLRM(config.features, labels=config.labels, config=config.trainer.model)
    tables, dense = weights_of(model)
    shards = [TableShard(name, *weights.shape, 0, 0, weights) for name, weights in tables.items()]
    parts = {"features": config.features, "labels": config.labels, "model": config.trainer.model}
    shown: dict[str, Any] = msgspec.to_builtins(parts, str_keys=True)
    return Snapshot(0, 0, 0, 0, dense, shards, shown, "bench")


def rows_of(full: Snapshot, *, count: int, base: int, seed: int) -> Snapshot:
    """A delta of `count` rows."""
    [shard] = full.shards
    ids = np.sort(np.random.default_rng(seed).choice(shard.rows, count, replace=False))
    part = TableShard(shard.table, shard.rows, shard.dim, 0, 0, shard.weights[ids] + np.float32(seed), ids)
    return Snapshot(0, 0, 0, 0, full.dense, [part], full.config, "bench", base)


def spent(work: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds of CPU and of wall time."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return 1000 * (time.process_time() - cpu), 1000 * (time.perf_counter() - wall)


def measure_table(megabytes: int, folder: Path) -> dict[str, Any]:
    """What a server pays for a full version, for the first delta after it, and for each further one."""
    store = VersionStore(str(folder / "versions"), keep=1000)
    full = whole(one_table(megabytes))
    number = store.publish(full)
    size = store.manifest(number).size
    buffers = Buffers(store)
    result: dict[str, Any] = {"table_mb": megabytes, "full_bytes": size}
    result["full_ms"] = spent(lambda: buffers.take(number))[0]
    number = store.publish(rows_of(full, count=TOUCHED[0], base=number, seed=1))
    result["first_delta_ms"] = spent(lambda: buffers.take(number))[0]
    for count in TOUCHED:
        times = []
        for seed in range(ROUNDS):
            number = store.publish(rows_of(full, count=count, base=number, seed=seed))
            times.append(spent(lambda: buffers.take(number))[0])  # noqa: B023 - called at once
        delta = store.manifest(number).size
        result[f"delta_{count}_ms"] = float(np.median(times))
        result[f"delta_{count}_share"] = delta / size
    result["copies"] = buffers.copies
    return {name: round(value, 5) if isinstance(value, float) else value for name, value in result.items()}


def show_system(reports: dict[str, dict[str, Any]]) -> None:
    """For people."""
    shown = Table("", "weights → server p50", "p95", "p99 ms", "event → weights p50", "p95", "p99 ms", "versions")
    for name, report in reports.items():
        spans = [report[key] for key in ("weights_to_server_ms", "event_to_weights_ms")]
        cells = [span[p] for span in spans for p in ("p50", "p95", "p99")]
        shown.add_row(name, *(f"{cell:,.0f}" for cell in cells), str(report["versions"]["published"]))
    rich.print(shown)


def show_table(table: dict[str, Any]) -> None:
    """For people."""
    costs = Table(f"server, {table['table_mb']} MB table", "CPU ms", "bytes of full")
    costs.add_row("full version", f"{table['full_ms']:,.1f}", "1")
    costs.add_row("first delta after it (copies the table)", f"{table['first_delta_ms']:,.1f}", "")
    for count in TOUCHED:
        share = f"{table[f'delta_{count}_share']:.5f}"
        costs.add_row(f"delta of {count:,} rows", f"{table[f'delta_{count}_ms']:,.1f}", share)
    rich.print(costs)


def main() -> None:
    """Run, print the tables and the closing line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rate", type=float, default=1000)
    parser.add_argument("--rows", type=int, default=500_000, help="of each of the three large tables")
    parser.add_argument("--table-mb", type=int, default=1024)
    parser.add_argument("--skip-table", action="store_true")
    parser.add_argument("--skip-system", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reports = {} if args.skip_system else {variant: run_demo(variant, args, folder) for variant in VARIANTS}
        table = {} if args.skip_table else measure_table(args.table_mb, folder)
    if reports:
        show_system(reports)
    if table:
        show_table(table)
    keys = ("weights_to_server_ms", "event_to_weights_ms", "versions")
    closing = {"bench": "freshness", "seconds": args.seconds, "rate": args.rate, "rows": args.rows}
    if reports:
        closing |= {key: reports["deltas"][key] for key in keys}
        closing["baseline_full"] = {key: reports["full"][key] for key in keys}
    closing |= {"table": table, "python": platform.python_version(), "torch": torch.__version__, "cpus": os.cpu_count()}
    print(json.dumps(closing))


if __name__ == "__main__":
    main()
