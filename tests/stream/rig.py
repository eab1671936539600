"""A rig for tests of the worker: topics of its own, traffic, worker processes, and a plain reading of what came out."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any, Self
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import yaml

from dedup_cache import Batch, decode
from recd.audit import audit, format_report
from recd.embedded import free_port
from stream.columns import batch_schema
from stream.config import Config, load
from stream.control import send
from stream.kafka import BrokerUnavailable, Message, Reader, Writer, begin_offsets, end_offsets
from stream.topics import create_topics
from tests.forkserver import STREAMING, WarmProcess

ROOT = Path(__file__).parents[2]
START_MS = 1_700_000_000_000
GAP_MS = 200
MASK = 2**64 - 1
PATIENCE_S = 60.0


def plain_sample_id(partition: int, offset: int) -> int:
    """The finaliser of splitmix64, written down a second time."""
    x = (partition << 48) | offset
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def traffic(
    *, seed: int = 0, sessions: int = 60, users: int = 8, start_ms: int = START_MS, first_id: int = 0
) -> list[dict[str, Any]]:
    """Sessions of a few impressions and clicks of some users, in event time order, one session after the other."""
    chance = random.Random(seed)
    events: list[dict[str, Any]] = []
    for session in range(sessions):
        user, at_ms = chance.randrange(users), start_ms + session * 60 + chance.randrange(30)
        for _ in range(chance.randrange(1, 6)):
            at_ms += chance.randrange(5, 40)
            item = chance.randrange(20)
            history = list(range(user * 100, user * 100 + 30))
            shown = {"type": "impression", "item_id": item, "history": history}
            events.append({"user_id": user, "event_time_ms": at_ms, **shown})
            if chance.random() < 0.3:
                events.append({"user_id": user, "event_time_ms": at_ms + 3, "type": "click", "item_id": item})
    events.sort(key=lambda event: event["event_time_ms"])
    return [{"event_id": first_id + i, **event} for i, event in enumerate(events)]


@dataclass(frozen=True, slots=True)
class Reject:
    """A record of `late` or `quarantine`."""

    reason: str
    partition: int
    offset: int
    message: Message


class Rig:
    """One configuration with topics of its own on a broker that is up."""

    def __init__(self, folder: Path, *, kafka: str, redis: str, prefix: str, **sections: dict[str, Any]) -> None:
        self.folder = folder
        self.prefix = prefix
        self._processes: list[WorkerProcess] = []
        folder.mkdir(parents=True, exist_ok=True)
        names = ("interactions", "batches", "values", "late", "quarantine", "journal", "snapshots", "control")
        self.tree: dict[str, Any] = {
            "kafka": {"bootstrap": kafka},
            "redis": {"url": redis, "namespace": prefix},
            "topics": {name: prefix + name for name in names} | {"partitions": 2, "versions": prefix + "versions"},
            "session": {
                "gap_ms": GAP_MS,
                "out_of_orderness_ms": 50,
                "max_duration_ms": 5_000,
                "idle_after_ms": 200,
            },
            "batch": {"max_wait_ms": 100, "max_samples": 16},
            "dedup": {"inline_bytes": 100},
            "features": [
                {"name": "user", "group": "user", "field": "user_id"},
                {"name": "history", "group": "user", "type": "list[int]"},
                {"name": "item", "group": "item", "field": "item_id"},
                {"name": "seen", "group": "session", "source": "session.items"},
            ],
            "stream": {
                "group_id": f"{prefix}group",
                "max_poll_records": 25,
                "port": 0,
                "data_dir": str(folder / "data"),
            },
            "trainer": {"checkpoint_url": str(folder / "checkpoints")},
        }
        for section, keys in sections.items():
            self.tree[section] = {**self.tree.get(section, {}), **keys}
        self.config_path = folder / "recd.yaml"
        self.write()

    def write(self) -> None:
        """Write the configuration down."""
        self.config_path.write_text(yaml.safe_dump(self.tree))
        self.config: Config = load(self.config_path)

    def create(self) -> Rig:
        """Create the topics."""
        create_topics(self.config)
        return self

    def reference(self, name: str) -> Rig:
        """Another job on the same log: its own outputs, group and index."""
        other = Rig(
            self.folder / name,
            kafka=self.config.kafka.bootstrap,
            redis=self.config.redis.url,
            prefix=f"{self.prefix}{name}-",
        )
        other.tree = {**self.tree, **{key: other.tree[key] for key in ("redis", "topics", "stream")}}
        other.tree["topics"]["interactions"] = self.config.topics.interactions
        other.write()
        other._processes = self._processes
        return other.create()

    def publish(self, events: Iterable[dict[str, Any] | bytes], *, partition: int | None = None) -> None:
        """Append events, by user to a partition; bytes go as they are."""
        with Writer(self.config.kafka, linger_ms=0) as writer:
            for event in events:
                key = b"raw" if isinstance(event, bytes) else str(event.get("user_id")).encode()
                value = event if isinstance(event, bytes) else json.dumps(event).encode()
                by_user = 0 if isinstance(event, bytes) else hash(event.get("user_id")) % 2
                place = by_user if partition is None else partition
                writer.send(self.config.topics.interactions, value, key=key, partition=place)
            writer.flush(30_000)

    def worker(self, name: str = "w", *, crash: str = "", options: tuple[str, ...] = ()) -> WorkerProcess:
        """Start a worker; with `crash` = POINT:N it kills itself there."""
        command = ["tests.stream.worker_process", str(self.config_path), "--worker", name, *options]
        command += ["--crash", crash] if crash else []
        log = self.folder / f"{name}.log"
        topic = self.config.topics.interactions
        process = WorkerProcess(command, log=log, ends=lambda: end_offsets(self.config.kafka, topic))
        self._processes.append(process)
        return process

    def app(self, *options: str) -> AppProcess:
        """Start `recd stream`, as an operator does."""
        process = AppProcess(self, *options)
        self._processes.append(process)
        return process

    def adopt(self, process: WorkerProcess) -> None:
        """`close` ends this one too."""
        self._processes.append(process)

    def control(self, action: str) -> None:
        """Over the control topic."""
        send(self.config, target="stream", action=action)

    def close(self) -> None:
        """Kill what a failed test left behind."""
        for process in self._processes:
            process.kill()

    def batches(self) -> list[Batch]:
        """Every committed batch."""
        schema = batch_schema(self.config)
        return [decode(message.value or b"", schema) for message in read_all(self.config, self.config.topics.batches)]

    def samples(self) -> dict[int, list[int]]:
        """By source partition, the committed sample ids in their order; checks that `seq` counts them."""
        ids: dict[int, list[int]] = defaultdict(list)
        for batch in self.batches():
            source = batch.meta.source_partition
            assert batch.meta.seq == len(ids[source]), "a batch before this one is missing or doubled"
            assert batch.num_samples <= self.config.batch.max_samples
            ids[source] += batch.sample_ids.tolist()
        return dict(ids)

    def rejects(self, topic: str) -> list[Reject]:
        """What stands in `late` or `quarantine`."""
        found = []
        for message in read_all(self.config, getattr(self.config.topics, topic)):
            headers = dict(message.headers)
            _, partition, offset = headers["recd.source"].decode().rsplit("/", 2)
            found.append(Reject(headers["recd.reason"].decode(), int(partition), int(offset), message))
        return found

    def check_exactly_once(self) -> dict[int, list[int]]:
        """Every impression of the log is one sample, or one record of late or quarantine. Returns the samples.

        The audit must agree, which knows for every record what must have become of it: labels, reasons, order.
        """
        samples = self.samples()
        rejected = [(r.partition, r.offset) for topic in ("late", "quarantine") for r in self.rejects(topic)]
        assert len(rejected) == len(set(rejected))
        due = {
            plain_sample_id(message.partition, message.offset)
            for message in read_all(self.config, self.config.topics.interactions)
            if is_impression(message.value) and (message.partition, message.offset) not in set(rejected)
        }
        emitted = [sample for ids in samples.values() for sample in ids]
        assert len(emitted) == len(set(emitted)), "samples were doubled"
        assert set(emitted) == due
        report = audit(self.config)
        assert report.ok, format_report(report)
        return samples

    def uninterrupted(self, name: str = "calm") -> dict[int, list[int]]:
        """The samples of another job that reads the same log without any trouble."""
        calm = self.reference(name)
        with calm.worker() as worker:
            worker.wait_drained()
        return calm.check_exactly_once()


def is_impression(value: bytes | None) -> bool:
    """In plain words: does the record say that it is one?"""
    try:
        event = json.loads(value or b"")
    except ValueError:
        return False
    return isinstance(event, dict) and event.get("type") == "impression" and "duplicate_of" not in event


def read_all(config: Config, topic: str) -> list[Message]:
    """All committed records of a topic, partition by partition, once no transaction is open any more."""
    kafka = config.kafka
    wait_until(
        lambda: end_offsets(kafka, topic) == end_offsets(kafka, topic, committed=False), f"{topic} without transactions"
    )
    messages: list[Message] = []
    with Reader(config.kafka, topic=topic, positions=begin_offsets(config.kafka, topic)) as reader:
        while not reader.at_end:
            messages += reader.poll(max_messages=1_000, timeout_ms=50)
    return sorted(messages, key=lambda message: (message.partition, message.offset))


class WorkerProcess:
    """A process that prints its state as JSON lines; `state` is the newest."""

    def __init__(self, module_and_arguments: list[str], *, log: Path, ends: Callable[[], dict[int, int]]) -> None:
        self.log = log
        self._ends = ends
        self.state: dict[str, Any] = {}
        with log.open("ab") as stderr:
            self.process = self._start(["-m", *module_and_arguments], stderr=stderr)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _start(self, program: list[str], *, stderr: IO[bytes]) -> subprocess.Popen[bytes] | WarmProcess:
        return WarmProcess(program, preload=STREAMING, log=stderr, pipes=True)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self.process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            assert self.stop() == 0, self.tail()
        else:
            self.kill()

    def order(self, action: str) -> None:
        """As if it had come over the control topic."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{action}\n".encode())
        self.process.stdin.flush()

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        self.process.terminate()
        return self._wait()

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self._wait()

    def wait_killed(self) -> None:
        """Until it killed itself."""
        assert self._wait() == -signal.SIGKILL, self.tail()

    def wait(self, condition: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        """Until the newest state fulfils the condition."""
        deadline = time.monotonic() + PATIENCE_S
        while not (self.state and condition(self.state)):
            assert self.process.poll() is None, f"ended while waiting for: {what}\n{self.tail()}"
            assert time.monotonic() < deadline, f"no {what}: {self.state}\n{self.tail()}"
            time.sleep(0.02)
        return self.state

    def wait_ready(self) -> dict[str, Any]:
        """Until it does its work on at least one partition."""
        return self.wait(lambda s: s["ready"] and len(s["partitions"]) > 0, "ready worker")

    def wait_drained(self, partitions: int = 2) -> dict[str, Any]:
        """Until it owns so many partitions, has read all that is in the log, and nothing is open or uncommitted."""
        ends = patiently(self._ends)
        return self.wait(
            lambda s: (
                len(s["partitions"]) == partitions
                and all(drained(p, end=ends[int(number)]) for number, p in s["partitions"].items())
            ),
            f"drained worker at {ends}",
        )

    def tail(self) -> str:
        """The end of the log."""
        return self.log.read_text()[-3_000:]

    def _wait(self) -> int:
        status = self.process.wait(timeout=PATIENCE_S)
        self._reader.join()
        if self.process.stdin is not None:
            with suppress(BrokenPipeError):
                self.process.stdin.close()
        return status

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                if line.endswith(b"\n"):
                    self.state = json.loads(line)


class AppProcess(WorkerProcess):
    """`recd stream`; `state` is what `/status` and `/ready` say."""

    look_every_s = 0.1

    def __init__(
        self, rig: Rig, *options: str, name: str = "app", command: tuple[str, ...] = ("recd", "stream")
    ) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        arguments = ["--config", str(rig.config_path), "--set", f"stream.port={port}", *options]
        topic = rig.config.topics.interactions
        log = rig.folder / f"{name}.log"
        super().__init__([*command, *arguments], log=log, ends=lambda: end_offsets(rig.config.kafka, topic))

    def _start(self, program: list[str], *, stderr: IO[bytes]) -> subprocess.Popen[bytes]:
        """As an operator does: cold."""
        return subprocess.Popen(
            [sys.executable, *program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr
        )

    def get(self, path: str) -> tuple[int, str]:
        """HTTP status and body of a path."""
        try:
            with urlopen(self.url + path, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def events(self, name: str) -> list[dict[str, Any]]:
        """The lines of the log with this event."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    def _read(self) -> None:
        """Poll instead of reading lines; standard output stays empty."""
        assert self.process.stdout is not None
        while self.process.poll() is None:
            with suppress(URLError, OSError, HTTPException):
                state = json.loads(self.get("/status")[1])
                self.state = {**state, "ready": self.get("/ready")[0] == HTTPStatus.OK}
            time.sleep(self.look_every_s)
        self.process.stdout.close()


def drained(partition: dict[str, Any], *, end: int) -> bool:
    return (
        partition["state"] == "live"
        and partition["open_sessions"] == 0
        and partition["position"] == partition["resume"] == partition["committed"] == end
    )


def patiently(ask: Callable[[], dict[int, int]]) -> dict[int, int]:
    """The answer of a broker that may have started this moment and not know its own partitions yet."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return ask()
        except BrokerUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Poll a condition."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.05)
