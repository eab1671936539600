"""Which version is in service: the newest that can be loaded, or the one asked for; never half of one."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from serving import buffers
from serving import follower as following
from serving.control import ControlListener
from serving.follower import Follower
from serving.model import ServedModel
from serving.telemetry import Telemetry
from stream.kafka import Message
from tests.serving.served_world import CONFIG, T0, new_model, request, snapshot
from trainer.durable import replace_file
from trainer.versions import Version, VersionError, VersionStore

DEADLINE_S = 60


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def store(tmp_path: Path) -> VersionStore:
    return VersionStore(str(tmp_path), keep=10)


@pytest.fixture
def follower(store: VersionStore) -> Iterator[Follower]:
    made = Follower(store, poll_ms=10, telemetry=Telemetry(), clock_ms=lambda: T0 + 123)
    yield made
    made.stop()


def totals(follower: Follower) -> dict[str, int]:
    return follower._telemetry.counters()


def in_service(follower: Follower) -> int | None:
    return follower.model.version if follower.model else None


def test_it_waits_for_the_first_version_and_follows_every_newer_one(store: VersionStore, follower: Follower) -> None:
    follower.start()
    wait_until(lambda: follower._caught_up)
    assert in_service(follower) is None
    for version in (1, 2, 3):
        assert store.publish(snapshot(new_model(version))) == version
        wait_until(lambda wanted=version: in_service(follower) == wanted)  # type: ignore[misc]
    wait_until(lambda: totals(follower)["versions_loaded"] == 3)
    assert totals(follower)["versions_rejected"] == 0
    assert follower._telemetry.weights_to_server_ms.percentiles() == {"p50": 123, "p95": 123, "p99": 123}


def test_the_age_of_a_version_found_at_start_is_not_a_delay(store: VersionStore, follower: Follower) -> None:
    store.publish(snapshot(new_model(1), weights_ms=T0 - 10**9))
    follower.start()
    wait_until(lambda: in_service(follower) == 1)
    store.publish(snapshot(new_model(2)))
    wait_until(lambda: in_service(follower) == 2)
    assert follower._telemetry.weights_to_server_ms.percentiles()["p99"] == 123


def test_a_damaged_version_is_refused_once_and_loudly(
    store: VersionStore, follower: Follower, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store.publish(snapshot(new_model(1)))
    follower.start()
    wait_until(lambda: in_service(follower) == 1)
    # As a storage that damages what is written would: complete, current, and wrong.
    other = VersionStore(str(tmp_path / "other"), keep=10)
    other.publish(snapshot(new_model(2)), version=2)
    shutil.copytree(tmp_path / "other" / "v0000000002", tmp_path / "v0000000002")
    flip(tmp_path / "v0000000002" / "tables-0000.safetensors")
    with caplog.at_level(logging.ERROR, logger="serving"):
        replace_file(tmp_path / "current.json", b'{"version": 2}')
        wait_until(lambda: totals(follower)["versions_rejected"] == 1)
        time.sleep(0.1)
    assert in_service(follower) == 1
    assert totals(follower)["versions_rejected"] == 1
    [record] = caplog.records
    assert (record.getMessage(), vars(record)["version"], vars(record)["in_service"]) == ("version refused", 2, 1)
    assert "tables-0000.safetensors" in vars(record)["reason"]
    shutil.rmtree(tmp_path / "v0000000002")
    shutil.copytree(tmp_path / "other" / "v0000000002", tmp_path / "v0000000002")
    wait_until(lambda: in_service(follower) == 2)
    assert store.publish(snapshot(new_model(3))) == 3
    wait_until(lambda: in_service(follower) == 3)


def test_without_anything_in_service_the_newest_whole_version_is_taken(
    store: VersionStore, follower: Follower, tmp_path: Path
) -> None:
    for seed in (1, 2, 3, 4):
        store.publish(snapshot(new_model(seed)))
    flip(tmp_path / "v0000000004" / "manifest.json")
    (tmp_path / "v0000000003" / "dense.safetensors").unlink()
    follower.start()
    wait_until(lambda: in_service(follower) == 2)
    assert totals(follower)["versions_rejected"] == 2


@pytest.mark.parametrize("damage", [b"", b"{", b'{"version": "two"}'])
def test_a_damaged_pointer_changes_nothing_and_heals(
    store: VersionStore, follower: Follower, tmp_path: Path, damage: bytes
) -> None:
    store.publish(snapshot(new_model(1)))
    follower.start()
    wait_until(lambda: in_service(follower) == 1)
    (tmp_path / "current.json").write_bytes(damage)
    wait_until(lambda: b"recd_serving_store_errors_total 1.0" in follower._telemetry.exposition())
    assert in_service(follower) == 1
    store.publish(snapshot(new_model(2)))
    wait_until(lambda: in_service(follower) == 2)


def test_a_pinned_version_stays_until_the_newest_is_asked_for(store: VersionStore, follower: Follower) -> None:
    for seed in (1, 2, 3):
        store.publish(snapshot(new_model(seed)))
    follower.start()
    wait_until(lambda: in_service(follower) == 3)
    follower.go_to(1)
    assert in_service(follower) == 1
    store.publish(snapshot(new_model(4)))
    time.sleep(0.1)
    assert in_service(follower) == 1
    with pytest.raises(VersionError, match=r"version 77: manifest.json is missing"):
        follower.go_to(77)
    assert (in_service(follower), follower.pinned) == (1, 1)
    follower.go_to(None)
    assert (in_service(follower), follower.pinned) == (4, None)
    assert follower._telemetry.weights_to_server_ms.percentiles()["p50"] is None


def test_a_request_keeps_the_model_that_it_began_with(store: VersionStore, follower: Follower) -> None:
    body = msgspec.json.encode(request())
    for seed in (1, 2):
        store.publish(snapshot(new_model(seed)))
    follower.go_to(1)
    taken = follower.model
    assert taken is not None
    before = taken.score(body)
    follower.go_to(2)
    after = follower.model
    assert after is not None
    assert after.score(body).scores != before.scores
    assert taken.score(body) == before


@pytest.fixture
def unbuildable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 2 cannot be built, for a reason that nobody foresaw."""

    def build(version: Version) -> ServedModel:
        if version.manifest.version == 2:
            raise RuntimeError("out of memory")
        return ServedModel(version)

    monkeypatch.setattr(buffers, "ServedModel", build)


@pytest.mark.usefixtures("unbuildable")
def test_a_version_that_cannot_be_built_is_refused_once(
    store: VersionStore, follower: Follower, caplog: pytest.LogCaptureFixture
) -> None:
    store.publish(snapshot(new_model(1)))
    follower.start()
    wait_until(lambda: in_service(follower) == 1)
    with caplog.at_level(logging.ERROR, logger="serving"):
        store.publish(snapshot(new_model(2)))
        wait_until(lambda: totals(follower)["versions_rejected"] == 1)
        time.sleep(2 * following.FIRST_RETRY_S)
    [record] = caplog.records
    assert vars(record)["reason"] == "version 2: RuntimeError: out of memory"
    assert (in_service(follower), totals(follower)["versions_rejected"]) == (1, 1)
    store.publish(snapshot(new_model(3)))
    wait_until(lambda: in_service(follower) == 3)


def test_an_order_that_fails_unforeseen_is_counted(
    follower: Follower, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(version: int | None) -> None:
        raise RuntimeError(f"no {version}")

    monkeypatch.setattr(follower, "go_to", fail)
    telemetry = Telemetry()
    listener = ControlListener(CONFIG, follower=follower, telemetry=telemetry)
    order = b'{"target": "serving", "action": "reload", "version": 4}'
    listener._hear(Message("control", 0, 9, T0, None, order))
    assert [vars(record)["reason"] for record in caplog.records] == ["control[0]@9: RuntimeError: no 4"]
    assert b"recd_serving_control_errors_total 1.0" in telemetry.exposition()
