"""A running `recd serve`, asked over HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import msgspec

from recd.embedded import free_port
from stream.config import Config, KafkaConfig, to_yaml
from tests.forkserver import TRAINING, WarmProcess
from tests.serving.served_world import CONFIG, request

DEADLINE_S = 90


def server_config(folder: Path, **serving: Any) -> Config:
    """Versions in `folder`, no broker, and time enough for a busy machine."""
    versions = {"versions_url": str(folder / "versions"), "keep_versions": 100}
    given = {"port": free_port(), "poll_ms": 10, "threads": 2, "deadline_ms": 1000 * DEADLINE_S} | serving
    return msgspec.structs.replace(
        CONFIG,
        kafka=KafkaConfig(bootstrap=f"127.0.0.1:{free_port()}"),
        trainer=msgspec.structs.replace(CONFIG.trainer, **versions),
        serving=msgspec.structs.replace(CONFIG.serving, **given),
    )


class Service:
    """A running `recd serve`."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.config = config
        self.port = config.serving.port
        self.log_path = folder / "serving.log"
        path = folder / "recd.yaml"
        path.write_text(to_yaml(config))
        with self.log_path.open("ab") as log:
            command = ["-m", "recd", "serve", "--config", str(path)]
            self.process = WarmProcess(command, preload=TRAINING, log=log)

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
        """Status and parsed body; (0, None) where nobody listens."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body=body)
            answer = connection.getresponse()
            data = answer.read()
        except (OSError, HTTPException):
            return 0, None
        finally:
            connection.close()
        return answer.status, json.loads(data) if answer.headers.get_content_type() == "application/json" else data

    def score(self, body: Any = None) -> tuple[int, Any]:
        return self.ask("POST", "/score", msgspec.json.encode(request() if body is None else body))

    def reload(self, version: int | None) -> tuple[int, Any]:
        return self.ask("POST", "/reload", msgspec.json.encode({"version": version}))

    def status(self) -> dict[str, Any]:
        code, body = self.ask("GET", "/status")
        assert code == 200
        assert isinstance(body, dict)
        return body

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert self.process.poll() is None, self.log_path.read_text()
            assert time.monotonic() < deadline, self.log_path.read_text()
            time.sleep(0.02)

    def wait_version(self, version: int) -> None:
        self.wait(lambda: self.status()["version"] == version)

    def logged(self) -> list[dict[str, Any]]:
        """All lines of the log, each of which must be a JSON object."""
        return [json.loads(line) for line in self.log_path.read_text().splitlines()]
