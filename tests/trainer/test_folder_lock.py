"""Two trainers never write into one folder of cuts, and a killed one leaves it free."""

import subprocess
import sys
from pathlib import Path

import pytest

from trainer.cut import CutError, CutStore
from trainer.folder_lock import FolderLock, FolderTaken, lock_versions
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
    monkeypatch.setitem(FolderLock.__init__.__kwdefaults__, "patience_s", 0.0)
    ranks = join()
    try:
        first, second, third = (CutStore(str(tmp_path / name), keep=1, ranks=ranks) for name in ("cuts", "cuts", "own"))
        versions = str(tmp_path / "cuts")  # one folder for both is allowed
        first.hold(versions_url=versions)
        with pytest.raises(CutError, match="another trainer holds it"):
            second.hold()
        with pytest.raises(CutError, match=r"another trainer holds it.*versions_url of its own - at .*versions_url"):
            third.hold(versions_url=versions)
        third.hold()
        third.release()
        first.release()
        second.hold(versions_url=versions)
        second.release()
    finally:
        leave()


def test_versions_that_cannot_be_locked_do_not_stop_training(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "file").write_bytes(b"")
    assert lock_versions(f"file://{tmp_path}/file/versions") is None
    assert "the versions are not locked" in caplog.messages
    assert lock_versions("memory://versions") is None


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CutError, match=r"file/cuts/\.lock: .*Not a directory.*\$\.trainer\.checkpoint_url"):
        FolderLock(tmp_path / "file" / "cuts")
