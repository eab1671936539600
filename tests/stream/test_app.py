"""`recd stream` as an operator sees it: started without a broker, asked over HTTP, ordered about, stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from recd.embedded import EmbeddedKafka, EmbeddedRedis
from stream.counters import Counters
from tests.secured_kafka import SecuredKafka
from tests.stream.rig import ROOT, START_MS, Rig, traffic


@pytest.fixture
def rig(tmp_path: Path, kafka: EmbeddedKafka, redis_server: EmbeddedRedis, topic_prefix: str) -> Iterator[Rig]:
    rig = Rig(tmp_path, kafka=kafka.bootstrap, redis=redis_server.url, prefix=topic_prefix).create()
    yield rig
    rig.close()


def test_imports_neither_torch_nor_the_trainer() -> None:
    code = (
        "import sys, stream.app, recd.cli; heavy = {'torch', 'torchrec', 'fbgemm_gpu', 'trainer', 'serving'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.kafka
def test_pages_control_and_stop(rig: Rig) -> None:
    rig.publish(traffic(sessions=20))
    with rig.app() as app:
        status = app.wait_drained()
        assert status["service"] == "stream"
        assert set(status["counters"]) == {*Counters.__dataclass_fields__}
        assert set(status["partitions"]) == {"0", "1"}
        assert app.get("/health")[0] == 200
        assert app.get("/ready")[0] == 200
        metrics = app.get("/metrics")[1]
        assert f"recd_stream_samples_total {float(status['counters']['samples'])}" in metrics
        assert f'recd_event_to_batch_seconds_bucket{{le="+Inf"}} {float(status["counters"]["samples"])}' in metrics
        assert app.events("listening")[0]["port"] == int(app.url.rsplit(":", 1)[1])

        rig.control("pause")
        app.wait(lambda s: s["state"] == "paused" and not s["ready"], "paused")
        rig.publish(traffic(seed=1, sessions=20, start_ms=START_MS + 4_000, first_id=1_000))
        app.wait(lambda s: sum(p.get("lag", 0) for p in s["partitions"].values()) > 0, "lag")
        assert app.state["counters"]["events"] == status["counters"]["events"]
        rig.control("resume")
        app.wait_drained()

        rig.control("drain")
        app.wait(lambda s: s["state"] == "drained", "drained")
        rig.control("resume")
        app.wait(lambda s: s["state"] == "running", "running")
    rig.check_exactly_once()


@pytest.mark.kafka
def test_close_ends_a_finite_stream_also_where_the_broker_asks_for_a_password(rig: Rig, kafka: SecuredKafka) -> None:
    rig.tree["session"]["idle_after_ms"] = 3_600_000
    rig.tree["kafka"] = kafka.secured()
    rig.write()
    rig.publish(traffic(sessions=20))
    with rig.app() as app:
        ends = app.wait(
            lambda s: s["ready"] and sum(p.get("position", 0) for p in s["partitions"].values()) > 20, "positions"
        )
        assert sum(p["open_sessions"] for p in ends["partitions"].values()) > 0
        rig.control("close")
        app.wait_drained()
    rig.check_exactly_once()


@pytest.mark.kafka
def test_no_broker_at_start(
    tmp_path: Path, private_kafka: EmbeddedKafka, redis_server: EmbeddedRedis, topic_prefix: str
) -> None:
    rig = Rig(tmp_path, kafka=private_kafka.bootstrap, redis=redis_server.url, prefix=topic_prefix).create()
    rig.publish(traffic(sessions=20))
    private_kafka.stop()
    with rig.app() as app:
        app.wait(lambda s: "no broker answers at" in s["last_error"], "clear message")
        assert app.state["state"] == "waiting_for_broker"
        assert app.get("/health")[0] == 200
        assert app.get("/ready")[0] == 503
        private_kafka.start()
        app.wait_drained()
        rig.control("pause")
        app.wait(lambda s: s["state"] == "paused", "order over the control topic")
    rig.check_exactly_once()


@pytest.mark.kafka
def test_stops_quickly_without_a_broker(
    tmp_path: Path, private_kafka: EmbeddedKafka, redis_server: EmbeddedRedis, topic_prefix: str
) -> None:
    rig = Rig(tmp_path, kafka=private_kafka.bootstrap, redis=redis_server.url, prefix=topic_prefix).create()
    rig.publish(traffic(sessions=20))
    with rig.app() as app:
        app.wait_drained()
        rig.publish(traffic(seed=1, sessions=20, start_ms=START_MS + 4_000, first_id=1_000))
        private_kafka.kill()
        app.wait(lambda s: s["state"] == "waiting_for_broker", "noticed outage")
        assert app.stop() == 0
    private_kafka.start()
    with rig.app() as app:
        app.wait_drained()
    rig.check_exactly_once()


@pytest.mark.kafka
def test_a_port_that_is_taken_ends_with_a_message(rig: Rig) -> None:
    with rig.app() as first:
        first.wait(lambda s: s["state"] != "", "state")
        port = first.url.rsplit(":", 1)[1]
        second = subprocess.run(
            [sys.executable, "-m", "recd", "stream", "--config", str(rig.config_path), "--set", f"stream.port={port}"],
            cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert second.returncode == 1
    last = json.loads(second.stderr.splitlines()[-1])
    assert f"cannot listen on 127.0.0.1:{port}" in last["reason"]


@pytest.mark.kafka
def test_an_error_that_only_an_operator_can_end(rig: Rig) -> None:
    rig.tree["session"]["idle_after_ms"] = 3_600_000
    rig.write()
    rig.publish(traffic(sessions=20))
    with rig.app() as app:
        app.wait(
            lambda s: len(s["partitions"]) == 2 and all(p.get("open_sessions") for p in s["partitions"].values()),
            "open sessions in both partitions",
        )
    rig.tree["session"]["gap_ms"] = 300
    rig.write()
    app = rig.app()
    assert app.process.wait(timeout=60) == 1
    reason = app.events("failed")[-1]["reason"]
    assert "session.gap_ms was 200, is 300" in reason
    assert "recd stream --close-all" in reason
    with rig.app("--close-all") as app:
        app.wait(lambda s: s["ready"], "going on")
        rig.publish(traffic(seed=1, sessions=20, start_ms=START_MS + 4_000, first_id=1_000))
        rig.control("close")
        app.wait_drained()
    rig.check_exactly_once()
