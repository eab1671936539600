"""Two trainers never write into one folder of cuts, and a killed one leaves it free."""

import subprocess
import sys
from pathlib import Path

import pytest

from trainer.cut import CutError, CutStore
from trainer.folder_lock import FolderLock, FolderTaken
from trainer.ranks import join, leave

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys, time
from pathlib import Path
from trainer.folder_lock import FolderLock
FolderLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


def holder(root: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(root)], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def test_the_folder_is_free_again_when_its_holder_is_killed(tmp_path: Path):
    with holder(tmp_path / "cuts") as other:
        try:
            with pytest.raises(FolderTaken, match=rf"another trainer holds it: process {other.pid} on "):
                FolderLock(tmp_path / "cuts", patience_s=0)
        finally:
            other.kill()
        FolderLock(tmp_path / "cuts", patience_s=30).release()


def test_a_second_trainer_of_a_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(FolderLock.__init__, "__kwdefaults__", {"patience_s": 0.0})
    ranks = join()
    try:
        first, second = (CutStore(str(tmp_path / "cuts"), keep=1, ranks=ranks) for _ in range(2))
        first.hold()
        with pytest.raises(CutError, match="another trainer holds it"):
            second.hold()
        assert first._lock is not None
        first._lock.release()
        second.hold()
        assert second._lock is not None
        second._lock.release()
    finally:
        leave()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CutError, match=r"file/cuts/\.lock: .*Not a directory.*\$\.trainer\.checkpoint_url"):
        FolderLock(tmp_path / "file" / "cuts")
