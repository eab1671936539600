"""The server as its own process, asked over HTTP while versions come, are damaged, and go."""

from __future__ import annotations

import shutil
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from recd.embedded import EmbeddedKafka
from serving.model import ServedModel
from stream.config import Config, KafkaConfig, TopicsConfig
from stream.control import send
from stream.kafka import create_topic
from tests.serving.served_world import expected_scores, new_model, request, snapshot
from tests.serving.service import DEADLINE_S, Service, server_config
from trainer.durable import replace_file
from trainer.versions import VersionStore


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return server_config(tmp_path)


@pytest.fixture
def store(config: Config) -> VersionStore:
    return VersionStore(config.trainer.versions_url, keep=100)


@pytest.fixture
def service(config: Config, tmp_path: Path) -> Iterator[Service]:
    """Started, listening, without a broker."""
    started = Service(config, tmp_path)
    try:
        started.wait(lambda: started.ask("GET", "/health")[0] == 200)
        yield started
    finally:
        started.process.kill()
        started.process.wait()


def test_from_the_first_look_to_the_last(service: Service, store: VersionStore) -> None:
    """Without a version 503; with one, scores; a stop ends in order; and no broker was needed."""
    assert service.ask("GET", "/ready")[0] == 503
    code, body = service.score()
    assert code == 503
    assert "no version is in service" in body["error"]
    version = store.publish(snapshot(new_model(1)))
    service.wait_version(version)
    assert service.ask("GET", "/ready") == (200, {"ready": True})
    code, body = service.score()
    assert (code, body["version"]) == (200, 1)
    for label, scores in expected_scores(store.load(1)).items():
        np.testing.assert_allclose(body["scores"][label], scores, rtol=0, atol=1e-6)

    code, body = service.score({"candidates": [{"item": "x"}]})
    assert code == 400
    assert "$.candidates[0].item" in body["error"]
    assert service.ask("POST", "/score", b" " * (17 << 20))[0] == 413

    status = service.status()
    counters = status["counters"]
    assert (status["service"], status["state"], status["version"]) == ("serving", "running", 1)
    assert (counters["requests"], counters["candidates"], counters["errors"]) == (4, 4, 3)
    assert (counters["rows"], counters["rows_computed"]) == (12, 5)
    assert set(status["latency_ms"]) == set(status["weights_to_server_ms"]) == {"p50", "p95", "p99"}
    assert status["latency_ms"]["p99"] > 0
    _, metrics = service.ask("GET", "/metrics")
    assert b"recd_serving_candidates_total 4.0" in metrics
    assert b'recd_serving_requests_total{outcome="invalid"} 2.0' in metrics

    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(timeout=DEADLINE_S) == 0
    events = [line["event"] for line in service.logged()]
    assert events[0] == "started"
    assert events[-1] == "stopped"


@pytest.mark.slow
def test_under_load_every_answer_is_of_exactly_one_version(service: Service, store: VersionStore) -> None:
    """Requests from several threads while versions are published, damaged and pinned: none fails, none is mixed."""
    store.publish(snapshot(new_model(1)))
    service.wait_version(1)
    answers: list[tuple[int, Any]] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            answers.append(service.score())

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        for seed in range(2, 12):
            newest = store.publish(snapshot(new_model(seed)))
            service.wait_version(newest)
        assert service.reload(3)[0] == 200
        assert service.status()["version"] == 3
        damaged = Path(store.url) / "v0000000012"
        shutil.copytree(Path(store.url) / "v0000000011", damaged)
        replace_file(Path(store.url) / "current.json", b'{"version": 12}')
        assert service.reload(None)[0] == 200
        service.wait(lambda: service.status()["counters"]["versions_rejected"] == 1)
        assert service.status()["version"] == 3
        newest = store.publish(snapshot(new_model(13)))
        service.wait_version(newest)
        service.wait(lambda: answers[-1][1]["version"] == newest)
    finally:
        ended.set()
        for client in clients:
            client.join()
    by_version = Counter(body["version"] for code, body in answers if code == 200)
    assert Counter(code for code, _ in answers) == {200: len(answers)}
    assert len(by_version) >= 5
    body = msgspec.json.encode(request())
    expected = {version: ServedModel(store.load(version)).score(body).scores for version in by_version}
    assert len({msgspec.json.encode(scores) for scores in expected.values()}) == len(expected)
    for _, answer in answers:
        for label, scores in expected[answer["version"]].items():
            np.testing.assert_allclose(answer["scores"][label], scores, rtol=0, atol=1e-6)


def test_a_reload_that_cannot_be_done_is_refused(service: Service, store: VersionStore) -> None:
    for seed in (1, 2):
        store.publish(snapshot(new_model(seed)))
    service.wait_version(2)
    code, body = service.reload(9)
    assert code == 409
    assert "version 9: manifest.json is missing" in body["error"]
    assert service.ask("POST", "/reload", b'{"version": "x"}') == (
        400,
        {"error": "Expected int | null, got str - at $.version"},
    )
    assert service.reload(1) == (200, {"version": 1, "pinned": 1})
    assert service.reload(None) == (200, {"version": 2, "pinned": None})


def test_requests_in_flight_are_answered_when_it_is_told_to_stop(service: Service, store: VersionStore) -> None:
    store.publish(snapshot(new_model(1)))
    service.wait_version(1)
    body = msgspec.json.encode(request())
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        head = f"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode() + body[:20])
        service.wait(lambda: service.ask("GET", "/health")[0] == 200)
        service.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + DEADLINE_S
        while service.ask("GET", "/health")[0]:
            assert time.monotonic() < deadline
        connection.sendall(body[20:])
        answer = b""
        while part := connection.recv(1 << 16):
            answer += part
    assert answer.startswith(b"HTTP/1.1 200")
    assert service.process.wait(timeout=DEADLINE_S) == 0


def test_a_port_that_is_taken_is_named(config: Config, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", config.serving.port)):
        service = Service(config, tmp_path)
        assert service.process.wait(timeout=DEADLINE_S) == 1
    [line] = [line for line in service.logged() if line["level"] == "error"]
    assert line["event"] == "cannot serve"
    assert str(config.serving.port) in line["reason"]


@pytest.mark.kafka
@pytest.mark.slow
def test_it_obeys_the_control_topic_and_outlives_the_broker(
    config: Config, store: VersionStore, private_kafka: EmbeddedKafka, tmp_path: Path
) -> None:
    config = msgspec.structs.replace(
        config, kafka=KafkaConfig(bootstrap=private_kafka.bootstrap), topics=TopicsConfig(control="orders")
    )
    create_topic(config.kafka, "orders", partitions=1, replication=1, settings={})
    send(config, target="serving", action="reload", version=1)
    for seed in (1, 2, 3):
        store.publish(snapshot(new_model(seed)))
    service = Service(config, tmp_path)
    try:
        service.wait(lambda: "control listening" in service.log_path.read_text())
        service.wait_version(3)
        send(config, target="trainer", action="reload", version=1)
        send(config, target="stream", action="pause")
        send(config, target="serving", action="reload", version=99)
        send(config, target="all", action="reload", version=2)
        service.wait_version(2)
        assert any("version 99" in line.get("reason", "") for line in service.logged())
        private_kafka.kill()
        assert service.score()[1]["version"] == 2
        assert service.reload(None) == (200, {"version": 3, "pinned": None})
        private_kafka.start()

        def obeyed() -> bool:
            send(config, target="serving", action="reload", version=1)
            return bool(service.status()["version"] == 1)

        service.wait(obeyed)
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(timeout=DEADLINE_S) == 0
    finally:
        service.process.kill()
        service.process.wait()
