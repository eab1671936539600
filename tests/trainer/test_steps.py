"""The lines of `steps.jsonl` survive crashes and full disks, and never tell of what is not in force."""

import resource
from pathlib import Path

from trainer.steps import StepLog, steps_path


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True) if path.exists() else []


def test_lines_beyond_the_cut_and_a_torn_line_are_dropped(tmp_path: Path):
    path = steps_path(tmp_path, rank=0)
    log = StepLog(path)
    for step in range(1, 8):
        log.append({"step": step})
    with path.open("ab") as file:
        file.write(b'{"step":8,"lo')
    again = StepLog(path)
    again.keep_until(5)
    again.append({"step": 6})
    assert lines(path) == [b'{"step":%d}\n' % step for step in range(1, 7)]


def test_ranks_have_files_of_their_own(tmp_path: Path):
    assert steps_path(tmp_path, rank=0).name == "steps.jsonl"
    assert steps_path(tmp_path, rank=3).name == "steps-3.jsonl"


def test_a_full_disk_loses_no_line(tmp_path: Path):
    path = steps_path(tmp_path, rank=0)
    log = StepLog(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        for step in range(1, 21):
            log.append({"step": step})
        assert log.failures > 0
        assert "steps.jsonl" in log.last_error
        assert all(line.endswith(b"\n") for line in lines(path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    log.append({"step": 21})
    assert lines(path) == [b'{"step":%d}\n' % step for step in range(1, 22)]


def test_a_large_file_makes_room(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("trainer.steps.MAX_BYTES", 50)
    path = steps_path(tmp_path, rank=0)
    log = StepLog(path)
    for step in range(1, 8):
        log.append({"step": step})
    kept = lines(tmp_path / "steps.jsonl.old") + lines(path)
    assert kept[-1] == b'{"step":7}\n'
    assert len(lines(path)) < 7
    log.keep_until(3)
    assert all(int(line[8:-2]) <= 3 for line in lines(tmp_path / "steps.jsonl.old") + lines(path))
