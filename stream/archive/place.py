"""Where an archive lies and how its files are called: a place has many spellings, and several archives may share it."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable
from typing import NamedTuple

import fsspec

from stream.archive.errors import ArchiveError

NO_ID = "A" * 22
"""What a broker says that gives topics no ids."""
_NAME = re.compile(r"\d{20}-([\w-]{22})-[0-9a-f]{32}\.parquet")


class Place(NamedTuple):
    """A folder in a file system that fsspec knows."""

    fs: fsspec.AbstractFileSystem
    root: str
    url: str
    """Its one spelling: an absolute path on this machine, else a URL with the protocol's first name."""


def open_place(url: str) -> Place:
    """The place that a URL or a path means. Raises ArchiveError."""
    try:
        fs, root = fsspec.core.url_to_fs(url.rstrip("/"))
    except (ValueError, ImportError) as error:
        raise ArchiveError(f"{url}: {error}; set archive.url to a folder or a URL that fsspec knows") from None
    if "::" in url:
        return Place(fs, root, url.rstrip("/"))
    return Place(fs, root, root if "file" in protocols(fs) else fs.unstrip_protocol(root))


def spellings(urls: Iterable[str]) -> dict[str, str]:
    """By URL, its one spelling; those that cannot be opened here stand as they are."""
    return {url: _spelling(url) for url in set(urls)}


def protocols(fs: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    """All names of its protocol, the first one first."""
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def new_file(folder: str, *, first_offset: int, manifest_id: str) -> str:
    """A path that was never used, and that says which manifest will list it: by the id of the manifest's topic."""
    return f"{folder}/{first_offset:020d}-{in_name(manifest_id)}-{uuid.uuid4().hex}.parquet"


def in_name(manifest_id: str) -> str:
    """A topic's id as it stands in a file's name: the client says it in base64 with `+` and `/`."""
    return manifest_id.replace("+", "-").replace("/", "_")


def manifest_of(path: str) -> str | None:
    """The id of the manifest's topic, `in_name`; None where the name does not say."""
    found = _NAME.fullmatch(path.rpartition("/")[2])
    return found[1] if found and found[1] != NO_ID else None


def _spelling(url: str) -> str:
    try:
        return open_place(url).url
    except ArchiveError:
        return url.rstrip("/")
