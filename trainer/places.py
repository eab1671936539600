"""A folder or an object store, as a place where whole folders appear at once and a pointer is replaced at once."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from trainer.durable import sync_folder, write_through

TEMPORARY = ".writing-"
"""Prefix of what is not finished; a reader never looks at it."""


class Place(Protocol):
    """Folders of files under one root. All failures are OSErrors; a missing file is a FileNotFoundError."""

    def read(self, path: str) -> bytes:
        """The bytes of one file, `path` relative to the root."""
        ...

    def folders(self) -> list[str]:
        """Names of all folders, finished or not."""
        ...

    def folders_with(self, marker: str) -> list[str]:
        """Names of the folders that hold a file of the name `marker`."""
        ...

    def write_folder(self, name: str, files: Iterable[tuple[str, bytes]]) -> None:
        """Write the files in their order; the folder counts as written once the last one is there."""
        ...

    def replace(self, name: str, data: bytes) -> None:
        """Write or replace one file of the root: a reader sees the old bytes or the new ones."""
        ...

    def remove(self, name: str, *, marker: str) -> None:
        """Delete a folder, `marker` first, so that a half deleted one is never taken for whole."""
        ...


class LocalPlace:
    """A folder of this machine: temporary name, fsync, rename."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, path: str) -> bytes:
        return (self._root / path).read_bytes()

    def folders(self) -> list[str]:
        return [path.name for path in self._root.iterdir() if path.is_dir()] if self._root.exists() else []

    def folders_with(self, marker: str) -> list[str]:
        return [path.parent.name for path in self._root.glob(f"*/{marker}") if not _is_temporary(path.parent.name)]

    def write_folder(self, name: str, files: Iterable[tuple[str, bytes]]) -> None:
        """A crash before the rename leaves a folder with a temporary name, after it a finished one."""
        temporary = self._root / f"{TEMPORARY}{name}"
        temporary.mkdir(parents=True)
        try:
            for file_name, data in files:
                write_through(temporary / file_name, data)
            sync_folder(temporary)
            temporary.rename(self._root / name)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(self._root)

    def replace(self, name: str, data: bytes) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        temporary = self._root / f"{TEMPORARY}{name}"
        try:
            write_through(temporary, data)
            temporary.replace(self._root / name)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync_folder(self._root)

    def remove(self, name: str, *, marker: str) -> None:
        (self._root / name / marker).unlink(missing_ok=True)
        shutil.rmtree(self._root / name)


class BucketPlace:
    """An object store: each object appears whole, so the order of writing is all that is needed."""

    def __init__(self, filesystem: Any, root: str) -> None:
        self._fs = filesystem
        self._root = root.rstrip("/")

    def read(self, path: str) -> bytes:
        data = self._fs.cat_file(f"{self._root}/{path}")
        return bytes(data)

    def folders(self) -> list[str]:
        self._fs.invalidate_cache()
        with suppress(FileNotFoundError):
            entries = self._fs.ls(self._root, detail=True)
            return [_last(entry["name"]) for entry in entries if entry["type"] == "directory"]
        return []

    def folders_with(self, marker: str) -> list[str]:
        self._fs.invalidate_cache()
        return [_last(_parent(path)) for path in self._fs.glob(f"{self._root}/*/{marker}")]

    def write_folder(self, name: str, files: Iterable[tuple[str, bytes]]) -> None:
        """A crash before the last file leaves a folder without it."""
        for file_name, data in files:
            self._fs.pipe_file(f"{self._root}/{name}/{file_name}", data)

    def replace(self, name: str, data: bytes) -> None:
        self._fs.pipe_file(f"{self._root}/{name}", data)

    def remove(self, name: str, *, marker: str) -> None:
        with suppress(FileNotFoundError):
            self._fs.rm_file(f"{self._root}/{name}/{marker}")
        self._fs.rm(f"{self._root}/{name}", recursive=True)


def open_place(url: str) -> Place:
    """The place behind a path or an fsspec URL; OSError where the scheme is unknown or its package is missing."""
    try:
        filesystem, root = url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise OSError(f"{url}: {error}") from None
    if isinstance(filesystem, LocalFileSystem):
        return LocalPlace(Path(root))
    return BucketPlace(filesystem, str(root))


def _is_temporary(name: str) -> bool:
    return name.startswith(TEMPORARY)


def _parent(path: str) -> str:
    return path.rstrip("/").rpartition("/")[0]


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]
