"""Cuts on a real file system: the newest whole one is loaded, damage is found before anything is opened."""

import json
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer.cut import CutError, CutRecord, CutStore
from trainer.cut_files import Progress
from trainer.ranks import Ranks, join, leave


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    yield join()
    leave()


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"model/a": torch.full((20, 8), value), "dense/a/step": torch.tensor(value)}


def record(step: int) -> CutRecord:
    progress = Progress(position=step, samples=step * 10, id_sum=str(2**63 + step))
    return CutRecord(
        step=step,
        samples=step * 10,
        stream_time_ms=-5,
        world_size=1,
        threads=1,
        column_shards={"a": 1},
        written_ms=1,
        topic="batches",
        topic_id="x",
        schema="s",
        partitions={"0": progress},
        schedule=(0,),
    )


def write(store: CutStore, step: int) -> str:
    return store.write(tensors(step), record=record(step), arrays={"sums": np.arange(step, dtype=np.float64)})


def load(store: CutStore) -> tuple[int, list[str]]:
    """Which step came back, checked in every part, and what was passed over."""
    given = tensors(-1)
    loaded = store.load(given)
    assert loaded is not None
    step = loaded.record.step
    assert loaded.record == record(step)
    assert all(bool((tensor == step).all()) for tensor in given.values())
    assert loaded.arrays[0]["sums"].tolist() == list(range(step))
    return step, loaded.passed_over


@pytest.fixture
def store(tmp_path: Path, ranks: Ranks) -> CutStore:
    return CutStore(str(tmp_path / "cuts"), keep=3, ranks=ranks)


def test_no_cut_is_a_fresh_start(store: CutStore):
    assert store.load(tensors(0)) is None


def test_what_is_written_comes_back_and_old_cuts_go(store: CutStore):
    names = [write(store, step) for step in range(1, 7)]
    assert load(store) == (6, [])
    assert sorted(path.name for path in store.root.iterdir()) == sorted([*names[-3:], "current.json"])
    assert json.loads((store.root / "current.json").read_text()) == {"cut": names[-1]}


def files_of_a_cut(store: CutStore) -> list[str]:
    return sorted(path.name for path in (store.root / "cut-0000000001").iterdir())


def test_a_cut_is_made_of_these_files(store: CutStore):
    write(store, 1)
    assert files_of_a_cut(store) == [".metadata", "__0_0.distcp", "cut.json", "digests.json", "rank-0000.safetensors"]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.parametrize("damage", [flip, cut_short, empty, Path.unlink], ids=lambda d: d.__name__)
@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "cut.json", "digests.json", "rank-0000.safetensors"])
def test_damage_to_any_file_falls_back_to_the_cut_before(store: CutStore, name: str, damage):
    write(store, 1)
    newest = write(store, 2)
    damage(store.root / newest / name)
    step, passed_over = load(store)
    assert step == 1
    assert len(passed_over) == 1
    assert newest in passed_over[0]


def test_a_file_too_many_is_damage(store: CutStore):
    write(store, 1)
    (store.root / write(store, 2) / "more").write_bytes(b"")
    step, passed_over = load(store)
    assert (step, "not in digests.json" in passed_over[0]) == (1, True)


@pytest.mark.parametrize("content", [b"", b"{", b'{"cut": "../x"}', b'{"cut": "cut-0000000009"}', b"\xff\xfe"])
def test_a_damaged_pointer_leads_to_the_newest_whole_cut(store: CutStore, content: bytes):
    write(store, 1)
    write(store, 2)
    (store.root / "current.json").write_bytes(content)
    step, passed_over = load(store)
    assert step == 2
    assert "current.json" in passed_over[0]


def test_no_whole_cut_at_all_is_an_error_that_says_what_to_do(store: CutStore):
    for step in (1, 2):
        flip(store.root / write(store, step) / "cut.json")
    with pytest.raises(CutError, match=r"no cut in .* can be used: .*cut-0000000002.*cut-0000000001.*start anew"):
        store.load(tensors(0))
    shutil.rmtree(store.root / "cut-0000000001")
    shutil.rmtree(store.root / "cut-0000000002")
    with pytest.raises(CutError, match="is not there"):
        store.load(tensors(0))


class Crash(Exception):
    pass


class CrashAt:
    def __init__(self, stage: str) -> None:
        self._stage = stage

    def __call__(self, stage: str) -> None:
        if stage == self._stage:
            raise Crash


@pytest.mark.parametrize(
    ("stage", "in_force"),
    [(stage, 1) for stage in ("begun", "tensors", "arrays", "record", "sealed", "renamed")]
    + [("current", 2), ("retained", 2)],
)
def test_a_crash_leaves_the_former_cut_or_the_new_one_whole(tmp_path: Path, ranks: Ranks, stage: str, in_force: int):
    url = str(tmp_path / "cuts")
    write(CutStore(url, keep=3, ranks=ranks), 1)
    with pytest.raises(Crash):
        write(CutStore(url, keep=3, ranks=ranks, hook=CrashAt(stage)), 2)
    after = CutStore(url, keep=3, ranks=ranks)
    after.clean()
    assert load(after) == (in_force, [])
    assert not [path for path in after.root.iterdir() if path.name.startswith(".")]
    write(after, 3)
    assert load(after) == (3, [])


def test_a_full_disk_leaves_the_former_cut_and_no_rubbish(store: CutStore):
    write(store, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in (0, 100, 1_000, 2_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            with pytest.raises(CutError, match="the cut could not be written"):
                write(store, 2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert load(store) == (1, [])
        assert sorted(path.name for path in store.root.iterdir() if path.is_dir()) == ["cut-0000000001"]
    write(store, 2)
    assert load(store) == (2, [])


def test_another_model_is_refused_by_name(store: CutStore):
    write(store, 1)
    larger = tensors(0) | {"model/a": torch.zeros(21, 8)}
    with pytest.raises(CutError, match=r"model/a is \[20, 8\] in the cut and \[21, 8\] in the model"):
        store.load(larger)
    with pytest.raises(CutError, match=r"model/b is missing in the cut and \[1\] in the model"):
        store.load(tensors(0) | {"model/b": torch.zeros(1)})
    fewer = {"model/a": torch.zeros(20, 8)}
    with pytest.raises(CutError, match=r"dense/a/step is \[\] in the cut and missing in the model"):
        store.load(fewer)


def test_cuts_go_to_a_folder_only(ranks: Ranks):
    with pytest.raises(CutError, match=r"memory://cuts: .*\$\.trainer\.checkpoint_url"):
        CutStore("memory://cuts", keep=1, ranks=ranks)
