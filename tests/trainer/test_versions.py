"""Published versions on a real file system: what is written comes back, damage is named, a crash changes nothing."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from trainer.versions import Snapshot, TableShard, VersionError, VersionStore, apply_version

ROWS, DIM = 37, 8


def table(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((ROWS, DIM), dtype=np.float32)


def shard(weights: np.ndarray, *, name: str = "t_item", row: int = 0, col: int = 0) -> TableShard:
    return TableShard(name, ROWS, DIM, row, col, weights)


def snapshot(step: int, *, shards: list[TableShard] | None = None) -> Snapshot:
    return Snapshot(
        step=step,
        samples=step * 100,
        stream_time_ms=1_700_000_000_000 + step,
        weights_ms=1_700_000_001_000 + step,
        dense={"over.0.weight": np.full((3, 2), step, np.float32), "over.0.bias": np.arange(3, dtype=np.float32)},
        shards=[shard(table(step))] if shards is None else shards,
        config={"features": [{"name": "item"}], "labels": [], "model": {"dim": DIM}},
    )


@pytest.fixture(params=["folder", "bucket"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "versions") if request.param == "folder" else f"memory://{uuid.uuid4().hex}"


def test_what_was_published_comes_back(url: str) -> None:
    store = VersionStore(url, keep=3)
    assert (store.newest(), store.versions()) == (None, [])
    assert [store.publish(snapshot(step)) for step in (5, 6)] == [1, 2]
    assert (store.newest(), store.versions()) == (2, [1, 2])
    for version, step in ((1, 5), (2, 6)):
        loaded = VersionStore(url, keep=1).load(version)
        assert loaded.manifest.step == step
        assert loaded.manifest.samples == step * 100
        assert loaded.manifest.config == snapshot(step).config
        np.testing.assert_array_equal(loaded.tables["t_item"], table(step))
        np.testing.assert_array_equal(loaded.dense["over.0.weight"], np.full((3, 2), step, np.float32))


def test_the_form_on_disk_is_the_documented_one(tmp_path: Path) -> None:
    VersionStore(str(tmp_path), keep=3).publish(snapshot(7))
    assert json.loads((tmp_path / "current.json").read_bytes()) == {"version": 1}
    folder = tmp_path / "v0000000001"
    manifest = json.loads((folder / "manifest.json").read_bytes())
    assert (manifest["format"], manifest["kind"], manifest["version"], manifest["samples"]) == (2, "full", 1, 700)
    assert set(manifest["files"]) | {"manifest.json"} == {path.name for path in folder.iterdir()}
    for name, entry in manifest["files"].items():
        assert entry["bytes"] == (folder / name).stat().st_size
    [entry] = manifest["tables"]
    [part] = entry["shards"]
    stored = safetensors.numpy.load_file(folder / part["file"])
    np.testing.assert_array_equal(stored[part["tensor"]], table(7))
    assert (entry["name"], entry["rows"], entry["dim"]) == ("t_item", ROWS, DIM)


def test_shards_are_put_together_wherever_they_lie(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.version_files.FILE_BYTES", 200)
    items, users = table(1), table(2)
    shards = [
        shard(items[20:, :4], row=20),
        shard(users, name="t_user"),
        shard(items[:20, 4:], col=4),
        shard(items[20:, 4:], row=20, col=4),
        shard(items[:20, :4]),
    ]
    store = VersionStore(url, keep=1)
    loaded = store.load(store.publish(snapshot(1, shards=shards)))
    assert len(loaded.manifest.files) > 2
    np.testing.assert_array_equal(loaded.tables["t_item"], items)
    np.testing.assert_array_equal(loaded.tables["t_user"], users)


@pytest.mark.parametrize(
    ("shards", "complaint"),
    [
        ([shard(table(1)[:10])], "do not cover"),
        ([shard(table(1)), shard(table(1)[:1], row=1)], "overlap"),
        ([shard(table(1)[:10], row=30)], "outside"),
        ([shard(table(1).astype(np.float64))], "float64"),
        ([shard(table(1)[:20]), TableShard("t_item", ROWS + 1, DIM, 20, 0, table(1)[20:])], "do not agree"),
    ],
)
def test_shards_that_are_no_table_are_never_published(url: str, shards: list[TableShard], complaint: str) -> None:
    store = VersionStore(url, keep=1)
    store.publish(snapshot(1))
    with pytest.raises(VersionError, match=f"t_item.*{complaint}"):
        store.publish(snapshot(2, shards=shards))
    assert (store.newest(), store.versions()) == (1, [1])


def test_old_versions_go_and_numbers_never_return(url: str) -> None:
    store = VersionStore(url, keep=2)
    for step in range(5):
        store.publish(snapshot(step))
    assert store.versions() == [4, 5]
    assert VersionStore(url, keep=2).publish(snapshot(9), version=11) == 11
    with pytest.raises(VersionError, match="11 is there already"):
        store.publish(snapshot(9), version=11)
    assert (store.versions(), store.newest()) == ([5, 11], 11)
    with pytest.raises(VersionError, match=r"version 1: manifest.json is missing"):
        store.load(1)


@pytest.mark.parametrize("name", ["manifest.json", "dense.safetensors", "tables-0000.safetensors"])
def test_any_flipped_bit_and_any_truncation_is_named(tmp_path: Path, name: str) -> None:
    store = VersionStore(str(tmp_path), keep=2)
    store.publish(snapshot(1))
    path = tmp_path / "v0000000001" / name
    whole = path.read_bytes()
    for position in np.random.default_rng(0).integers(0, len(whole), 60):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(position % 8)
        path.write_bytes(damaged)
        with pytest.raises(VersionError, match=f"version 1: .*{name}"):
            store.load(1)
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(VersionError, match=f"version 1: .*{name}"):
            store.load(1)
    path.unlink()
    with pytest.raises(VersionError, match=f"version 1: {name} is missing"):
        store.load(1)
    path.write_bytes(whole)
    assert store.load(1).manifest.step == 1


def test_a_version_under_another_number_is_refused(tmp_path: Path) -> None:
    store = VersionStore(str(tmp_path), keep=2)
    store.publish(snapshot(1))
    shutil.copytree(tmp_path / "v0000000001", tmp_path / "v0000000007")
    with pytest.raises(VersionError, match=r"version 7: .* is of version 1"):
        store.load(7)


@pytest.mark.parametrize("damage", [b"", b"{", b'{"version": "x"}', b'{"version": -1}', b"\xff"])
def test_a_damaged_pointer_is_named_and_the_next_publication_heals_it(tmp_path: Path, damage: bytes) -> None:
    store = VersionStore(str(tmp_path), keep=2)
    store.publish(snapshot(1))
    (tmp_path / "current.json").write_bytes(damage)
    with pytest.raises(VersionError, match=r"current\.json"):
        store.newest()
    assert VersionStore(str(tmp_path), keep=2).publish(snapshot(2)) == 2
    assert store.newest() == 2


def test_a_disk_that_fills_up_leaves_the_former_version_in_force(tmp_path: Path) -> None:
    store = VersionStore(str(tmp_path), keep=3)
    store.publish(snapshot(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, hard))
    try:
        with pytest.raises(VersionError, match=r"could not be published: .*File too large"):
            store.publish(snapshot(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["current.json", "v0000000001"]
    assert store.load(1).manifest.step == 1
    assert store.publish(snapshot(3)) == 2


def test_only_own_leftovers_are_cleaned_and_reading_cleans_nothing(tmp_path: Path) -> None:
    for name in (".writing-v0000000004", "v0000000003", "checkpoints", "v1"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "part").write_bytes(b"x")
    store = VersionStore(str(tmp_path), keep=1)
    assert (store.newest(), store.versions()) == (None, [])
    assert len(list(tmp_path.iterdir())) == 4
    assert store.publish(snapshot(1)) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"current.json", "v0000000001", "checkpoints", "v1"}


PUBLISH_FOR_EVER = """
import sys
import numpy as np
from trainer.versions import Snapshot, TableShard, VersionStore
store, step = VersionStore(sys.argv[1], keep=3), 0
while True:
    step += 1
    weights = np.random.default_rng(step).random((37, 8), dtype=np.float32)
    store.publish(Snapshot(step, step, step, step, {}, [TableShard("t_item", 37, 8, 0, 0, weights)], {}))
"""


@pytest.mark.slow
def test_killed_at_any_moment_the_version_in_force_is_whole_and_newer_than_before(tmp_path: Path) -> None:
    """A process publishes without pause and is killed with -9, again and again; a reader looks all the time."""
    reader = VersionStore(str(tmp_path), keep=1)
    random, newest, leftovers = np.random.default_rng(1), 0, 0
    for _ in range(12):
        process = subprocess.Popen([sys.executable, "-c", PUBLISH_FOR_EVER, str(tmp_path)])
        try:
            started_at = newest
            while newest < started_at + 3:
                assert process.poll() is None
                newest = max(newest, reader.newest() or 0)
            time.sleep(float(random.uniform(0, 0.02)))
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        in_force = reader.newest()
        assert in_force is not None
        assert in_force >= newest
        loaded = reader.load(in_force)
        assert loaded.manifest.samples == loaded.manifest.step
        np.testing.assert_array_equal(loaded.tables["t_item"], table(loaded.manifest.step))
        newest = in_force
        leftovers += len([path for path in tmp_path.iterdir() if path.name.startswith(".writing")])
        # Three are kept, one may be whole and not yet in force, one not yet deleted.
        assert len(reader.versions()) <= 5
    assert leftovers
    VersionStore(str(tmp_path), keep=3).publish(snapshot(1))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".writing-v")]


class Model(torch.nn.Module):
    """One table and one dense layer, named as the trainer's model names them."""

    def __init__(self) -> None:
        super().__init__()
        config = EmbeddingBagConfig(name="t_item", embedding_dim=DIM, num_embeddings=ROWS, feature_names=["item"])
        self.tables = torch.nn.ModuleDict({"item": EmbeddingBagCollection(tables=[config])})
        self.over = torch.nn.Sequential(torch.nn.Linear(2, 3))


def test_weights_are_put_into_an_unsharded_model(tmp_path: Path) -> None:
    store, model = VersionStore(str(tmp_path), keep=1), Model()
    apply_version(model, store.load(store.publish(snapshot(4))))
    state = model.state_dict()
    np.testing.assert_array_equal(state["tables.item.embedding_bags.t_item.weight"].numpy(), table(4))
    np.testing.assert_array_equal(state["over.0.weight"].numpy(), np.full((3, 2), 4, np.float32))


def test_a_model_of_another_shape_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    store, model = VersionStore(str(tmp_path), keep=5), Model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    other = snapshot(1, shards=[shard(table(1), name="t_other")])
    larger = snapshot(1, shards=[TableShard("t_item", ROWS + 1, DIM, 0, 0, np.zeros((ROWS + 1, DIM), np.float32))])
    with pytest.raises(VersionError, match=r"missing \['table t_item'\], not used \['table t_other'\]"):
        apply_version(model, store.load(store.publish(other)))
    with pytest.raises(VersionError, match=r"table t_item is \[38, 8\], the model has \[37, 8\]"):
        apply_version(model, store.load(store.publish(larger)))
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


def test_an_unknown_scheme_is_a_named_error() -> None:
    with pytest.raises(VersionError, match="nosuch"):
        VersionStore("nosuch://bucket/versions", keep=1)
