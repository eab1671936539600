"""Real servers for tests: shared ones for tests that only use them, private ones for tests that kill them."""

import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings

from recd.embedded import EmbeddedKafka, EmbeddedRedis
from stream.compiled import warm
from tests.secured_kafka import SecuredKafka

# How long an example takes says how busy the machine is, not whether the property holds.
settings.register_profile("recd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("recd")

# Several processes share the cores; what they compute is too small to be worth a second thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A broker of a test lives for seconds: what the second compiler makes of it never pays (a third of its start).
os.environ.setdefault("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1")

GIB = 1 << 30
GIB_PER_PROCESS = 4
"""What one process of the suite may need: its broker, and a demo with all its services."""


def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: most tests wait for processes that they started, so one more than there are cores."""
    memory = psutil.virtual_memory().available // GIB // GIB_PER_PROCESS
    return max(1, min(len(os.sched_getaffinity(0)) + 1, memory, 8))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones first, so that no process is left alone with one at the end."""

    def rank(item: pytest.Item) -> int:
        servers = set(getattr(item, "fixturenames", ()))
        if item.get_closest_marker("slow") is not None or "private_kafka" in servers:
            return 0
        return 1 if servers & {"kafka", "redis_server", "private_redis"} else 2

    items.sort(key=rank)


@pytest.fixture(scope="session", autouse=True)
def kernels() -> None:
    """Compiled kernels are used, as in a worker that has run for a second, whatever tests ran before."""
    warm.compile_now()


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredKafka]:
    """A broker for the whole run, started by the first test that asks."""
    with SecuredKafka(tmp_path_factory.mktemp("kafka")) as server:
        yield server


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """A Redis for the whole run; tests keep apart by their `topic_prefix`."""
    with EmbeddedRedis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def private_kafka(tmp_path: Path) -> Iterator[EmbeddedKafka]:
    """A broker of this test alone, which may stop, kill and start it."""
    with EmbeddedKafka(tmp_path / "kafka") as server:
        yield server


@pytest.fixture
def private_redis(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """A Redis of this test alone, which may stop, kill and start it."""
    with EmbeddedRedis(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def topic_prefix(request: pytest.FixtureRequest) -> str:
    """A name of this test and this run alone, fit for topics, groups and Redis keys; ends in a dash."""
    name = re.sub(r"[^a-zA-Z0-9]+", "-", request.node.name)[:40].strip("-")
    return f"{name}-{uuid.uuid4().hex[:8]}-"
