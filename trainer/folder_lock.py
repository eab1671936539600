"""One trainer per folder of cuts, and per folder of versions: a lock that the kernel releases when its holder ends."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from trainer.cut_files import CutError

logger = logging.getLogger("trainer.folder_lock")

CUTS, VERSIONS = ".lock", ".publisher.lock"
"""Two names: both may be one folder."""
PATIENCE_S = 10.0
"""The ranks of a trainer that was killed a moment ago may still be about to end."""
RETRY_S = 0.1


class FolderTaken(CutError):
    """Another trainer writes there."""


class FolderLock:
    """Holds the file `name` in `root` until `release` or the end of the process."""

    def __init__(
        self, root: Path, *, name: str = CUTS, key: str = "checkpoint_url", patience_s: float = PATIENCE_S
    ) -> None:
        """FolderTaken, with the holder's name, where another one still has it after `patience_s`; else CutError.

        `key` of the config names the folder.
        """
        path = root / name
        self._at = f"at $.trainer.{key}"
        try:
            root.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise CutError(f"{path}: {error} - {self._at}") from None
        try:
            self._wait(path, deadline_s=time.monotonic() + patience_s)
        except CutError:
            os.close(self._descriptor)
            raise
        with suppress(OSError):  # the name is for the reader of an error only, the disk may be full
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)

    def release(self) -> None:
        """Let others have it."""
        os.close(self._descriptor)

    def _wait(self, path: Path, *, deadline_s: float) -> None:
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline_s:
                    holder = os.pread(self._descriptor, 200, 0).decode(errors="replace") or "unknown"
                    raise FolderTaken(
                        f"{path}: another trainer holds it: {holder}; stop that one, "
                        f"or give this one a trainer.checkpoint_url and a trainer.versions_url of its own - {self._at}"
                    ) from None
                time.sleep(RETRY_S)
            except OSError as error:
                raise CutError(f"{path}: cannot be locked: {error} - {self._at}") from None
            else:
                return


def lock_versions(url: str) -> FolderLock | None:
    """Keep other trainers from publishing over this one's versions; None where the place knows no locks.

    FolderTaken where another one has it. A folder that cannot be written is no reason not to train: versions that
    cannot be published are reported, one by one.
    """
    filesystem, root = url_to_fs(url)
    if not isinstance(filesystem, LocalFileSystem):
        return None
    try:
        return FolderLock(Path(root), name=VERSIONS, key="versions_url")
    except FolderTaken:
        raise
    except CutError as error:
        logger.warning("the versions are not locked", extra={"reason": str(error)})
        return None
