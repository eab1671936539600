"""Real trainers on a real broker, as processes that tests start, ask, stop and kill."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

import msgspec

from dedup_cache import Batch, encode
from recd.embedded import EmbeddedKafka, free_port
from stream.columns import batch_schema
from stream.config import Config, KafkaConfig, RedisConfig, TopicsConfig, to_yaml
from stream.kafka import Writer, create_topic
from tests.forkserver import TRAINING, WarmProcess
from tests.trainer.made_batches import make_config

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120


def trainer_config(
    folder: Path, *, kafka: EmbeddedKafka, prefix: str, redis_url: str = "redis://127.0.0.1:1/0", **trainer: object
) -> Config:
    """A config of its own topics, folders and port; the default Redis is one that is not there."""
    given = {
        "checkpoint_every_ms": 300,
        "publish_every_ms": 200,
        "keep_versions": 1000,
        "announce": True,
        "port": free_port(),
    } | trainer
    config = make_config(checkpoint_url=str(folder / "checkpoints"), versions_url=str(folder / "versions"), **given)
    names = ("interactions", "batches", "values", "late", "quarantine", "journal", "snapshots", "control", "versions")
    return msgspec.structs.replace(
        config,
        kafka=KafkaConfig(bootstrap=kafka.bootstrap),
        redis=RedisConfig(url=redis_url, timeout_ms=100),
        topics=TopicsConfig(**{name: f"{prefix}{name}" for name in names}),
    )


def make_topics(config: Config, *, partitions: int = 1) -> None:
    create_topic(config.kafka, config.topics.batches, partitions=partitions)
    create_topic(config.kafka, config.topics.values, partitions=2, settings={"cleanup.policy": "compact"})
    create_topic(config.kafka, config.topics.control, partitions=1)


def send(config: Config, batches: Iterable[Batch | bytes], *, partition: int = 0) -> None:
    schema = batch_schema(config)
    with Writer(config.kafka) as writer:
        for batch in batches:
            data = batch if isinstance(batch, bytes) else encode(batch, schema)
            writer.send(config.topics.batches, data, partition=partition)
        writer.flush(10_000)


class Trainer:
    """One trainer: a single rank (with a cue to crash), or `recd train` with all its ranks."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        *,
        cue: str = "never:0",
        launched: bool = False,
    ) -> None:
        self.config = config
        path = folder / "recd.yaml"
        path.write_text(to_yaml(config))
        self.log = folder / f"trainer-{time.monotonic_ns()}.log"
        self.process: subprocess.Popen[bytes] | WarmProcess
        with self.log.open("wb") as log:
            if launched:
                command = [sys.executable, "-m", "recd", "train", "-c", str(path)]
                self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
            else:
                program = [str(ROOT / "tests/trainer/rank_run.py"), str(path), cue]
                self.process = WarmProcess(program, preload=TRAINING, log=log)

    def get(self, path: str) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.config.trainer.port}{path}", timeout=5) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def status(self) -> dict[str, Any]:
        try:
            return json.loads(self.get("/status")[1])
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return {}

    def wait_until(self, what: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """The first status that is as wanted; fails when the process ends before."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            status = self.status()
            if status and what(status):
                return status
            assert self.process.poll() is None, f"the trainer ended with {self.process.returncode}\n{self.tail()}"
            time.sleep(0.05)
        raise AssertionError(f"never came: {self.status()}\n{self.tail()}")

    def wait_for_batches(self, count: int) -> dict[str, Any]:
        return self.wait_until(lambda status: trained(self.config) >= count and status.get("lag_batches") == 0)

    def wait(self) -> int:
        return self.process.wait(PATIENCE_S)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def events(self, name: str) -> list[dict[str, Any]]:
        """The lines of its log that tell of one event."""
        lines = (line for line in self.log.read_text(errors="replace").splitlines() if line.startswith("{"))
        return [line for line in map(json.loads, lines) if line.get("event") == name]

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-6000:]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()


def steps(config: Config, *, rank: int = 0) -> list[dict[str, Any]]:
    """The lines of a rank's steps.jsonl."""
    path = Path(config.trainer.checkpoint_url) / ("steps.jsonl" if rank == 0 else f"steps-{rank}.jsonl")
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def trained(config: Config) -> int:
    """Batches that all ranks have trained."""
    return sum(len(steps(config, rank=rank)) for rank in range(config.trainer.ranks))


def cut_in_force(config: Config) -> dict[str, Any]:
    root = Path(config.trainer.checkpoint_url)
    name = json.loads((root / "current.json").read_text())["cut"]
    return json.loads((root / name / "cut.json").read_text()) | {"name": name}
