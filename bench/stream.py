"""The stream worker as it is in production against bare consuming and decoding, and against other stream frameworks.

    python -m bench.stream [--events 300000] [--rounds 3] [--no-peers] [--no-sessions]

One embedded broker, one topic of generated traffic (preset demo), everything in events per CPU-second of the process
that reads. The worker (`recd stream`, all of it: sessions, join, dedup, batches, transactions) is warmed up, paused
while the topic is filled, and measured from `resume` until every sample is committed; a `close` ends the stream where
the topic ends, for what a worker does in silence is no part of the figure. Bare is confluent-kafka's `consume` and one
msgspec struct a record. Each is run `--rounds` times in turn, the median counts. faust-streaming counts in
`take(5000)`; quixstreams and bytewax count one by one, in a virtual environment that uv makes and the bench throws
away; where no package index answers they are left out, and a line says so. The second table is the pure pipeline by
the number of open sessions. The closing line is JSON.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any
from urllib.request import urlopen

import psutil
import rich
import yaml
from rich.table import Table

from bench.open_sessions import by_open_sessions, show_sessions
from recd.embedded import EmbeddedKafka, EmbeddedRedis, free_port
from stream.compiled import warm
from stream.config import Config, load
from stream.control import send
from stream.generator import DENSITY, GeneratorOptions, generate
from stream.kafka import end_offsets
from stream.topics import create_topics

ROOT = Path(__file__).parents[1]
WARM_UP = 30_000
PAUSE_MS = 60_000
FAUST_EVENTS = 60_000
PATIENCE_S = 600.0
PEER_PATIENCE_S = 240.0
STATUS_EVERY_S = 0.5
"""An answer costs a worker a millisecond: ten in a second were a twentieth of what was measured."""
PEERS = {
    "faust": ("faust_take.py", "faust-streaming==0.15.3", "cramjam==2.11.0"),
    "quixstreams": ("quix_count.py", "quixstreams==3.28.0"),
    "bytewax": ("bytewax_count.py", "bytewax[kafka]==0.21.1"),
}
"""By name: the script, and what its environment has. Faust reads zstd by cramjam, or not at all."""


@dataclass(frozen=True, slots=True)
class Spent:
    """What a reader did."""

    events: int
    cpu_s: float

    @property
    def rate(self) -> float:
        """Events per CPU-second."""
        return self.events / self.cpu_s


class Worker:
    """`recd stream` as a process."""

    def __init__(self, config_path: Path, *, log: Path) -> None:
        self._port = free_port()
        command = [sys.executable, "-m", "recd", "stream"]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [*command, "--config", str(config_path), "--set", f"stream.port={self._port}"],
                cwd=ROOT,
                stdout=output,
                stderr=output,
            )
        self.usage = psutil.Process(self._process.pid)
        self._log = log

    def status(self) -> dict[str, Any]:
        """What it shows; nothing before it listens."""
        try:
            with urlopen(f"http://127.0.0.1:{self._port}/status", timeout=10) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except OSError:
            return {"state": "starting", "partitions": {}, "counters": {}}

    def wait(self, done: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        """Until its status says so."""
        deadline = time.monotonic() + PATIENCE_S
        while not done(found := self.status()):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the worker never was {what}: {found}\n{self._log.read_text()[-2_000:]}")
            time.sleep(STATUS_EVERY_S)
        return found

    def wait_drained(self, events: int) -> dict[str, Any]:
        """Until so many events are committed and no session is open."""
        return self.wait(
            lambda s: (
                s["counters"].get("events", 0) >= events
                and all(not p.get("open_sessions") and p.get("lag") == 0 for p in s["partitions"].values())
                and all(p["resume"] >= p["position"] for p in s["partitions"].values())
            ),
            f"through with {events} events",
        )

    def cpu_s(self) -> float:
        """All threads, user and system."""
        times = self.usage.cpu_times()
        return times.user + times.system

    def stop(self) -> None:
        """SIGTERM."""
        self._process.terminate()
        self._process.wait(60)


def run_worker(config: Config, config_path: Path, *, folder: Path, events: int, rounds: int) -> list[Spent]:
    """Fill the topic `rounds` times while the worker is paused, and let it read."""
    worker = Worker(config_path, log=folder / "worker.log")
    spent, sent = [], 0
    counts = (WARM_UP, *[events] * rounds)
    # One stretch of event time after the other: what lies before the watermark would all be late.
    start_ms = int(time.time() * 1000) - sum(map(_span_ms, counts))
    try:
        worker.wait(lambda s: s["state"] == "running" and s["partitions"], "ready")
        for count in counts:
            send(config, target="stream", action="pause")
            worker.wait(lambda s: s["state"] == "paused", "paused")
            sent += generate(config, options=GeneratorOptions(max_events=count, seed=sent, start_ms=start_ms)).records
            start_ms += _span_ms(count)
            before = worker.cpu_s()
            send(config, target="stream", action="resume")
            send(config, target="stream", action="close")
            late = worker.wait_drained(sent)["counters"]["late"]
            spent.append(Spent(count, worker.cpu_s() - before))
            if late > sent / 100:
                raise RuntimeError(f"{late} of {sent} events were late: what was measured is no stream")
    finally:
        worker.stop()
    return spent[1:]


def _span_ms(events: int) -> int:
    """How much event time so many events take, and a pause that closes every session."""
    return int(events / DENSITY * 1_300) + PAUSE_MS


def run_peer(*command: str | Path) -> Spent:
    """What another reader, a process, says of itself."""
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PEER_PATIENCE_S, check=False)
    if made.returncode or not made.stdout:
        raise RuntimeError(f"{command}: {made.stderr[-2_000:]}")
    said = json.loads(made.stdout.splitlines()[-1])
    return Spent(said["events"], said["cpu_s"])


@contextmanager
def servers(folder: Path) -> Iterator[tuple[Config, Path]]:
    """Kafka, Redis, the topics, and a configuration that names them."""
    with EmbeddedKafka(folder / "kafka") as kafka, EmbeddedRedis(folder / "redis") as redis:
        tree = yaml.safe_load((files("recd") / "presets" / "demo.yaml").read_text())
        tree["kafka"], tree["redis"] = {"bootstrap": kafka.bootstrap}, {"url": redis.url}
        tree["stream"] = {"data_dir": str(folder / "data"), "max_poll_records": int(os.environ.get("MPR", "5000"))}
        path = folder / "recd.yaml"
        path.write_text(yaml.safe_dump(tree))
        config = load(path)
        create_topics(config)
        yield config, path


def run_others(config: Config, *, folder: Path, events: int) -> dict[str, Spent]:
    """The frameworks that only count, by name; a line says which are left out and why."""
    uv = Path(sys.executable).with_name("uv")
    spent = {}
    for name, (script, *packages) in PEERS.items():
        python = folder / name / "bin" / "python"
        install = (uv, "pip", "install", "--quiet", "--python", python, *packages)
        if any(subprocess.run(c, check=False).returncode for c in ((uv, "venv", "--quiet", folder / name), install)):
            rich.print(f"{name}: left out, it could not be installed")
            continue
        count = min(events, FAUST_EVENTS) if name == "faust" else events
        where = (config.kafka.bootstrap, config.topics.interactions, str(count))
        try:
            spent[name] = run_peer(python, ROOT / "bench" / "peers" / script, *where)
        except (RuntimeError, subprocess.TimeoutExpired, ValueError) as error:
            rich.print(f"{name}: left out, {error}")
    return spent


def measure(folder: Path, *, events: int, rounds: int, peers: bool) -> dict[str, float]:
    """Events per CPU-second by reader."""
    with servers(folder) as (config, config_path):
        worker = run_worker(config, config_path, folder=folder, events=events, rounds=rounds)
        ends = {p: [0, end] for p, end in end_offsets(config.kafka, config.topics.interactions).items()}
        bare = (sys.executable, "-m", "bench.peers.bare", config_path, json.dumps(ends))
        rates = {"bare": median(run_peer(*bare).rate for _ in range(rounds)), "worker": median(s.rate for s in worker)}
        others = run_others(config, folder=folder, events=events) if peers else {}
    return rates | {name: spent.rate for name, spent in others.items()}


def main() -> None:
    """Run, print the tables and the closing line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--events", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--no-sessions", action="store_true")
    parser.add_argument("--open-sessions", type=int, nargs="+", default=[1_000, 100_000, 1_000_000])
    args = parser.parse_args()
    warm.compile_now()
    with tempfile.TemporaryDirectory() as name:
        rates = measure(Path(name), events=args.events, rounds=args.rounds, peers=not args.no_peers)
    table = Table("", "events / CPU-s", "µs / event", "the worker is")
    for name, rate in rates.items():
        table.add_row(name, f"{rate:,.0f}", f"{1e6 / rate:.2f}", f"{rates['worker'] / rate:.2f} x")
    rich.print(table)
    levels = [] if args.no_sessions else show_sessions(by_open_sessions(args.open_sessions))
    closing = {
        "bench": "stream",
        "events": args.events,
        "events_per_cpu_second": {name: round(rate) for name, rate in rates.items()},
        **{f"ratio_to_{name}": round(rates["worker"] / rate, 3) for name, rate in rates.items() if name != "worker"},
        "by_open_sessions": levels,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
    }
    print(json.dumps(closing))


if __name__ == "__main__":
    main()
