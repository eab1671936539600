"""What a cut says in JSON, and its folder on the disk: whole or not there, every byte under a digest."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec
import xxhash
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from trainer.durable import replace_file, sync_folder, write_through
from trainer.model_record import ModelRecord
from trainer.rates import GivenRate

CURRENT = "current.json"
RECORD = "cut.json"
DIGESTS = "digests.json"
TEMPORARY = ".writing-"
READ_BYTES = 1 << 22
Count = Annotated[int, msgspec.Meta(ge=0)]
T = TypeVar("T")


class CutError(Exception):
    """A cut cannot be written, or none can be used; the message names the cut, the file, and what to do."""


class DamagedCut(CutError):
    """A file of a cut is not as it was written."""


class Progress(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What was trained of one partition of `batches` since the beginning."""

    position: Count
    """Next offset."""
    samples: Count
    id_sum: str
    """Sum of the sample ids modulo 2^64, in decimal."""
    skipped: Count = 0
    """Of the samples, those that the guards passed over: they count here, but nothing was learned from them."""


class LastVersion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The newest version that was published when the cut was taken; 0 for none."""

    last: Count = 0


class CutRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`cut.json`. Bit-for-bit resuming needs the same `world_size`, `threads` and `column_shards`."""

    format: Literal[1] = 1
    step: Count
    samples: Count
    """Of all partitions, counted as often as they were trained."""
    stream_time_ms: int
    """Greatest event time among them."""
    world_size: Count
    threads: Count
    column_shards: dict[str, Count]
    """By table."""
    written_ms: Count
    topic: str
    topic_id: str
    """The broker's: another one after the topic was made anew."""
    schema: str
    """Digest of the batch schema that was trained."""
    partitions: dict[str, Progress]
    schedule: tuple[Count, ...]
    """By rank, the partition whose turn is next."""
    versions: LastVersion = LastVersion()
    model: ModelRecord | None = None
    """None in a cut of an older trainer, which only the very same model can go on from."""
    rates: dict[str, GivenRate] = {}
    """Learning rates that orders gave, by part."""


class Current(msgspec.Struct, frozen=True):
    """`current.json`."""

    cut: str


class FileDigest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One entry of `digests.json`."""

    bytes: Count
    xxh3_128: str


def decode(data: bytes, kind: type[T], *, what: str) -> T:
    """JSON of the given type; DamagedCut otherwise."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DamagedCut(f"{what}: {str(error).replace('`', '')}") from None


def cuts_folder(url: str) -> Path:
    """Where the cuts of a checkpoint_url stand; CutError where that is no folder."""
    filesystem, path = url_to_fs(url)
    if not isinstance(filesystem, LocalFileSystem):
        raise CutError(f"{url}: cuts are written to a folder only - at $.trainer.checkpoint_url")
    return Path(path)


def cut_name(number: int) -> str:
    """Folder of a cut; numbers grow and are not used twice."""
    return f"cut-{number:010d}"


def cut_number(name: str) -> int | None:
    """The number in a folder's name."""
    match = re.fullmatch(r"cut-(\d{10,})", name)
    return int(match[1]) if match else None


def cut_numbers(root: Path) -> list[int]:
    """Finished cuts, ascending."""
    found = (cut_number(path.name) for path in _folders(root))
    return sorted(number for number in found if number is not None)


def unfinished(root: Path) -> list[Path]:
    """Folders that a crash left."""
    named = (path for path in _folders(root) if path.name.startswith(TEMPORARY))
    return [path for path in named if cut_number(path.name.removeprefix(TEMPORARY)) is not None]


def seal(folder: Path) -> None:
    """Write the digests of all files, then make names durable."""
    digests = {path.name: _digest(path) for path in sorted(folder.iterdir())}
    write_through(folder / DIGESTS, msgspec.json.encode(digests))
    sync_folder(folder)


def verify(folder: Path) -> None:
    """DamagedCut unless every byte of the folder is as it was sealed."""
    try:
        digests = decode((folder / DIGESTS).read_bytes(), dict[str, FileDigest], what=f"{folder / DIGESTS}")
        present = {path.name for path in folder.iterdir()} - {DIGESTS}
        for name in sorted(present ^ digests.keys()):
            raise DamagedCut(f"{folder / name}: {'not in ' + DIGESTS if name in present else 'missing'}")
        for name, expected in digests.items():
            if (found := _digest(folder / name)) != expected:
                raise DamagedCut(f"{folder / name}: {found.bytes} bytes with another digest than when it was written")
    except OSError as error:
        raise DamagedCut(f"{folder}: {error}") from None


def replace_current(root: Path, name: str) -> None:
    """Put a cut in force: one rename."""
    replace_file(root / CURRENT, msgspec.json.encode(Current(name)))


def remove(folder: Path) -> None:
    """Delete a cut, digests first, so that a half deleted one is never taken for whole."""
    (folder / DIGESTS).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _folders(root: Path) -> Iterator[Path]:
    return (path for path in root.iterdir() if path.is_dir()) if root.is_dir() else iter(())


def _digest(path: Path) -> FileDigest:
    state, size = xxhash.xxh3_128(), 0
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            state.update(block)
            size += len(block)
    return FileDigest(size, state.hexdigest())
