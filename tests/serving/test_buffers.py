"""Deltas in a server: between two requests, never half of one, and never the whole table for a few rows."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from serving.buffers import Buffers
from serving.follower import Follower
from serving.model import ServedModel
from serving.telemetry import Telemetry
from tests.serving.served_world import T0, new_model, request, snapshot
from tests.serving.test_follower import wait_until
from trainer.model import GroupedDLRM
from trainer.versions import Snapshot, TableShard, VersionError, VersionStore, apply_version

BODY = msgspec.json.encode(request())


class Published:
    """A model that moves by rows, and what of it is published."""

    def __init__(self, store: VersionStore) -> None:
        self.store = store
        self.model: GroupedDLRM = new_model(1)
        self._rng = np.random.default_rng(3)
        self.version = store.publish(replace(snapshot(self.model), lineage="a"))
        self.expected = {self.version: self.scores()}

    def scores(self) -> dict[str, list[float]]:
        """What an unsharded model with these very weights says."""
        store = VersionStore(f"memory://{id(self)}", keep=1)
        return ServedModel(store.load(store.publish(snapshot(self.model)))).score(BODY).scores

    def move(self, *, step: float = 0.1, full_form: bool = False) -> int:
        """Every dense weight and some rows of every table move; a delta says so."""
        whole = [replace(shard, weights=shard.weights.copy()) for shard in snapshot(self.model).shards]
        with torch.no_grad():
            for weights in self.model.parameters():
                weights.mul_(0.9).add_(torch.randn_like(weights) * step)
        moved = snapshot(self.model)
        shards = []
        for before, after in zip(whole, moved.shards, strict=True):
            ids = np.sort(self._rng.choice(before.rows, before.rows // 2, replace=False))
            weights = before.weights.copy()
            weights[ids] = after.weights[ids]
            self._set(before.table, weights)
            shards.append(TableShard(before.table, before.rows, before.dim, 0, 0, weights[ids], ids))
        base = self.version
        self.expected[base + 1] = self.scores()
        self.version = self.store.publish(replace(moved, shards=shards, lineage="a", base=base))
        if full_form:
            self.store.add_full(replace(snapshot(self.model), lineage="a"), version=self.version)
        return self.version

    def _set(self, table: str, weights: np.ndarray) -> None:
        [key] = [key for key in self.model.state_dict() if f".{table}." in key]
        with torch.no_grad():
            self.model.state_dict()[key].copy_(torch.from_numpy(weights))


@pytest.fixture
def published(tmp_path: Path) -> Published:
    return Published(VersionStore(str(tmp_path), keep=1000))


@pytest.fixture
def follower(published: Published) -> Iterator[Follower]:
    made = Follower(published.store, poll_ms=1, telemetry=Telemetry(), clock_ms=lambda: T0)
    yield made
    made.stop()


def scored(model: ServedModel | None) -> tuple[int, dict[str, list[float]]]:
    assert model is not None
    answer = model.score(BODY)
    return answer.version, answer.scores


def test_every_version_scores_as_its_trainer_at_any_moment_under_load(published: Published, follower: Follower) -> None:
    """Threads score without pause while deltas arrive without pause: every answer is one version's, exactly."""
    follower.start()
    wait_until(lambda: follower.model is not None)
    answers: list[list[tuple[int, dict[str, list[float]]]]] = [[], []]
    done = threading.Event()

    def score(into: list[tuple[int, dict[str, list[float]]]]) -> None:
        while not done.is_set():
            into.append(scored(follower.model))

    threads = [threading.Thread(target=score, args=(into,)) for into in answers]
    for thread in threads:
        thread.start()
    for i in range(15):
        version = published.move(full_form=i == 7)
        wait_until(lambda wanted=version: follower.model is not None and follower.model.version == wanted)  # type: ignore[misc]
    done.set()
    for thread in threads:
        thread.join()
    seen = set()
    for version, scores in (answer for into in answers for answer in into):
        seen.add(version)
        assert scores == published.expected[version]
    assert len(seen) > 5
    assert len({str(scores) for scores in published.expected.values()}) == len(published.expected)
    assert follower._telemetry.counters()["versions_rejected"] == 0


def test_a_delta_copies_no_table_once_there_are_two(published: Published) -> None:
    buffers = Buffers(published.store)
    assert scored(buffers.take(1))[1] == published.expected[1]
    seen = set()
    for _ in range(6):
        model = buffers.take(published.move())
        assert scored(model) == (published.version, published.expected[published.version])
        seen.add(id(model.module))
    assert (buffers.copies, len(seen)) == (1, 2)


def test_weights_that_a_request_holds_are_never_changed(published: Published) -> None:
    buffers = Buffers(published.store)
    held = [buffers.take(1)]
    held += [buffers.take(published.move()) for _ in range(3)]
    for model in held:
        assert scored(model) == (model.version, published.expected[model.version])
    assert buffers.copies == 3
    del held, model
    buffers.take(published.move())
    assert buffers.copies == 3


def test_several_deltas_are_one_step(published: Published) -> None:
    buffers = Buffers(published.store)
    buffers.take(1)
    for jump in (1, 3, 2, 1):
        version = [published.move() for _ in range(jump)][-1]
        assert scored(buffers.take(version)) == (version, published.expected[version])
    assert buffers.copies == 1


def test_going_back_and_forth(published: Published) -> None:
    for i in range(6):
        published.move(full_form=i == 3)
    buffers = Buffers(published.store)
    for version in (7, 2, 3, 6, 5, 1, 4, 7):
        assert scored(buffers.take(version)) == (version, published.expected[version])


@pytest.mark.parametrize("name", ["tables-0000.safetensors", "dense.safetensors", "manifest.json"])
def test_a_damaged_delta_is_never_served_and_the_next_full_version_heals(
    published: Published, follower: Follower, tmp_path: Path, name: str
) -> None:
    follower.start()
    wait_until(lambda: follower.model is not None)
    published.move()
    wait_until(lambda: scored(follower.model)[0] == 2)
    follower.go_to(2)
    published.move()
    path = tmp_path / "v0000000003" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 8
    path.write_bytes(data)
    published.move()
    follower.go_to(None)  # follows the newest, which cannot be had
    with pytest.raises(VersionError, match="version 3"):
        follower.go_to(4)
    assert scored(follower.model) == (2, published.expected[2])
    published.move(full_form=True)
    follower.go_to(None)
    wait_until(lambda: scored(follower.model)[0] == 5)
    assert scored(follower.model)[1] == published.expected[5]


def test_a_delta_to_another_model_is_refused(published: Published) -> None:
    buffers = Buffers(published.store)
    buffers.take(1)
    bare = Snapshot(2, 2, T0, T0, {}, [], snapshot(published.model).config, "a", 1)
    published.store.publish(bare)
    with pytest.raises(VersionError, match="delta to another model"):
        buffers.take(2)


def test_one_that_starts_late_catches_up(published: Published, follower: Follower) -> None:
    for i in range(8):
        published.move(full_form=i == 4)
    follower.start()
    wait_until(lambda: follower.model is not None and follower.model.version == 9)
    assert scored(follower.model) == (9, published.expected[9])
    model = new_model(0)
    apply_version(model, published.store.load(9))
    for key, weights in published.model.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], weights, rtol=0, atol=0)
