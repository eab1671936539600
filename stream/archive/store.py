"""Where the files of an archive lie: a folder, or an object store that fsspec knows."""

from __future__ import annotations

import os
from datetime import UTC, datetime

import fsspec
import xxhash

from stream.archive.errors import ArchiveError, FileDamaged
from stream.archive.manifest import FileRecord

OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss"}
"""They know no folders, and making one would make a bucket of whatever name was misspelt."""


class ArchiveStore:
    """The files below one URL. They are written once, whole, under a name that is never used again."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise ArchiveError(f"{url}: {error}; set archive.url to a folder or a URL that fsspec knows") from None

    def write(self, path: str, data: bytes) -> None:
        """Return when the file is closed, on a disk of this machine so that it survives a power cut.

        Raises ArchiveError.
        """
        place = f"{self._root}/{path}"
        try:
            if not OBJECT_STORES & set(_protocols(self._fs)):
                self._fs.makedirs(place.rpartition("/")[0], exist_ok=True)
            with self._fs.open(place, "wb") as file:
                file.write(data)
                if "file" in _protocols(self._fs):
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

    def files(self, folder: str) -> list[tuple[str, int, int]]:
        """(path below the URL, bytes, milliseconds of the last change) of its Parquet files. Raises ArchiveError."""
        try:
            places = self._fs.find(f"{self._root}/{folder}", detail=True) if self._fs.exists(self._root) else {}
            return [
                (place[len(self._root) + 1 :], int(info["size"]), self._modified_ms(place))
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

    def _modified_ms(self, place: str) -> int:
        modified: datetime = self._fs.modified(place)
        return round(1000 * (modified if modified.tzinfo else modified.replace(tzinfo=UTC)).timestamp())


def _protocols(fs: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
