"""Files that a crash of `recd archive` left behind: written and closed, and in no manifest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from stream.archive.manifest import FileRecord
from stream.archive.store import ArchiveStore

SURE_MS = 86_400_000
"""A file is listed within seconds of being closed, or never: the clocks of a store and of this machine may differ."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """A file that no manifest lists."""

    path: str
    """Below the archive's URL."""
    bytes: int
    modified_ms: int


def find_leftovers(store: ArchiveStore, listed: Iterable[FileRecord], *, now_ms: int) -> list[Leftover]:
    """Files in the folders of logs that this manifest lists files of, older than a day, that it does not list.

    Only there: another cluster may keep its own archive below the same URL. Raises ArchiveError.
    """
    ours = [record.path for record in listed if record.url == store.url]
    folders = sorted({path.rpartition("/")[0] for path in ours})
    found = [Leftover(*file) for folder in folders for file in store.files(folder)]
    return [one for one in found if one.path not in set(ours) and one.modified_ms <= now_ms - SURE_MS]
