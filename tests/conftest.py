"""Real servers for tests: shared ones for tests that only use them, private ones for tests that kill them."""

import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from recd.embedded import EmbeddedKafka, EmbeddedRedis


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedKafka]:
    """A broker for the whole run, started by the first test that asks."""
    with EmbeddedKafka(tmp_path_factory.mktemp("kafka")) as server:
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
