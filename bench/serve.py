"""The server under load while a new version arrives every second, with and without dedup of the user's side.

    python -m bench.serve [--candidates 200] [--seconds 5] [--rounds 2] [--connections 8] [--rows 5000]

Two `recd serve` processes with the same versions, one with `serving.dedup: false`; they take turns, the other is halted
meanwhile. The load comes from a process of its own (`bench.serve_load`), the versions from this one. The model is that
of the preset recd, with smaller tables; with `sequence` its users' history (60 items) goes through a transformer block.
Closed loop: so many connections, each asking as soon as it is answered; open loop: requests at random times, at 0.6 of
the closed loop's rate with dedup. `/score` has JSON bodies, v2 the Open Inference Protocol's binary tensors. What is
compared is requests per CPU-second of the server, loading of versions included. The closing line is JSON; a failed
request fails the bench.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any
from urllib.request import urlopen

import msgspec
import numpy as np
import psutil
import torch
from rich.console import Console
from rich.table import Table

from bench.serve_requests import http_requests
from recd.embedded import free_port
from stream.config import Config, TableConfig, load, to_yaml
from trainer.model import GroupedDLRM
from trainer.versions import Snapshot, TableShard, VersionStore

ROOT = Path(__file__).parents[1]
PATIENCE_S = 300.0
OPEN_SHARE = 0.6
NUM_REQUESTS = 32
DEADLINE_MS = 60_000
"""A busy machine makes requests slow, which the latencies say; it should not make them fail."""


@dataclass(frozen=True, slots=True)
class Slice:
    """One stretch of load on one server."""

    answered: int
    failed: int
    rps: float
    p50_ms: float
    p99_ms: float
    versions: int
    server_cpu_s: float
    client_cpu_s: float


class Server:
    """`recd serve` as a process, which only runs while it is measured."""

    def __init__(self, config: Config, folder: Path, *, dedup: bool) -> None:
        self.port = free_port()
        self.log = folder / f"serving-{dedup}.log"
        serving = msgspec.structs.replace(config.serving, port=self.port, dedup=dedup, deadline_ms=DEADLINE_MS)
        path = folder / f"serving-{dedup}.yaml"
        path.write_text(to_yaml(msgspec.structs.replace(config, serving=serving)))
        command = [sys.executable, "-m", "recd", "serve", "--config", str(path)]
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
        self._usage = psutil.Process(self.process.pid)

    def wait_ready(self) -> None:
        """Until it has a version in service."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                with urlopen(f"http://127.0.0.1:{self.port}/ready", timeout=10) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                pass
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server never was ready\n{self.log.read_text()[-2_000:]}")
            time.sleep(0.1)

    def measure(self, requests: Path, *, connections: int, seconds: float, rate: float | None = None) -> Slice:
        """Load for so long; the other server is halted."""
        command = [sys.executable, "-m", "bench.serve_load", str(self.port), str(requests)]
        command += ["--connections", str(connections), "--seconds", str(seconds)]
        command += ["--rate", str(rate)] if rate else []
        before = self._cpu_s()
        made = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
        cpu_s = self._cpu_s() - before
        told = json.loads(made.stdout)
        if told["failed"]:
            raise RuntimeError(f"{told['failed']} requests failed: {told['statuses']}\n{self.log.read_text()[-2_000:]}")
        kept = {name: told[name] for name in ("answered", "failed", "rps", "p50_ms", "p99_ms", "versions")}
        return Slice(**kept, server_cpu_s=cpu_s, client_cpu_s=told["cpu_s"])

    def halt(self) -> None:
        """Stand still."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Run again, with the newest version."""
        self.process.send_signal(signal.SIGCONT)
        self.wait_ready()
        time.sleep(1.0)

    def end(self) -> None:
        """SIGTERM."""
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        self.process.wait(PATIENCE_S)

    def _cpu_s(self) -> float:
        times = self._usage.cpu_times()
        return times.user + times.system


@contextmanager
def versions_every_second(config: Config) -> Iterator[None]:
    """A full version a second, each with other weights."""
    torch.manual_seed(0)
    model = GroupedDLRM(config.features, labels=config.labels, config=config.trainer.model, derived=config.derived)
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    store = VersionStore(config.trainer.versions_url, keep=20)
    store.publish(_snapshot(config, state))
    ended = threading.Event()

    def publish() -> None:
        while not ended.wait(1.0):
            for weights in state.values():
                np.multiply(weights, 1.001, out=weights)
            store.publish(_snapshot(config, state))

    publisher = threading.Thread(target=publish)
    publisher.start()
    try:
        yield
    finally:
        ended.set()
        publisher.join()


def _snapshot(config: Config, state: dict[str, np.ndarray]) -> Snapshot:
    parts = {
        "features": config.features,
        "derived": config.derived,
        "labels": config.labels,
        "model": config.trainer.model,
        "items": "int",
    }
    tables = {key: value for key, value in state.items() if ".t_" in key}
    return Snapshot(
        step=1,
        samples=1,
        stream_time_ms=0,
        weights_ms=time.time_ns() // 10**6,
        dense={key: value for key, value in state.items() if key not in tables},
        shards=[TableShard(key.split(".")[-2], *value.shape, 0, 0, value) for key, value in tables.items()],
        config=msgspec.to_builtins(parts, str_keys=True),
    )


def bench_config(folder: Path, *, sequence: bool, rows: int) -> Config:
    """The preset recd, without a broker, its tables cut to `rows`."""
    config = load(Path(str(files("recd.presets") / "recd.yaml")))
    tables = {name: TableConfig(rows=min(table.rows, rows)) for name, table in config.trainer.model.tables.items()}
    if sequence:
        tables["history"] = TableConfig(rows=rows, dim=32, pooling="transformer")
    model = msgspec.structs.replace(config.trainer.model, tables=tables)
    trainer = msgspec.structs.replace(config.trainer, model=model, versions_url=str(folder / "versions"))
    kafka = msgspec.structs.replace(config.kafka, bootstrap=f"127.0.0.1:{free_port()}")
    return msgspec.structs.replace(config, trainer=trainer, kafka=kafka)


def measure(sequence: bool, args: argparse.Namespace) -> dict[str, list[Slice]]:
    """Slices by what was asked of whom."""
    found: dict[str, list[Slice]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = bench_config(folder, sequence=sequence, rows=args.rows)
        bodies = {kind: folder / kind for kind in ("score", "v2")}
        for kind, path in bodies.items():
            made = http_requests(config, kind=kind, count=NUM_REQUESTS, candidates=args.candidates)
            path.write_bytes(b"".join(len(each).to_bytes(8, "little") + each for each in made))
        with versions_every_second(config):
            servers: dict[bool, Server] = {}
            try:
                for dedup in (True, False):
                    servers[dedup] = Server(config, folder, dedup=dedup)
                    servers[dedup].wait_ready()
                    servers[dedup].halt()
                for _ in range(args.rounds):
                    for dedup, server in servers.items():
                        server.go_on()
                        for kind, path in bodies.items():
                            what = f"{kind}, dedup {'on' if dedup else 'off'}"
                            load_of = {"connections": args.connections, "seconds": args.seconds}
                            server.measure(path, connections=1, seconds=1.0)
                            found.setdefault(f"closed, {what}", []).append(server.measure(path, **load_of))
                            rate = OPEN_SHARE * median(each.rps for each in found[f"closed, {kind}, dedup on"])
                            if dedup:
                                slices = found.setdefault(f"open, {what}", [])
                                slices.append(server.measure(path, **load_of, rate=rate))
                        server.halt()
            finally:
                for server in servers.values():
                    server.end()
    return found


def per_cpu_second(slices: list[Slice]) -> float:
    """Requests per CPU-second of the server."""
    return sum(each.answered for each in slices) / sum(each.server_cpu_s for each in slices)


def show(title: str, found: dict[str, list[Slice]]) -> None:
    """The table of one model."""
    table = Table(
        "load", "requests/s", "per CPU-s", "p50 ms", "p99 ms", "versions", "failed", "client's CPU", title=title
    )
    for what, slices in found.items():
        share = sum(each.client_cpu_s for each in slices) / sum(each.server_cpu_s for each in slices)
        table.add_row(
            what,
            f"{median(each.rps for each in slices):.1f}",
            f"{per_cpu_second(slices):.1f}",
            f"{median(each.p50_ms for each in slices):.1f}",
            f"{median(each.p99_ms for each in slices):.1f}",
            str(sum(each.versions for each in slices)),
            str(sum(each.failed for each in slices)),
            f"{share:.2f}",
        )
    Console(width=120).print(table)


def main() -> None:
    """Run, print the tables and the closing line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--candidates", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--models", nargs="+", choices=("recd", "sequence"), default=["recd", "sequence"])
    parser.add_argument("--rows", type=int, default=5_000, help="of every table: how large a version is")
    args = parser.parse_args()
    models: dict[str, dict[str, list[Slice]]] = {}
    for name in args.models:
        models[name] = measure(name == "sequence", args)
        show(f"{name}, {args.candidates} candidates", models[name])
    ratios = {
        (name, kind): per_cpu_second(found[f"closed, {kind}, dedup on"])
        / per_cpu_second(found[f"closed, {kind}, dedup off"])
        for name, found in models.items()
        for kind in ("score", "v2")
    }
    first = models[args.models[0]]
    closing: dict[str, Any] = {
        "bench": "serve",
        "candidates": args.candidates,
        "rps": round(median(each.rps for each in first["closed, score, dedup on"]), 1),
        "p50_ms": round(median(each.p50_ms for each in first["open, score, dedup on"]), 1),
        "p99_ms": round(median(each.p99_ms for each in first["open, score, dedup on"]), 1),
        "rps_v2": round(median(each.rps for each in first["closed, v2, dedup on"]), 1),
        "p99_ms_v2": round(median(each.p99_ms for each in first["open, v2, dedup on"]), 1),
        **{
            "_".join(["ratio", *[name] * (name != "recd"), *[kind] * (kind != "score")]): round(ratio, 2)
            for (name, kind), ratio in ratios.items()
        },
        "failed": sum(each.failed for found in models.values() for slices in found.values() for each in slices),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
    }
    print(json.dumps(closing))


if __name__ == "__main__":
    main()
