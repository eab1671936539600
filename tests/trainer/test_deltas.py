"""Versions as deltas, on a folder and on a bucket: each stands for exactly its weights, or is refused by name."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

import numpy as np
import pytest

from trainer.version_reader import Route
from trainer.versions import Snapshot, TableShard, VersionError, VersionStore

ROWS, DIM = 400, 8


class Trained:
    """Two tables that move, and the versions that a trainer would make of them."""

    def __init__(self, seed: int = 0, *, lineage: str = "a") -> None:
        self.rng = np.random.default_rng(seed)
        self.lineage = lineage
        self.step = 0
        self.tables = {name: self.rng.random((ROWS, DIM), np.float32) for name in ("t_item", "t_user")}

    def full(self) -> Snapshot:
        shards = [TableShard(name, ROWS, DIM, 0, 0, weights.copy()) for name, weights in self.tables.items()]
        return self._snapshot(shards, base=0)

    def moved(self, *, base: int, rows: int = 5) -> Snapshot:
        """A step, and the delta that it makes: one table by column shards, the other by row shards."""
        self.step += 1
        shards = []
        for name, weights in self.tables.items():
            ids = np.sort(self.rng.choice(ROWS, rows, replace=False))
            weights[ids] += 1
            if name == "t_item":
                shards += [TableShard(name, ROWS, DIM, 0, c, weights[ids, c : c + 4].copy(), ids) for c in (0, 4)]
            else:
                halves = [(0, ids[ids < ROWS // 2]), (ROWS // 2, ids[ids >= ROWS // 2])]
                shards += [TableShard(name, ROWS, DIM, row, 0, weights[own].copy(), own) for row, own in halves]
        return self._snapshot(shards, base=base)

    def state(self) -> dict[str, np.ndarray]:
        return {name: weights.copy() for name, weights in self.tables.items()}

    def _snapshot(self, shards: list[TableShard], *, base: int) -> Snapshot:
        dense = {"over.weight": np.full((2, 3), self.step, np.float32)}
        return Snapshot(self.step, 100 * self.step, 7, 8, dense, shards, {"model": {}}, self.lineage, base)


@pytest.fixture(params=["folder", "bucket"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "versions") if request.param == "folder" else f"memory://{uuid.uuid4().hex}"


def chain(store: VersionStore, trained: Trained, *, deltas: int) -> dict[int, dict[str, np.ndarray]]:
    """A full version and so many deltas; the weights by version."""
    number = store.publish(trained.full())
    states = {number: trained.state()}
    for _ in range(deltas):
        number = store.publish(trained.moved(base=number))
        states[number] = trained.state()
    return states


def check(store: VersionStore, states: dict[int, dict[str, np.ndarray]], numbers: list[int]) -> None:
    for number in numbers:
        version = store.load(number)
        assert version.manifest.version == number
        assert version.dense["over.weight"][0, 0] == version.manifest.step
        for name, weights in states[number].items():
            np.testing.assert_array_equal(version.tables[name], weights, err_msg=f"{number} {name}")


def test_a_chain_of_deltas_is_every_version_that_was_published(url: str) -> None:
    store = VersionStore(url, keep=20)
    states = chain(store, Trained(), deltas=6)
    check(VersionStore(url, keep=1), states, list(states))
    manifests = [store.manifest(number) for number in states]
    assert [m.kind for m in manifests] == ["full", *["delta"] * 6]
    assert [m.base for m in manifests] == [0, 1, 2, 3, 4, 5, 6]
    assert max(m.size for m in manifests[1:]) < manifests[0].size / 10


def test_a_table_that_nothing_touched_is_in_no_file(url: str) -> None:
    store, trained = VersionStore(url, keep=9), Trained()
    states = chain(store, trained, deltas=1)
    states[store.publish(trained.moved(base=2, rows=0))] = trained.state()
    manifest = store.manifest(3)
    assert [(table.name, table.shards) for table in manifest.tables] == [("t_item", ()), ("t_user", ())]
    assert list(manifest.files) == ["dense.safetensors"]
    check(store, states, [3])


def test_what_a_kept_version_builds_on_is_kept(url: str) -> None:
    store, trained = VersionStore(url, keep=2), Trained()
    states = chain(store, trained, deltas=5)
    assert store.versions() == [1, 2, 3, 4, 5, 6]
    states[7] = store.publish(trained.moved(base=6)) and trained.state()
    store.add_full(trained.full(), version=7)
    states[8] = store.publish(trained.moved(base=7)) and trained.state()
    assert store.versions() == [7, 8]
    check(store, states, [7, 8])
    states[9] = store.publish(trained.moved(base=8)) and trained.state()
    states[10] = store.publish(trained.full()) and trained.state()
    states[11] = store.publish(trained.moved(base=10)) and trained.state()
    assert store.versions() == [10, 11]
    check(store, states, [10, 11])


def test_one_who_starts_late_reads_the_nearest_full_one(url: str) -> None:
    store, trained = VersionStore(url, keep=20), Trained()
    states = chain(store, trained, deltas=4)
    store.add_full(trained.full(), version=5)
    states[6] = store.publish(trained.moved(base=5)) and trained.state()

    def way(route: Route) -> tuple[int | None, list[int]]:
        return route.full and route.full.manifest.version, [manifest.version for manifest in route.deltas]

    assert store.reach(6, way) == (5, [6])
    assert store.reach(6, way, at=store.manifest(3)) == (None, [4, 5, 6])
    assert store.reach(4, way, at=store.manifest(6)) == (1, [2, 3, 4])
    check(store, states, list(states))


@pytest.mark.parametrize("damage", ["flipped", "missing", "manifest"])
def test_a_broken_delta_is_named_until_a_full_version_follows_it(tmp_path: Path, damage: str) -> None:
    store, trained = VersionStore(str(tmp_path), keep=20), Trained()
    states = chain(store, trained, deltas=3)
    folder = tmp_path / "v0000000003"
    path = folder / ("manifest.json" if damage == "manifest" else "tables-0000.safetensors")
    if damage == "missing":
        shutil.rmtree(folder)
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
    for number in (3, 4):
        with pytest.raises(VersionError, match="version 3"):
            store.load(number)
    check(store, states, [1, 2])
    states[5] = store.publish(trained.moved(base=4)) and trained.state()
    with pytest.raises(VersionError, match="version 3"):
        store.load(5)
    store.add_full(trained.full(), version=5)
    states[6] = store.publish(trained.moved(base=5)) and trained.state()
    check(store, states, [5, 6])


def test_a_broken_full_form_leaves_the_way_over_the_one_before(tmp_path: Path) -> None:
    store, trained = VersionStore(str(tmp_path), keep=20), Trained()
    states = chain(store, trained, deltas=3)
    store.add_full(trained.full(), version=4)
    for name in ("tables-0000.safetensors", "manifest.json"):
        path = tmp_path / "v0000000004-full" / name
        path.write_bytes(path.read_bytes()[:-1])
        check(store, states, [4])


def test_a_delta_follows_only_what_this_store_published_last(url: str) -> None:
    store, trained = VersionStore(url, keep=20), Trained()
    chain(store, trained, deltas=2)
    for snapshot in (trained.moved(base=2), trained.moved(base=4), Trained(lineage="b").moved(base=3)):
        with pytest.raises(VersionError, match=r"a delta to version \d cannot follow version 3: publish a full"):
            store.publish(snapshot)
    with pytest.raises(VersionError, match="cannot follow nothing"):
        VersionStore(url, keep=20).publish(trained.moved(base=3))
    assert store.newest() == 3


def test_two_lineages_in_one_place_are_never_mixed(tmp_path: Path) -> None:
    """As after a resume from an older cut, or with two trainers that write to one place."""
    one, other = VersionStore(str(tmp_path / "a"), keep=20), VersionStore(str(tmp_path / "a"), keep=20)
    trained, stranger = Trained(), Trained(1, lineage="b")
    states = chain(one, trained, deltas=1)
    states[3] = other.publish(stranger.full()) and stranger.state()
    states[4] = one.publish(trained.moved(base=2)) and trained.state()
    states[5] = other.publish(stranger.moved(base=3)) and stranger.state()
    check(one, states, [1, 2, 3, 4, 5])

    def way(route: Route) -> tuple[bool, list[int]]:
        return route.full is None, [manifest.version for manifest in route.deltas]

    assert one.reach(4, way, at=one.manifest(3)) == (False, [2, 4])
    assert one.reach(5, way, at=one.manifest(3)) == (True, [5])
    shutil.rmtree(tmp_path / "a" / "v0000000003")
    lost = VersionStore(str(tmp_path / "lost"), keep=20)
    lost.publish(trained.full(), version=3)
    shutil.copytree(tmp_path / "lost" / "v0000000003", tmp_path / "a" / "v0000000003")
    with pytest.raises(VersionError, match="version 5: builds on version 3 of another lineage"):
        one.load(5)


IDS = np.array([3, 5])
BAD = [
    ([TableShard("t", ROWS, DIM, 0, 0, np.zeros((2, 4), np.float32), IDS)], "does not have its 8 columns"),
    ([TableShard("t", ROWS, DIM, 0, 0, np.zeros((2, DIM), np.float32), IDS[::-1])], "ascend"),
    ([TableShard("t", ROWS, DIM, 0, 0, np.zeros((2, DIM), np.float32), IDS + ROWS)], "ascend within 0 to 399"),
    ([TableShard("t", ROWS, DIM, 0, 0, np.zeros((3, DIM), np.float32), IDS)], r"int64\[n\] ids"),
    ([TableShard("t", ROWS, DIM, 0, 0, np.zeros((ROWS, DIM), np.float32))], "a delta version with a shard of another"),
]


@pytest.mark.parametrize(("shards", "complaint"), BAD)
def test_rows_that_are_no_delta_are_never_published(url: str, shards: list[TableShard], complaint: str) -> None:
    store = VersionStore(url, keep=2)
    store.publish(Trained().full())
    with pytest.raises(VersionError, match=complaint):
        store.publish(Snapshot(1, 1, 1, 1, {}, shards, {}, "a", base=1))
    assert (store.newest(), store.versions()) == (1, [1])


def test_the_folders_that_a_version_needs(tmp_path: Path) -> None:
    store, trained = VersionStore(str(tmp_path), keep=20), Trained()
    states = chain(store, trained, deltas=2)
    assert store.folders_for(3) == ["v0000000003", "v0000000002", "v0000000001"]
    store.add_full(trained.full(), version=3)
    states[4] = store.publish(trained.moved(base=3)) and trained.state()
    assert store.folders_for(4) == ["v0000000004", "v0000000003", "v0000000003-full"]
    for name in store.folders_for(4):
        shutil.copytree(tmp_path / name, tmp_path / "aside" / name)
    check(VersionStore(str(tmp_path / "aside"), keep=1), states, [3, 4])


def test_what_cannot_be_read_now_keeps_what_it_builds_on(tmp_path: Path) -> None:
    trained = Trained()
    states = chain(VersionStore(str(tmp_path), keep=3), trained, deltas=2)
    manifest = tmp_path / "v0000000003" / "manifest.json"
    manifest.rename(tmp_path / "aside")
    manifest.mkdir()
    store = VersionStore(str(tmp_path), keep=2)
    with pytest.raises(VersionError, match="version 4 is in force, older ones stay"):
        store.publish(trained.full())
    manifest.rmdir()
    (tmp_path / "aside").rename(manifest)
    check(store, states, [1, 2, 3])
    store.publish(trained.full())
    assert store.versions() == [4, 5]
