"""How soon `recd stream` is ready, from the start of its process and from the broker's first answer.

    python -m bench.startup [--rounds 5]

A real broker and a real Redis, compiled code at hand as after set-up. Times are those of the worker's own log; ready is
a worker whose `/ready` says so and whose partitions are live, asked every 10 ms. CPU is that of the worker's process
until then: on a busy machine the figure to compare. Imports: milliseconds by package of `import stream.app`, and of
`import recd.cli`, which is what `recd --help` and `recd health` take. The closing line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from urllib.error import URLError
from urllib.request import urlopen

import rich
import yaml
from rich.table import Table

from recd.embedded import EmbeddedKafka, EmbeddedRedis
from stream.config import load
from stream.topics import create_topics

POLL_S, PATIENCE_S = 0.01, 60.0
STEPS = ("listening", "the broker answers", "assigned", "taken over")
IMPORT_LINE = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s*([\w.]+)")
TICKS_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Start:
    """Milliseconds since the process began: by step of the log, and until ready."""

    steps: dict[str, float]
    ready: float
    cpu: float

    @property
    def after_answer(self) -> float:
        """From the broker's answer until ready."""
        return self.ready - self.steps["the broker answers"]


def start_once(config: Path, log: Path) -> Start:
    """One worker, until it is ready."""
    with log.open("w") as out:
        began = time.time()
        command = [sys.executable, "-m", "recd", "stream", "--config", str(config)]
        process = subprocess.Popen(command, stderr=out, stdout=out)
        try:
            ready = (wait_ready(process, log) - began) * 1e3
            cpu = cpu_seconds(process.pid) * 1e3
        finally:
            process.terminate()
            process.wait(60)
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    told = {line["event"]: datetime.fromisoformat(line["time"]).timestamp() for line in reversed(lines)}
    return Start({step: (told[step] - began) * 1e3 for step in STEPS}, ready, cpu)


def wait_ready(process: subprocess.Popen[bytes], log: Path) -> float:
    """When `/status` first said that the worker has its partitions and goes on with all of them."""
    deadline, url = time.time() + PATIENCE_S, ""
    while time.time() < deadline and process.poll() is None:
        if not url and (found := re.search(r'"port":(\d+)', log.read_text())):
            url = f"http://127.0.0.1:{found[1]}"
        try:
            if url and urlopen(f"{url}/ready", timeout=1).status == 200:
                states = [p["state"] for p in json.load(urlopen(f"{url}/status", timeout=1))["partitions"].values()]
                if states and set(states) == {"live"}:
                    return time.time()
        except (URLError, OSError):
            pass
        time.sleep(POLL_S)
    raise SystemExit(f"the worker was never ready:\n{log.read_text()[-2000:]}")


def cpu_seconds(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_S


def imports(statement: str) -> Counter[str]:
    """Milliseconds by package."""
    told = subprocess.run([sys.executable, "-X", "importtime", "-c", statement], capture_output=True, check=True)
    spent: Counter[str] = Counter()
    for us, module in IMPORT_LINE.findall(told.stderr.decode()):
        spent[module.partition(".")[0]] += int(us) / 1e3
    return spent


def main() -> None:
    """Run, print the tables and the closing line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with EmbeddedKafka(folder / "kafka") as kafka, EmbeddedRedis(folder / "redis") as redis:
            config = write_config(folder, kafka=kafka.bootstrap, redis=redis.url)
            starts = [start_once(config, folder / "worker.log") for _ in range(1 + args.rounds)][1:]
    figures = {step: median(start.steps[step] for start in starts) for step in STEPS}
    figures |= {"ready": median(start.ready for start in starts), "cpu": median(start.cpu for start in starts)}
    after = median(start.after_answer for start in starts)
    show(figures)
    worker, command = imports("import stream.app"), imports("import recd.cli")
    table = Table("imports", "ms")
    for package, spent in worker.most_common(12):
        table.add_row(package, f"{spent:.0f}")
    rich.print(table)
    closing = {
        "bench": "startup",
        "broker_to_ready_ms": round(after),
        "start_ms": {step: round(value) for step, value in figures.items()},
        "import_ms": {"stream.app": round(worker.total()), "recd.cli": round(command.total())},
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
    }
    print(json.dumps(closing))


def write_config(folder: Path, *, kafka: str, redis: str) -> Path:
    tree = {
        "kafka": {"bootstrap": kafka},
        "redis": {"url": redis},
        "stream": {"port": 0, "data_dir": str(folder / "data")},
    }
    path = folder / "recd.yaml"
    path.write_text(yaml.safe_dump(tree))
    create_topics(load(path))
    return path


def show(figures: dict[str, float]) -> None:
    table = Table("recd stream", "ms since the process began")
    for name, value in figures.items():
        table.add_row("CPU until then" if name == "cpu" else name, f"{value:.0f}")
    rich.print(table)


if __name__ == "__main__":
    main()
