"""The demo as a user runs it: the real command, real servers, real services."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(420)]

DESKDROP = Path(__file__).parents[2] / "shared" / "data" / "deskdrop" / "interactions.csv.gz"
SERVICES = 7
"""Kafka, Redis, two stream workers, trainer, server, traffic."""


class DemoRun:
    """One `recd demo` as a child process."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.report_path = folder / "report.json"
        self.output_path = folder / "output.txt"
        command = [sys.executable, "-m", "recd", "demo", "--dir", str(folder), "--json", str(self.report_path)]
        with self.output_path.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, *arguments], stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def child(self, name: str) -> psutil.Process:
        """The process that has `name` among its arguments, waited for."""
        for _ in range(600):
            for process in self.children():
                with suppress(psutil.NoSuchProcess):
                    if name in process.cmdline():
                        return process
            time.sleep(0.1)
        raise AssertionError(f"no child runs {name}:\n{self.output()}")

    def wait_for(self, text: str) -> None:
        for _ in range(1800):
            if text in self.output():
                return
            assert self.process.poll() is None, self.output()
            time.sleep(0.1)
        raise AssertionError(f"{text!r} was never printed:\n{self.output()}")

    def output(self) -> str:
        return self.output_path.read_text(errors="replace")

    def report(self) -> dict[str, Any]:
        return dict(json.loads(self.report_path.read_text()))

    def logs(self) -> str:
        return "\n".join(f"== {p}\n{p.read_text(errors='replace')[-3000:]}" for p in self.folder.rglob("logs/*.log"))


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Any]:
    runs: list[DemoRun] = []

    def start(*arguments: str) -> DemoRun:
        runs.append(DemoRun(tmp_path, *arguments))
        return runs[-1]

    yield start
    for run in runs:
        if run.process.poll() is None:
            run.process.kill()
            run.process.wait()


def assert_none_left(before: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(before, timeout=10)
    assert not alive


def test_generated_traffic_is_trained_exactly_once_and_served(demo: Any) -> None:
    run = demo("--seconds", "25", "--rate", "400")
    assert run.process.wait(400) == 0, run.output() + run.logs()
    report = run.report()
    assert report["lost"] == report["duplicated"] == 0
    assert report["samples"] > 1000
    assert report["impressions"] >= report["samples"]
    assert report["quarantined"] > 0, "the demo's traffic has malformed records"
    assert report["versions"]["served"] >= 2
    assert report["requests"]["answered"] > 0
    assert report["requests"]["failed"] == 0
    assert 0 < report["ne_best"] < report["ne"] < report["ne_base"]
    assert report["ne_frozen"] > report["ne_best"]
    assert report["auc"] > 0.55
    assert 0.8 < report["calibration"] < 1.25
    assert report["sessions"] > 100
    assert report["batches"] > 10
    assert report["dedup"]["rows_factor"] > 1.5
    for name in ("event_to_weights_ms", "weights_to_server_ms"):
        assert report[name]["p50"] <= report[name]["p95"] <= report[name]["p99"]


def test_ctrl_c_stops_in_order_and_reports(demo: Any) -> None:
    run = demo("--seconds", "300", "--rate", "300")
    run.child("generate")
    time.sleep(8)
    children = run.children()
    assert len(children) >= SERVICES
    os.killpg(run.process.pid, signal.SIGINT)
    assert run.process.wait(120) == 130, run.output() + run.logs()
    assert_none_left(children)
    report = run.report()
    assert report["events"] > 0
    assert report["lost"] == report["duplicated"] == 0


@pytest.mark.parametrize(("word", "name"), [("serve", "serving"), ("kafka.Kafka", "Kafka")])
def test_a_dead_child_is_named_with_its_log(demo: Any, word: str, name: str) -> None:
    run = demo("--seconds", "300", "--rate", "300")
    run.child("generate")
    time.sleep(5)
    children = run.children()
    run.child(word).kill()
    assert run.process.wait(180) == 1, run.output() + run.logs()
    assert f"{name} was killed by signal 9" in run.output()
    assert f"{name.lower()}.log" in run.output()
    assert_none_left(children)
    assert run.report()["lost"] == 0


@pytest.mark.skipif(not DESKDROP.exists(), reason="the deskdrop events do not lie beside the project")
def test_every_real_event_is_accounted_for(demo: Any) -> None:
    run = demo("--events", str(DESKDROP), "--format", "deskdrop")
    assert run.process.wait(400) == 0, run.output() + run.logs()
    report = run.report()
    assert report["events"] == 72_312
    assert report["impressions"] == report["samples"] == 61_086
    assert report["lost"] == report["duplicated"] == report["quarantined"] == 0
    assert report["ne"] < report["ne_base"]
    assert report["ne_best"] is None
    assert report["dedup"]["rows_factor"] > 2
    assert report["event_to_weights_since"] == "append"
