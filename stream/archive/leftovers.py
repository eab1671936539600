"""Files that a crash of `recd archive` left behind: written and closed, and in no manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from stream.archive.manifest import FileRecord
from stream.archive.place import in_name, manifest_of, spellings
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


@dataclass(slots=True)
class Leftovers:
    """What lies in the folders of an archive and is not in its manifest."""

    files: list[Leftover] = field(default_factory=list)
    """Written for this manifest: nobody will ever read them."""
    of_another: int = 0
    """How many were written for another manifest, or do not say for which."""


def find_leftovers(store: ArchiveStore, listed: Sequence[FileRecord], *, manifest_id: str, now_ms: int) -> Leftovers:
    """Files older than a day that this manifest would list and does not, in the folders where it lists any.

    `manifest_id` is the id of the manifest's topic: another cluster, or this one made again, may keep an archive in the
    same folders. A path that is listed under whatever URL is none: an archive has many spellings, and may have moved.
    Raises ArchiveError.
    """
    spelled = spellings(record.url for record in listed)
    folders = {record.path.rpartition("/")[0] for record in listed if spelled[record.url] == store.url}
    known = {record.path for record in listed}
    found = Leftovers()
    for file in (file for folder in sorted(folders) for file in store.files(folder) if file.path not in known):
        if manifest_of(file.path) != in_name(manifest_id):
            found.of_another += 1
        elif (modified_ms := store.modified_ms(file)) <= now_ms - SURE_MS:
            found.files.append(Leftover(file.path, file.bytes, modified_ms))
    return found
