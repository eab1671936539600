"""Where the files of an archive lie: a folder, or an object store that fsspec knows."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import xxhash

from stream.archive.errors import ArchiveError, FileDamaged
from stream.archive.manifest import FileRecord
from stream.archive.place import open_place, protocols

OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss"}
"""They know no folders, and making one would make a bucket of whatever name was misspelt."""

MODIFIED = ("mtime", "LastModified", "last_modified")
"""What file systems call a file's last change in a listing; the others are asked file by file."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file as a listing shows it."""

    path: str
    """Below the archive's URL."""
    bytes: int
    info: Mapping[str, Any]


class ArchiveStore:
    """The files below one URL. They are written once, whole, under a name that is never used again."""

    def __init__(self, url: str) -> None:
        """Raises ArchiveError."""
        self._fs, self._root, self.url = open_place(url)

    def write(self, path: str, data: bytes) -> None:
        """Return when the file is closed, on a disk of this machine so that it survives a power cut.

        Raises ArchiveError.
        """
        place = f"{self._root}/{path}"
        try:
            if not OBJECT_STORES & set(protocols(self._fs)):
                self._fs.makedirs(place.rpartition("/")[0], exist_ok=True)
            with self._fs.open(place, "wb") as file:
                file.write(data)
                if "file" in protocols(self._fs):
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            raise ArchiveError(f"{self.url}/{path}: cannot be written: {error}; see archive.url") from None

    def read(self, record: FileRecord) -> bytes:
        """The bytes that were written. Raises FileDamaged."""
        place = f"{self.url}/{record.path}"
        try:
            data: bytes = self._fs.cat_file(f"{self._root}/{record.path}")
        except OSError as error:
            raise FileDamaged(f"{place}: the manifest lists it, but it cannot be read: {error}") from None
        if xxhash.xxh3_128_hexdigest(data) != record.xxh3_128:
            raise FileDamaged(f"{place}: {len(data)} bytes that are not those that were written ({record.bytes})")
        return data

    def files(self, folder: str) -> list[StoredFile]:
        """Its Parquet files, by path. Raises ArchiveError."""
        try:
            places = self._fs.find(f"{self._root}/{folder}", detail=True) if self._fs.exists(self._root) else {}
            return [
                StoredFile(place[len(self._root) + 1 :], int(info["size"]), info)
                for place, info in sorted(places.items())
                if place.endswith(".parquet")
            ]
        except OSError as error:
            raise ArchiveError(f"{self.url}/{folder}: cannot be listed: {error}") from None

    def delete(self, path: str) -> None:
        """For good. Raises ArchiveError."""
        try:
            self._fs.rm_file(f"{self._root}/{path}")
        except OSError as error:
            raise ArchiveError(f"{self.url}/{path}: cannot be deleted: {error}") from None

    def modified_ms(self, file: StoredFile) -> int:
        """When it was changed last. Raises ArchiveError."""
        shown = next((file.info[name] for name in MODIFIED if name in file.info), None)
        if isinstance(shown, int | float):
            return round(1000 * shown)
        try:
            modified = shown if isinstance(shown, datetime) else self._fs.modified(f"{self._root}/{file.path}")
        except OSError as error:
            raise ArchiveError(f"{self.url}/{file.path}: cannot be asked for its age: {error}") from None
        return round(1000 * (modified if modified.tzinfo else modified.replace(tzinfo=UTC)).timestamp())
